"""`predictions.npz`: what a finished run says of every evaluation image."""

import dataclasses
import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.special import softmax

from deit_jax import files
from deit_jax.training import metrics

PREDICTIONS = "predictions.npz"
# Images x classes up to which all scores are kept: 4 MB a head, and all of CIFAR-100.
MOST_SCORES = 10_000 * 100
COLUMNS = {
    "predicted": np.int32,
    "rank": np.int32,
    "confidence": np.float32,
    "loss": np.float32,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """One head's answers to N images.

    Attributes:
      labels: int [N].
      classes: Their number, C.
      predicted: The most probable class, int [N].
      rank: How many classes outrank the label, int [N]; 0 where the answer is right.
      confidence: The largest probability, float [N].
      loss: The cross-entropy in nats, float [N].
      scores: All probabilities, float64 [N, C]; None where there would be too many.
    """

    labels: np.ndarray
    classes: int
    predicted: np.ndarray
    rank: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    scores: np.ndarray | None = None

    @property
    def right(self) -> np.ndarray:
        return self.rank == 0


def of_logits(logits: np.ndarray, labels: np.ndarray) -> Predictions:
    """The answers in finite logits, float [N, C]."""
    scores = softmax(logits.astype(np.float64), axis=1)
    loss, rank = metrics.losses_and_ranks(logits, labels)
    return Predictions(
        labels=labels,
        classes=logits.shape[1],
        predicted=logits.argmax(axis=1),
        rank=rank,
        confidence=scores.max(axis=1),
        loss=loss,
        scores=scores if scores.size <= MOST_SCORES else None,
    )


def write(
    directory: str | os.PathLike,
    logits: Mapping[str, np.ndarray],
    labels: np.ndarray,
    *,
    fingerprint: str,
) -> None:
    """Writes the predictions of a run; nothing where a logit is not finite.

    The file has `labels` [N], `classes`, the `fingerprint` of the images and the logits
    of each head, float32 [N, C], but of more than `MOST_SCORES` only `<head>_<column>`
    [N] for each of `COLUMNS`.

    Args:
      logits: {head: float32 [N, C]}, without the mean.
      labels: int [N].
    """
    if not all(np.isfinite(values).all() for values in logits.values()):
        return
    classes = next(iter(logits.values())).shape[1]
    arrays = {"labels": labels, "classes": classes, "fingerprint": fingerprint}
    if len(labels) * classes <= MOST_SCORES:
        arrays |= logits
    else:
        for head, values in metrics.heads(dict(logits)).items():
            found = of_logits(values, labels)
            for name, kind in COLUMNS.items():
                arrays[f"{head}_{name}"] = getattr(found, name).astype(kind)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    files.replace_file(Path(directory) / PREDICTIONS, content.getvalue())


def read(
    directory: str | os.PathLike,
) -> tuple[str, dict[str, Predictions]] | None:
    """The fingerprint of the images and each head's predictions; None without the file.

    Raises:
      OSError, ValueError: It cannot be read, or is damaged.
    """
    path = Path(directory) / PREDICTIONS
    if not path.exists():
        return None
    files.check_regular(path)
    try:
        with open(path, "rb") as file, np.load(file) as stored:
            arrays = dict(stored)
        labels, classes = arrays.pop("labels"), int(arrays.pop("classes"))
        return str(arrays.pop("fingerprint")), _heads(arrays, labels, classes)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"it is no file of predictions ({error})") from error


def _heads(arrays: dict, labels: np.ndarray, classes: int) -> dict[str, Predictions]:
    if "class" in arrays:
        logits = metrics.heads(arrays)
        return {head: of_logits(values, labels) for head, values in logits.items()}
    heads = [name.removesuffix("_rank") for name in arrays if name.endswith("_rank")]
    return {
        head: Predictions(
            labels, classes, **{name: arrays[f"{head}_{name}"] for name in COLUMNS}
        )
        for head in heads
    }
