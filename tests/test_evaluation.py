"""Every image once, in order, and which metrics are computed when."""

import jax
import numpy as np
import pytest

from deit_jax.data import sources
from deit_jax.models.vit import VisionTransformer
from deit_jax.training import evaluation, inputs, step

CHEAP = {"loss", "top1", "top5"}
ALL = CHEAP | {"precision", "recall", "f1", "auc", "ece"}


@pytest.fixture(scope="module")
def digits():
    return sources.load("digits", "test[:22]")


def fake_step(params, images):
    """Two heads that know the image by its pixels; [2, b, ...] each."""
    sums = images.astype(np.float32).sum(axis=(2, 3, 4))
    logits = sums[..., None] * np.arange(10, dtype=np.float32) * params
    return {"class": logits, "distill": -logits, "token_cosine": sums}


def test_rows_are_those_of_the_source_without_padding(digits):
    outputs, labels = evaluation.collect_logits(
        fake_step, {"eval": 1.0, "eval_ema": 2.0}, digits, batch_size=8, devices=2
    )
    np.testing.assert_array_equal(labels, digits.labels)
    sums = digits.images.astype(np.float32).sum(axis=(1, 2, 3))
    for name, factor in (("eval", 1), ("eval_ema", 2)):
        np.testing.assert_array_equal(outputs[name]["token_cosine"], sums)
        np.testing.assert_array_equal(outputs[name]["class"][:, 1], factor * sums)


def make_outputs(images=60, classes=6, nan_in=()):
    rng = np.random.default_rng(0)
    labels = np.arange(images) % classes
    logits = rng.normal(size=(2, images, classes)) + np.eye(classes)[labels]
    heads = dict(zip(("class", "distill"), logits.astype(np.float32), strict=True))
    for head in nan_in:
        heads[head][7, 2] = np.nan
    return {"eval": heads | {"token_cosine": rng.uniform(-1, 1, images)}}, labels


@pytest.mark.parametrize(
    ("everything", "small", "expected"),
    [
        (True, 0, ALL),
        (False, 10_000, CHEAP),
        (None, 60 * 6, ALL),
        (None, 60 * 6 - 1, CHEAP),
    ],
)
def test_the_dear_metrics_go_by_size(monkeypatch, everything, small, expected):
    monkeypatch.setattr(evaluation, "SMALL", small)
    outputs, labels = make_outputs()
    results, tables = evaluation.score(outputs, labels, everything=everything)
    assert list(results["eval"]) == ["class", "distill", "mean", "token_cosine"]
    for head in ("class", "distill", "mean"):
        assert set(results["eval"][head]) == expected
    heads = {"class", "distill", "mean"} if expected == ALL else set()
    assert set(tables["eval"]) == heads
    cosine = outputs["eval"]["token_cosine"].mean()
    assert results["eval"]["token_cosine"] == pytest.approx(cosine)


def test_a_head_that_gives_nan_spoils_no_other():
    outputs, labels = make_outputs(nan_in=["distill"])
    results, tables = evaluation.score(outputs, labels, everything=True)
    assert set(results["eval"]["class"]) == ALL
    assert set(results["eval"]["distill"]) == set(results["eval"]["mean"]) == CHEAP
    assert set(tables["eval"]) == {"class"}


def test_classes_without_images_are_named():
    labels = np.array([0, 2, 2])
    absent = evaluation.absent_classes(labels, ["cat", "dog", "owl", "cow"])
    assert absent == ["dog", "cow"]


def test_token_cosine_is_that_of_what_the_heads_read():
    small = {"image_size": 8, "patch_size": 4, "width": 8, "depth": 1, "num_heads": 2}
    model = VisionTransformer(num_classes=3, distilled=True, **small)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    half = (0.5,) * 3
    statics = {"model": model, "mean": half, "std": half, "token_cosine": True}

    @jax.jit
    def both(key):
        normalised = inputs.normalise(images, half, half)
        params = {"params": model.init(key, normalised)["params"]}
        got = step.eval_step(params["params"], images, **statics)
        _, sown = model.apply(params, normalised, mutable=["intermediates"])
        return got, model.apply(params, normalised), sown["intermediates"]

    got, plain, sown = both(jax.random.key(1))
    assert set(got) == set(plain) | {"token_cosine"}
    np.testing.assert_allclose(got["class"], plain["class"], atol=1e-6)
    a, b = (np.asarray(sown[f"{head}_token"][0]) for head in ("class", "distill"))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(got["token_cosine"], cosine, atol=1e-6)
