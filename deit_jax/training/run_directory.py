"""The run directory: everything that a run writes but its checkpoints."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deit_jax.errors import InputError
from deit_jax.files import replace_file
from deit_jax.models import model_card
from deit_jax.training import predictions, processes, summary, writers

CONFIG = "config.json"
# What runs of older versions did, whose configs do not have these fields.
ADDED_FIELDS = {
    "augment.mix_off_epoch": 0,
    "distillation.allow_weak_teacher": False,
    "distillation.features.distance": "cosine",
    "distillation.features.student": "token",
    "distillation.features.weight": 1.0,
    "distillation.source": "cache",
    "distillation.teacher": "",
    "distillation.verify_every": 0,
    "loss.bce_reduction": "mean",
    "loss.bce_target_threshold": None,
    "loss.class_weights": "none",
    "loss.kind": "softmax",
    "model.init_values": None,
    "model.pool": "token",
    "optimizer.trainable": "all",
    "schedule.cooldown_epochs": 0.0,
    "schedule.name": "cosine",
}


def check(path: str | os.PathLike) -> None:
    """Refuses, before anything is read or written, what cannot be a run directory."""
    there, wrong = nearest_existing(Path(path)), None
    if not there.is_dir():
        wrong = "is a file, not a directory"
    elif not os.access(there, os.W_OK | os.X_OK):
        wrong = "cannot be written by this user"
    if wrong:
        raise InputError(f"--workdir={path}: {there} {wrong}. Give another --workdir.")


def nearest_existing(path: Path) -> Path:
    """`path`, or the nearest of the directories above it that is there."""
    path = path.absolute()
    return next(part for part in (path, *path.parents) if part.exists())


def open_directory(path: str | os.PathLike, start: int):
    """A `RunDirectory` in the first process, an `AbsentDirectory` in the others."""
    return (RunDirectory if processes.is_first() else AbsentDirectory)(path, start)


class AbsentDirectory:
    """What processes other than the first have: its methods write nothing."""

    rates, evaluated = (), False
    __init__ = describe = write = total = write_images = processes.nothing
    flush = keep_predictions = summarise = close = processes.nothing


class RunDirectory:
    """config.json, model.json, metrics.jsonl, TensorBoard events and the results.

    The run goes on from step `start`: rows of later steps are dropped.
    """

    def __init__(self, path: str | os.PathLike, start: int):
        from deit_jax.training import event_files  # tensorboard, for no other command

        self.path = Path(path)
        self._start = start
        self._metrics = writers.MetricsFile(self.path, start)
        self._tensorboard = event_files.create(self.path, start)

    @property
    def rates(self) -> list[float]:
        """Images per second of the intervals of earlier starts."""
        name = "train/images_per_sec"
        return [row[name] for row in self._metrics.kept if name in row]

    @property
    def evaluated(self) -> bool:
        """Whether an earlier start has written the evaluation of step `start`."""
        rows = (row for row in self._metrics.kept if row["step"] == self._start)
        return any(name.startswith("eval/") for row in rows for name in row)

    def describe(self, config: Mapping, card: model_card.ModelCard) -> None:
        """Writes what the run is, for the commands that are given its directory."""
        text = json.dumps(config, indent=1)
        replace_file(self.path / CONFIG, text + "\n")
        model_card.write(self.path, card)
        if self._start == 0:
            self._tensorboard.write_texts(0, {"config": f"```\n{text}\n```"})

    def write(self, step: int, values: Mapping, *, epoch: float, flush=False) -> None:
        """Writes scalars of a step to TensorBoard and metrics.jsonl.

        With `flush` TensorBoard has them first: `evaluated` comes from metrics.jsonl.
        """
        self._tensorboard.write_scalars(step, values)
        if flush:
            self._tensorboard.flush()
        self._metrics.write(step, {"epoch": epoch, **values})

    def total(self, name: str) -> float:
        """Sums a scalar over all rows of metrics.jsonl."""
        return sum(row.get(name, 0) for row in writers.read(self.path))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes images [1, H, W, 3], by tag, to TensorBoard."""
        self._tensorboard.write_images(step, images)

    def flush(self) -> None:
        """Returns when all that was written is on disk."""
        self._metrics.flush()
        self._tensorboard.flush()

    def keep_predictions(self, logits, labels, *, fingerprint: str) -> None:
        predictions.write(self.path, logits, labels, fingerprint=fingerprint)

    def summarise(self, facts: dict) -> dict:
        return summary.write(self.path, facts)

    def close(self) -> None:
        try:
            self._metrics.close()
        finally:
            self._tensorboard.close()
