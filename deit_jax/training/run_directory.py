"""The run directory: what a run writes of itself, but for its checkpoints."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deit_jax.errors import InputError
from deit_jax.files import replace_file
from deit_jax.models import model_card
from deit_jax.training import summary, writers

CONFIG = "config.json"


def check(path: str | os.PathLike) -> None:
    """Refuses, before anything is read or written, what cannot be a run directory.

    Raises:
      InputError: It cannot be written, or not be made where it is not there yet.
    """
    path = Path(path)
    there = nearest_existing(path)
    if not there.is_dir():
        raise InputError(f"--workdir={path}: {there} is a file, not a directory.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"--workdir={path}: {there} cannot be written by this user. Give another "
            "--workdir."
        )


def nearest_existing(path: Path) -> Path:
    """`path`, or the nearest of the directories above it that is there."""
    path = path.absolute()
    return next(part for part in (path, *path.parents) if part.exists())


class RunDirectory:
    """config.json, model.json, metrics.jsonl, TensorBoard events and summary.json.

    Args:
      path: Of the directory.
      start: The step that the run goes on from; what was written after it goes.
    """

    def __init__(self, path: str | os.PathLike, start: int):
        self.path = Path(path)
        self._start = start
        self._metrics = writers.MetricsFile(self.path, start)
        self._tensorboard = writers.create(self.path, start)

    @property
    def rates(self) -> list[float]:
        """Images per second of every interval that earlier starts have written."""
        name = "train/images_per_sec"
        return [row[name] for row in self._metrics.kept if name in row]

    @property
    def evaluated(self) -> bool:
        """Whether an earlier start has written the evaluation of step `start`."""
        return any(
            row["step"] == self._start and any(name.startswith("eval/") for name in row)
            for row in self._metrics.kept
        )

    def describe(self, config: Mapping, card: model_card.ModelCard) -> None:
        """Writes what the run is, for the commands that are given its directory."""
        text = json.dumps(config, indent=1)
        replace_file(self.path / CONFIG, text + "\n")
        model_card.write(self.path, card)
        if self._start == 0:
            self._tensorboard.write_texts(0, {"config": f"```\n{text}\n```"})

    def write(self, step: int, values: Mapping[str, float], *, epoch: float) -> None:
        """Scalars of a step, to metrics.jsonl and TensorBoard."""
        self._metrics.write(step, {"epoch": epoch, **values})
        self._tensorboard.write_scalars(step, values)

    def total(self, name: str) -> float:
        """Of a scalar, over all rows that `write` and the runs before it left."""
        return sum(row.get(name, 0) for row in writers.read(self.path))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Pictures [1, H, W, 3] by tag, to TensorBoard."""
        self._tensorboard.write_images(step, images)

    def flush(self) -> None:
        """Returns when all that was written is on disk."""
        self._metrics.flush()
        self._tensorboard.flush()

    def summarise(self, facts: dict) -> dict:
        """Writes and prints summary.json; see `summary.write`."""
        return summary.write(self.path, facts)

    def close(self) -> None:
        try:
            self._metrics.close()
        finally:
            self._tensorboard.close()
