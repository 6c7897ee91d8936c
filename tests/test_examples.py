"""What the models say about the same images."""

import json

import numpy as np
import pytest
import run_directories
from made_runs import group, logits_of, make, right

from deit_jax.data import sources
from deit_jax.reporting import document, examples
from deit_jax.training import metrics, predictions

SPLIT = "test[:40]"


def answers(*each):
    return [predictions.of_logits(*logits_of(one)) for one in each]


@pytest.mark.parametrize(
    ("one", "two", "counts"),
    [
        (right(100, 80), right(100, 70, first=20), [4, 4, 4]),  # 60, 30 and 10
        (right(100, 100), right(100, 97), [9, 3, 0]),
        (right(6, 4), right(6, 4), [4, 0, 2]),  # fewer than are asked for
    ],
)
def test_images_are_of_all_kinds_that_there_are(one, two, counts):
    chosen, shares = examples.select(answers(one, two), 12)
    kinds = [one & two, one ^ two, ~(one | two)]
    assert len(set(chosen.tolist())) == len(chosen)
    assert [int(kind[chosen].sum()) for kind in kinds] == counts
    assert shares == pytest.approx([kind.mean() for kind in kinds])


def digits_run(path, variant, seed):
    """A random model, and predictions of the digits that are as random."""
    run_directories.make(path, variant, seed=seed)
    source = sources.load("digits", SPLIT)
    logits = np.random.default_rng(seed).normal(size=(40, 10)).astype(np.float32)
    logits[:20] += 9 * np.eye(10, dtype=np.float32)[source.labels[:20]]
    dataset = {"name": "digits", "eval_split": SPLIT, "data_dir": ""}
    (path / "config.json").write_text(json.dumps({"dataset": dataset, "v": variant}))
    scores = metrics.classification(logits, source.labels)
    facts = {"class_names": source.class_names, "eval": {"class": scores}}
    (path / "summary.json").write_text(json.dumps(facts))
    predictions.write(
        path, {"class": logits}, source.labels, fingerprint=source.fingerprint
    )
    return path


@pytest.mark.slow
def test_images_and_attention_are_drawn(tmp_path):
    vit = digits_run(tmp_path / "vit", "vit_nano_patch8_32", 0)
    deit = digits_run(tmp_path / "deit", "deit_nano_distilled_patch8_32", 1)
    gone = digits_run(tmp_path / "gone", "deit_nano_patch8_32", 2)
    (gone / "checkpoints").rename(tmp_path / "elsewhere")
    groups = group(vit, deit, gone)
    *drawn, said = examples.shown(groups, images=12, attention=True)
    assert [block.name for block in drawn] == ["same_images", "attention"]
    assert "These 12 are drawn at random" in drawn[0].caption
    assert "all runs are right on 5" in drawn[0].caption
    assert said == document.Text("Without a checkpoint that loads, no attention: gone.")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kept": False}, "No run has predictions.npz"),
        ({"dataset": "digits"}, "holds other images now than those"),
        ({"dataset": "folder:/nowhere"}, "The images cannot be shown: "),
    ],
)
def test_why_no_image_is_shown_is_said(tmp_path, change, says):
    name = change.pop("dataset", "pets")
    config = {"dataset": {"name": name, "train_split": "train", "eval_split": SPLIT}}
    groups = group(make(tmp_path / "a", right(40, 20), config=config, **change))
    [block] = examples.shown(groups, images=12, attention=True)
    assert says in block.text
