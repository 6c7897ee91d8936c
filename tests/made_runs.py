"""Run directories of known effect: made-up answers to images, and their summary."""

import json

import numpy as np

from deit_jax.reporting import runs
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
    finished=True,
    fingerprint="abc",
    losses=(),
    facts=(),
    config=(),
):
    """Writes the directory of a run that is right where `right` [N] says.

    Args:
      sure: The logit of the answer.
      kept, tables: Whether it has predictions.npz, and tables in summary.json.
      losses: Of the evaluations, one an epoch of 10 steps.
      facts, config: More of summary.json and of config.json.
    """
    directory.mkdir(parents=True)
    logits, labels = logits_of(right, sure=sure)
    dataset = {"name": "pets", "train_split": "train", "eval_split": "val"}
    config = {"seed": seed, "dataset": dataset} | dict(config)
    (directory / "config.json").write_text(json.dumps(config))
    found = metrics.tables(logits, labels)
    scores = metrics.classification(logits, labels) | metrics.averages(found)
    rows = []
    for epoch, loss in enumerate(losses, 1):
        values = {"epoch": float(epoch), "train/loss_ce": loss, "train/top1": 0.75}
        values |= {f"eval/class/{name}": value for name, value in scores.items()}
        values |= {"eval/class/loss": loss, "eval/class/top1": 0.5}
        rows.append({"step": 10 * epoch} | values)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "metrics.jsonl").write_text(text)
    if not finished:
        return directory
    summary = {
        "class_names": CLASSES,
        "eval_split": "val",
        "eval_images": len(labels),
        "eval": {"class": scores},
    } | dict(facts)
    if tables:
        summary["tables"] = {"eval": {"class": found}}
    (directory / "summary.json").write_text(json.dumps(summary))
    if kept:
        predictions.write(directory, {"class": logits}, labels, fingerprint=fingerprint)
    return directory


def group(*directories):
    return runs.group(runs.read(directories))


def right(images: int, count: int, *, first: int = 0) -> np.ndarray:
    """`count` of the images, spread over them by a fixed order, from the `first` on."""
    order = np.random.default_rng(0).permutation(images)
    found = np.zeros(images, bool)
    found[order[first : first + count]] = True
    return found
