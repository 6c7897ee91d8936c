"""Run directories of known effect: made-up answers to images, and their summary."""

import json

import numpy as np

from deit_jax.reporting import comparison, runs
from deit_jax.training import metrics, predictions

CLASSES = ("cat", "dog", "owl", "cow")


def logits_of(right, *, sure=2.0, classes=4):
    """Logits and labels: what is wrong is taken for the next class."""
    right = np.asarray(right, bool)
    labels = np.arange(len(right)) % classes
    answers = np.where(right, labels, (labels + 1) % classes)
    return (sure * np.eye(classes)[answers]).astype(np.float32), labels


def make(
    directory,
    right,
    *,
    seed=0,
    sure=2.0,
    kept=True,
    tables=True,
    fingerprint="abc",
    losses=(),
    facts=(),
    config=(),
):
    """Writes the directory of a finished run that is right where `right` [N] says."""
    directory.mkdir(parents=True)
    logits, labels = logits_of(right, sure=sure)
    dataset = {"name": "pets", "train_split": "train", "eval_split": "val"}
    config = {"seed": seed, "dataset": dataset} | dict(config)
    (directory / "config.json").write_text(json.dumps(config))
    found = metrics.tables(logits, labels)
    scores = metrics.classification(logits, labels) | metrics.averages(found)
    summary = {
        "class_names": CLASSES,
        "eval_split": "val",
        "eval_images": len(labels),
        "eval": {"class": scores},
    } | dict(facts)
    if tables:
        summary["tables"] = {"eval": {"class": found}}
    (directory / "summary.json").write_text(json.dumps(summary))
    rows = [
        {
            "step": n,
            "epoch": float(n),
            "eval/class/loss": loss,
            "eval/class/top1": 0.5,
            "train/top1": 0.75,
        }
        for n, loss in enumerate(losses, 1)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "metrics.jsonl").write_text(text)
    if kept:
        predictions.write(directory, {"class": logits}, labels, fingerprint=fingerprint)
    return directory


def group(*directories):
    groups = runs.group(runs.read(directories))
    return groups, {g: comparison.sample(g) for g in groups}


def right(images: int, count: int, *, first: int = 0) -> np.ndarray:
    """`count` of the images, spread over them by a fixed order, from the `first` on."""
    order = np.random.default_rng(0).permutation(images)
    found = np.zeros(images, bool)
    found[order[first : first + count]] = True
    return found
