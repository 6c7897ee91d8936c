"""How good frozen features are: classifiers that learn from them alone."""

import numpy as np

from deit_jax.errors import InputError

LARGEST = 4 * 2**30  # bytes of features and of what a linear probe computes
ITERATIONS = 1000


def check(
    labels: np.ndarray,
    classes: int,
    *,
    numbers: int,
    width: int,
    k: int | None,
    linear: bool,
) -> None:
    """Refuses training images that are too few, or too many for the memory.

    Args:
      labels: int [N], of the training images.
      classes: Their number.
      numbers: Of all features of an image, over all tokens and sets of parameters.
      width: Of the features that one classifier learns from.
      k: Of `nearest`; None for none.
      linear: Whether there is a linear probe, which holds three arrays of its own.

    Raises:
      InputError: Where there are too many, it says which part of them fits.
    """
    images = len(labels)
    if k is not None and k > images:
        raise InputError(f"--knn={k}: there are {images:,} training images only.")
    if linear and len(np.unique(labels)) < 2:
        raise InputError("--linear_probe: the training images are all of one class.")
    # Twice: in parts as they come, and joined.
    need = 4 * images * (2 * numbers + linear * (width + 2 * classes))
    if need > LARGEST:
        percent = max(int(100 * LARGEST / need), 1)
        raise InputError(
            f"the features of {images:,} training images would take about "
            f"{need / 2**30:.1f} GiB, more than {LARGEST / 2**30:.0f}. Take a part of "
            f"them, e.g. --train_split='train[:{percent}%]', or one set of parameters, "
            "--weights=raw."
        )


def nearest(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    k: int,
) -> float:
    """The accuracy of the vote of the k nearest, by the cosine of the features.

    As Caron et al. 2021 (arXiv 2104.14294) measure features, but each vote counts the
    same, and of classes with as many votes the first is taken.

    Args:
      train, test: Features, float32 [N, D] and [M, D].
      train_labels, test_labels: int [N] and [M].
    """
    from sklearn.neighbors import KNeighborsClassifier

    votes = KNeighborsClassifier(k, metric="cosine", algorithm="brute")
    return float(votes.fit(train, train_labels).score(test, test_labels))


def linear(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
) -> float:
    """The accuracy of logistic regression on standardised features; as `nearest`.

    scikit-learn's, with its L2 penalty of C=1: nothing is drawn at random, nor chosen
    by the test images.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
    return float(probe.fit(train, train_labels).score(test, test_labels))
