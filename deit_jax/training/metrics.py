"""Exact metrics from the logits of a whole split, on the host."""

import numpy as np
from scipy.special import logsumexp, softmax

BINS = 15  # of the calibration error, as in Guo et al. 2017
LARGEST_CONFUSION = 100  # classes; a larger matrix can neither be read nor drawn


def heads(logits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds `mean`, the mean of the two heads' logits, where there are two.

    The reference predicts with it (Touvron et al. 2020, section 4, and timm).
    """
    if "distill" not in logits:
        return logits
    return logits | {"mean": (logits["class"] + logits["distill"]) / 2}


def classification(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Cross-entropy (nats), top-1 and top-5 accuracy (0 .. 1).

    Args:
      logits: float [N, C]; with fewer than five classes top-5 is 1.
      labels: int [N].
    """
    loss, rank = losses_and_ranks(logits, labels)
    return {
        "loss": float(loss.mean()),
        "top1": float((rank < 1).mean()),
        "top5": float((rank < 5).mean()),
    }


def losses_and_ranks(
    logits: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The cross-entropy (nats) of every image, and how many classes outrank its label.

    Ties go to the smaller class index, and a logit that is not a number outranks the
    label, so that a constant or broken model gets no accuracy for free.

    Args:
      logits: float [N, C].
      labels: int [N].

    Returns:
      float64 [N] and int [N].
    """
    logits = logits.astype(np.float64)
    true = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    # Not `logits > true`: a comparison with nan is false, and must count as a loss.
    rank = (~(logits <= true) | ((logits == true) & earlier)).sum(axis=1)
    return logsumexp(logits, axis=1) - true[:, 0], rank


def tables(logits: np.ndarray, labels: np.ndarray) -> dict[str, dict | list]:
    """What stands behind the macro averages: by class, by confidence, by mistake.

    Args:
      logits: float [N, C], finite.
      labels: int [N].

    Returns:
      `per_class`: lists of C values, `precision`, `recall`, `f1`, one-vs-rest `auc`
      (None for a class without images, and for the only class that has any) and
      `support`, its images. A class that is never predicted has precision 0.
      `calibration`: lists of `BINS` values for equal bins of the confidence (the
      largest probability): `count`, mean `confidence` and `accuracy` (None if empty).
      `confusion`: images of row's class that were taken for column's, for at most
      `LARGEST_CONFUSION` classes.
    """
    # Takes longer to import than all else that a prediction needs but JAX.
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    num_classes = logits.shape[1]
    every_class = np.arange(num_classes)
    scores = softmax(logits.astype(np.float64), axis=1)
    predicted = logits.argmax(axis=1)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=every_class, zero_division=0
    )
    absent = support == 0
    shares = {"precision": precision, "recall": recall, "f1": f1}
    found = {
        "per_class": {
            **{n: _listed(np.where(absent, np.nan, v)) for n, v in shares.items()},
            "auc": _listed(one_vs_rest_auc(scores, labels)),
            "support": support.astype(int).tolist(),
        },
        "calibration": _calibration(scores.max(axis=1), predicted == labels),
    }
    if num_classes <= LARGEST_CONFUSION:
        matrix = confusion_matrix(labels, predicted, labels=every_class)
        found["confusion"] = matrix.tolist()
    return found


def averages(tables: dict[str, dict | list]) -> dict[str, float]:
    """Macro `precision`, `recall`, `f1` and `auc`, and `ece`, from `tables`.

    Classes without images are left out. `auc` is missing where all images are of one
    class. `ece` is the expected calibration error (Guo et al. 2017, eq. 3): the mean
    distance of confidence and accuracy over the bins, weighted by their images.
    """
    means = {}
    for name in ("precision", "recall", "f1", "auc"):
        values = [v for v in tables["per_class"][name] if v is not None]
        if values:
            means[name] = float(np.mean(values))
    # None, of an empty bin, becomes nan.
    count, confidence, accuracy = (
        np.array(tables["calibration"][name], float)
        for name in ("count", "confidence", "accuracy")
    )
    distance = np.nan_to_num(np.abs(confidence - accuracy))
    means["ece"] = float(np.average(distance, weights=count))
    return means


def one_vs_rest_auc(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class against the rest: float64 [C].

    A class that has no image, or all of them, has nan. The same as scikit-learn's
    `roc_auc_score(labels == c, scores[:, c])`, in a fraction of its time.

    Args:
      scores: float [N, C]; column c ranks the images for class c. Ties count half.
      labels: int [N].
    """
    areas, once = np.full(scores.shape[1], np.nan), np.ones((len(labels), 1))
    for c, ranked in rank(scores, labels).items():
        [areas[c]] = weighted_auc(ranked, once)
    return areas


def rank(scores: np.ndarray, labels: np.ndarray) -> dict[int, tuple]:
    """For `weighted_auc`, of each class: the order of the scores, its images, places.

    A place is the number of images with a lower score, and with no higher one.
    """
    found = {}
    for c in np.unique(labels).tolist():
        column, own = scores[:, c], labels == c
        if not own.all():
            order = np.argsort(column)
            below, not_above = (
                np.searchsorted(column[order], column[own], side=side)
                for side in ("left", "right")
            )
            found[c] = order, np.flatnonzero(own), below, not_above
    return found


def weighted_auc(ranked: tuple, counts: np.ndarray) -> np.ndarray:
    """The area [b] where each image is there `counts` [N, b] times."""
    order, own, below, not_above = ranked
    total = np.zeros((len(order) + 1, counts.shape[1]), counts.dtype)
    np.cumsum(counts[order], axis=0, out=total[1:])
    # Pairs in which the image of the class is the higher, twice; ties are halves.
    lower = total[below] + total[not_above]
    pairs = (counts[own] * lower).sum(axis=0, dtype=np.float64)
    count = counts[own].sum(axis=0, dtype=np.float64)
    # Among its own images that is half of all pairs, whatever their scores.
    with np.errstate(invalid="ignore"):  # a class of which no image was drawn
        return (pairs - count**2) / 2 / (count * (total[-1] - count))


def calibration_bins(confidence: np.ndarray) -> np.ndarray:
    """The bin of each confidence [N]: open below, closed above, so that 1 has one."""
    return np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


def _calibration(confidence: np.ndarray, right: np.ndarray) -> dict[str, list]:
    which = calibration_bins(confidence)
    count = np.bincount(which, minlength=BINS)
    filled = np.where(count, count, np.nan)
    means = {"confidence": confidence, "accuracy": right}
    return {
        "count": count.tolist(),
        **{n: _listed(np.bincount(which, v, BINS) / filled) for n, v in means.items()},
    }


def _listed(values: np.ndarray) -> list[float | None]:
    """For JSON, which has no nan."""
    return [None if np.isnan(value) else float(value) for value in values]
