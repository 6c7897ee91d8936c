"""Training that starts from trained weights: what it takes over, says and refuses."""

import itertools
import json
import re
import shutil

import caches
import jax
import numpy as np
import optax
import pytest
import run_directories

from configs import deit, finetune, vit
from deit_jax import pretrained, train, trained_model
from deit_jax.data import sources
from deit_jax.errors import InputError
from deit_jax.models import model_card, variants
from deit_jax.models.params import abstract_params
from deit_jax.training import step
from deit_jax.weights import tensor_files, timm

pytestmark = pytest.mark.usefixtures("small_nano")

DIGITS = tuple("0123456789")
VIT, DEIT = "vit_nano_patch8_32", "deit_nano_distilled_patch8_32"


def short(config):
    """Two steps on digits or on a folder."""
    config.epochs = 1.0
    config.batch_size = 16
    config.dataset.workers = 0
    config.eval.batch_size = 32
    config.eval.every_epochs = 0.0
    config.checkpoint.every_steps = 1
    config.schedule.warmup_epochs = 0.0
    if config.dataset.name == "digits":
        config.dataset.train_split = "train[:32]"
        config.dataset.eval_split = "test[:32]"
    return config


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A teacher that knows the labels of 32 digits."""
    source = sources.load("digits", "train[:32]")
    directory = tmp_path_factory.mktemp("cache")
    caches.write_oracle(directory, source)
    return directory


def distilled(cache):
    config = short(deit.get_config("digits"))
    config.distillation.view = "plain"
    config.distillation.logits_dir = str(cache)
    return config


def random_params(model, seed=0):
    """Large enough that every parameter matters to the logits."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: random.normal(size=x.shape, scale=0.3).astype(np.float32),
        abstract_params(model),
    )


@pytest.fixture
def source(tmp_path):
    """Makes a run directory of random parameters; returns these too."""

    def make(variant=VIT, class_names=DIGITS, mean=(0.5,) * 3):
        fields = {"class_names": class_names, "mean": mean, "std": (0.5,) * 3}
        path = tmp_path / "source"
        _, params = run_directories.make(path, variant, step=7, **fields)
        return path, params["raw"]

    return make


@pytest.mark.slow
def test_starts_from_the_weights_and_resumes_without_them(
    source, cache, tmp_path, monkeypatch, capsys
):
    path, _ = source(DEIT)
    config = distilled(cache)
    config.dataset.mean = config.dataset.std = (0.5,) * 3
    config.init_from = str(path)
    # Nothing moves, so what the end measures is where the run started.
    config.optimizer.learning_rate = 0.0
    config.optimizer.layer_decay = 0.75
    config.schedule.min_learning_rate = 0.0
    test = sources.load("digits", config.dataset.eval_split)
    logits = trained_model.load(path).logits(test.images)

    real, calls = step.pmap_train_step, itertools.count(1)

    def dies_in_its_second_step(*args, **kwargs):
        mapped = real(*args, **kwargs)

        def one(*step_args):
            if next(calls) == 2:
                raise KeyboardInterrupt
            return mapped(*step_args)

        return one

    monkeypatch.setattr(step, "pmap_train_step", dies_in_its_second_step)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(config, tmp_path / "run")
    assert f"starts from {path}: {DEIT}" in capsys.readouterr().out
    monkeypatch.undo()
    shutil.rmtree(path)
    summary = train.train_and_evaluate(config, tmp_path / "run")
    assert summary["resumed_at_step"] == 1
    assert "starts from" not in capsys.readouterr().out

    for head, expected in logits.items():
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(
            expected, test.labels
        )
        top1 = np.mean(np.argmax(expected, axis=-1) == test.labels)
        for weights in ("eval", "eval_ema"):
            scores = summary[weights][head]
            assert scores["loss"] == pytest.approx(float(loss.mean()), rel=1e-4)
            assert scores["top1"] == pytest.approx(top1, abs=1e-6)

    config.init_from = "elsewhere"
    with pytest.raises(InputError, match=r"init_from: '.*source' -> 'elsewhere'"):
        train.train_and_evaluate(config, tmp_path / "run")


@pytest.mark.slow
def test_images_at_another_size_and_back_to_digits(
    source, cache, folder, tmp_path, capsys
):
    config = short(vit.get_config("folder"))
    config.dataset.name = folder
    config.dataset.image_size = 48
    config.model.variant = VIT
    path, _ = source(DEIT, mean=(0.305,) * 3)
    config.init_from = str(path)
    summary = train.train_and_evaluate(config, tmp_path / "pictures")
    assert "distill" not in summary["eval"]
    assert np.isfinite(summary["eval"]["class"]["loss"])
    card = model_card.read(tmp_path / "pictures")
    assert (card.image_size, card.class_names) == (48, ("bright", "dark"))
    out = capsys.readouterr().out
    assert "the distillation token, its position and its head are dropped" in out
    assert "resized from 4 x 4 to 6 x 6 patches (bicubic)" in out
    assert "the head is new: 2 classes, not 10" in out
    assert "the source's were with (0.305" in out

    config = distilled(cache)
    config.init_from = str(tmp_path / "pictures")
    summary = train.train_and_evaluate(config, tmp_path / "digits")
    assert np.isfinite(summary["eval"]["distill"]["loss"])
    out = capsys.readouterr().out
    assert "a distillation token is added" in out
    assert "resized from 6 x 6 to 4 x 4" in out
    assert "the heads are new: 10 classes, not 2" in out


@pytest.mark.slow
@pytest.mark.parametrize("pool", variants.POOLS)
def test_a_deit3_of_its_authors_at_another_size_with_a_token(
    cache, tmp_path, capsys, pool
):
    params = random_params(variants.create("deit3_nano_patch8_32", num_classes=10))
    tensors = {
        re.sub(r"ls(\d)\.gamma$", r"gamma_\1", name): value
        for name, value in timm.from_flax(params).items()
    }
    path = tmp_path / "deit_3_nano.safetensors"
    tensor_files.write_safetensors(path, tensors)
    config = distilled(cache)
    config.model.variant = "deit3_nano_distilled_patch8_32"
    config.model.pool = pool
    config.dataset.image_size = 48
    config.init_from = str(path)
    summary = train.train_and_evaluate(config, tmp_path / "run")
    assert np.isfinite(summary["eval"]["distill"]["loss"])
    out = capsys.readouterr().out
    assert "a distillation token is added, a copy of the class token\n" in out
    assert "resized from 4 x 4 to 6 x 6 patches (bicubic)" in out
    assert ("reads the mean of the patches" in out) == (pool == "mean")
    trained = trained_model.load(tmp_path / "run")
    assert (trained.card.pool, trained.card.image_size) == (pool, 48)
    before, after = (
        tree["blocks_1"]["ls2"]["gamma"] for tree in (params, trained.params)
    )
    assert 0 < np.abs(after - before).max() < 0.1


def start(path, variant=VIT, class_names=DIGITS, keep_heads=None):
    """(initial parameters, sentences, fresh parameters)."""
    model = variants.create(variant, num_classes=len(class_names))
    fresh = random_params(model, seed=1)
    card = model_card.ModelCard(
        variant, model.image_size, tuple(class_names), (0.5,) * 3, (0.5,) * 3, 1.0
    )
    begin = pretrained.Start(str(path), "bicubic", keep_heads)
    return *pretrained.initial_params(begin, model, fresh, card), fresh


ANIMALS = ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("theirs", "ours", "keep", "rows", "sentence"),
    [
        (ANIMALS, ANIMALS, None, (0, 1, 2), "the head stays: the classes are the same"),
        (("0", "1", "2"), ANIMALS, None, (0, 1, 2), "the source only numbers its"),
        (("x", "y", "z"), ANIMALS, None, (None,) * 3, "the head is new: 3 other"),
        (ANIMALS[::-1], ANIMALS, None, (2, 1, 0), "put into this run's order by name"),
        (
            ("0", "1", "10", "2"),
            ("0", "1", "2", "10"),
            None,
            (0, 1, 3, 2),
            "put into this run's order by name",
        ),
        (
            ("ant", "bee", "dog"),
            ANIMALS,
            None,
            (0, 1, None),
            "keeps the rows of 2 known classes (ant, bee); 1 are new",
        ),
        (ANIMALS, ("bee",), None, (1,), "put into this run's order by name"),
        (ANIMALS, DIGITS, None, (None,) * 10, "the head is new: 10 classes, not 3"),
        (("a", "b", "c"), ANIMALS, True, (0, 1, 2), "stays: transfer.keep_heads=True"),
        (ANIMALS, ANIMALS, False, (None,) * 3, "the head is new: 3 other classes"),
    ],
)
def test_heads_are_matched_by_the_names_of_classes(
    source, theirs, ours, keep, rows, sentence
):
    path, params = source(class_names=theirs)
    got, sentences, fresh = start(path, class_names=ours, keep_heads=keep)
    for c, row in enumerate(rows):
        expected, at = (fresh, c) if row is None else (params, row)
        np.testing.assert_array_equal(
            got["head"]["kernel"][:, c], expected["head"]["kernel"][:, at]
        )
    assert sentences[0] == f"starts from {path}: {VIT}, 32 px, {len(theirs)} classes"
    assert sentences[1] == "its parameters are those of step 7"
    assert sentence in sentences[2]
    assert len(sentences) == 3


def test_a_file_of_weights_is_read_too(tmp_path):
    params = random_params(variants.create(DEIT, num_classes=10))
    path = tmp_path / "weights.safetensors"
    tensor_files.write_safetensors(path, timm.from_flax(params))
    got, sentences, _ = start(path, variant=DEIT)
    jax.tree.map(np.testing.assert_array_equal, got, params)
    assert any("the head stays" in sentence for sentence in sentences)
    assert any("mean (0.5, 0.5, 0.5)" in sentence for sentence in sentences)


def test_an_address_is_refused_as_it_is():
    address = "https://host//weights.pth"
    with pytest.raises(InputError, match=f"init_from={address}: {address} is an addre"):
        start(address)


@pytest.mark.parametrize(
    ("made", "asked", "message"),
    [
        (
            {"class_names": ANIMALS},
            {"keep_heads": True},
            "transfer.keep_heads=True, but it has 3 classes and this run 10",
        ),
        (
            {"variant": "vit_tiny_patch4_32"},
            {},
            "take --config.model.variant=vit_tiny_patch4_32 or deit",
        ),
    ],
)
def test_another_model_is_refused(source, made, asked, message):
    path, _ = source(**made)
    with pytest.raises(InputError, match=f"^init_from={path}: .*{message}"):
        start(path, **asked)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "does not exist. Expected a run directory"),
        (lambda path: (path / "model.json").unlink(), "holds no model.json"),
        (lambda path: shutil.rmtree(path / "checkpoints"), "no checkpoint yet"),
        (lambda path: shutil.rmtree(path / "checkpoints" / "7" / "state"), "damaged"),
    ],
)
def test_half_a_source_is_refused_by_name(source, damage, message):
    path, _ = source()
    damage(path)
    with pytest.raises(InputError) as refused:
        start(path)
    assert str(refused.value).startswith(f"init_from={path}: ")
    assert message in str(refused.value)


@pytest.mark.parametrize("name", ["run", "run/../run/"])
def test_a_run_does_not_start_from_itself(tmp_path, digits_config, name):
    digits_config.init_from = f"{tmp_path}/{name}"
    with pytest.raises(InputError, match=r"own directory.* another --workdir"):
        train.train_and_evaluate(digits_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_fine_tunes_asks_for_weights(tmp_path):
    with pytest.raises(InputError, match=r"Set --config\.init_from to a run directory"):
        train.train_and_evaluate(finetune.get_config("folder"), tmp_path / "run")
    assert json.loads(finetune.get_config("folder").to_json_best_effort())
