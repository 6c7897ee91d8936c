"""Confidence intervals of the metrics, from images drawn anew with replacement."""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from deit_jax.training import metrics
from deit_jax.training.predictions import Predictions

RESAMPLES, SEED, LEVEL = 1000, 0, 0.95
BLOCK = 64  # resamples at once: the counts of 10,000 images take 5 MB


def replicates(
    predictions: Predictions, *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, np.ndarray]:
    """The metrics of the images of `predictions`, drawn anew `resamples` times.

    Which images are drawn depends on `seed`, `resamples` and the number of images
    alone. So the differences of two models' replicates on the same images are those of
    a paired bootstrap (Efron and Tibshirani 1993, chapter 8).

    Returns:
      {metric: float64 [R]} with the names of `metrics.classification` and
      `metrics.averages`, and `f1_of_class`, [R, C], nan for a class without images.
      `auc` is missing without `Predictions.scores`. A calibration error grows by the
      noise in its bins, of which a resample has twice as much: the replicates of `ece`
      are shifted, so that their mean is the error of all images.
    """
    images, classes = len(predictions.labels), predictions.classes
    by_class = _of_classes(predictions.labels, predictions.predicted, classes)
    features = sparse.vstack([_features(predictions), by_class], format="csr")
    ranked = {}
    if predictions.scores is not None:
        ranked = metrics.rank(predictions.scores, predictions.labels)
    blocks = []
    for counts in _counts(images, resamples, seed):
        sums = features @ counts
        found = _scores(sums[: -3 * classes], images)
        found |= _averages(*sums[-3 * classes :].reshape(3, classes, -1))
        if ranked:
            counts = counts.astype(np.float32)  # half the memory, still whole numbers
            areas = [metrics.weighted_auc(one, counts) for one in ranked.values()]
            found["auc"] = np.nanmean(areas, axis=0)
        blocks.append(found)
    joined = {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}
    whole = _scores(features.sum(axis=1)[: -3 * classes, None], images)["ece"]
    joined["ece"] += whole - joined["ece"].mean()
    return joined


def confusion_replicates(
    matrix: np.ndarray, *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, np.ndarray]:
    """As `replicates`, of what a confusion matrix [C, C] tells: no loss, no order.

    The draws of two models are independent: differences are not paired.
    """
    matrix = np.asarray(matrix)
    labels, predicted = np.nonzero(matrix)
    cells, images = matrix[labels, predicted], matrix.sum()
    drawn = np.random.default_rng(seed).multinomial(
        images, cells / images, size=resamples
    )
    sums = _of_classes(labels, predicted, len(matrix)) @ drawn.T.astype(float)
    right, predicted, support = sums.reshape(3, len(matrix), -1)
    return {"top1": right.sum(axis=0) / images} | _averages(right, predicted, support)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The percentile interval of replicates [R]."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _counts(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields how often each image is drawn: float64 [N, b], resample by resample."""
    rng = np.random.default_rng(seed)
    for first in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - first)
        drawn = rng.integers(images, size=(size, images))
        place = drawn * size + np.arange(size)[:, None]
        counts = np.bincount(place.ravel(), minlength=images * size)
        yield counts.reshape(images, size).astype(float)


def _rows(which: np.ndarray, values: np.ndarray, count: int) -> sparse.csr_array:
    """[count, N] with values [N], each in the row that `which` [N] says."""
    columns = np.arange(len(which))
    shape = (count, len(which))
    return sparse.csr_array((values.astype(float), (which, columns)), shape=shape)


def _features(predictions: Predictions) -> sparse.csr_array:
    """Rows for `_scores`: loss, top-1, top-5, and the errors of the bins."""
    plain = [predictions.loss, predictions.rank < 1, predictions.rank < 5]
    bins = metrics.calibration_bins(predictions.confidence)
    excess = predictions.confidence - predictions.right
    return sparse.vstack(
        [sparse.csr_array(np.array(plain, float)), _rows(bins, excess, metrics.BINS)]
    )


def _scores(sums: np.ndarray, images: int) -> dict[str, np.ndarray]:
    loss, top1, top5, *bins = sums / images
    ece = np.abs(bins).sum(axis=0)
    return {"loss": loss, "top1": top1, "top5": top5, "ece": ece}


def _of_classes(
    labels: np.ndarray, predicted: np.ndarray, classes: int
) -> sparse.csr_array:
    """Rows for `_averages`: by class, what is right, predicted, and there."""
    one = np.ones(len(labels))
    counted = (labels, labels == predicted), (predicted, one), (labels, one)
    rows = [_rows(which, values, classes) for which, values in counted]
    return sparse.vstack(rows, format="csr")


def _averages(
    right: np.ndarray, predicted: np.ndarray, support: np.ndarray
) -> dict[str, np.ndarray]:
    """Macro averages [b] of counts [C, b], without the classes that have no images."""
    there = np.where(support > 0, 1, np.nan)
    by_class = {
        "precision": right / np.maximum(predicted, 1) * there,
        "recall": right / np.maximum(support, 1) * there,
        "f1": 2 * right / np.maximum(predicted + support, 1) * there,
    }
    means = {name: np.nanmean(values, axis=0) for name, values in by_class.items()}
    return means | {"f1_of_class": by_class["f1"].T}
