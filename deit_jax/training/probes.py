"""How good frozen features are: classifiers that learn from them alone."""

import numpy as np

from deit_jax.errors import InputError

LARGEST = 4 * 2**30  # bytes of features and of what a linear probe computes
ITERATIONS = 1000


def classifiers(*, knn: int | None, linear: bool) -> dict:
    """scikit-learn's classifiers by name: `knn`, and `linear`.

    `knn` is the vote of so many nearest by the cosine of the features, as Caron et al.
    2021 (arXiv 2104.14294) measure them, but each vote counts the same, and of classes
    with as many votes the first is taken. `linear` is logistic regression on
    standardised features with an L2 penalty of C=1: nothing is drawn at random, nor
    chosen by the test images.
    """
    found = {}
    if knn is not None:
        from sklearn.neighbors import KNeighborsClassifier

        found["knn"] = KNeighborsClassifier(knn, metric="cosine", algorithm="brute")
    if linear:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        regression = LogisticRegression(max_iter=ITERATIONS)
        found["linear"] = make_pipeline(StandardScaler(), regression)
    return found


def check(found: dict, labels: np.ndarray, *, numbers: int, more: int) -> None:
    """Refuses training images that are too few, or too many for the memory.

    Args:
      found: The `classifiers`.
      labels: int [N], of the training images.
      numbers: Of all features of an image, over all tokens and sets of parameters.
      more: Numbers of an image that a classifier computes.

    Raises:
      InputError: Where there are too many, it says which part of them fits.
    """
    images = len(labels)
    if "knn" in found and found["knn"].n_neighbors > images:
        k = found["knn"].n_neighbors
        raise InputError(f"--knn={k}: there are {images:,} training images only.")
    if "linear" in found and len(np.unique(labels)) < 2:
        raise InputError("--linear_probe: the training images are all of one class.")
    need = 4 * images * (2 * numbers + more)  # twice: in parts as they come, and joined
    if need > LARGEST:
        percent = max(int(100 * LARGEST / need), 1)
        raise InputError(
            f"the features of {images:,} training images would take about "
            f"{need / 2**30:.1f} GiB, more than {LARGEST / 2**30:.0f}. Take a part of "
            f"them, e.g. --train_split='train[:{percent}%]', or one set of parameters, "
            "--weights=raw."
        )
