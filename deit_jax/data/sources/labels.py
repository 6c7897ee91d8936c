"""Labels as people write them, numbers or names, as numbers in 0 .. C - 1.

The classes are those of the training images: 0 .. the largest number, or the names in
alphabetical order.
"""

from collections.abc import Callable, Sequence

import numpy as np

from deit_jax.data.sources.layout import plain_name
from deit_jax.errors import InputError, listed

# Columns and fields that hold the label where nothing else says so, the first counts.
USUAL = ("label", "labels", "fine_label", "class", "class_name", "cls", "target")
# More names than this, and more than half as many as images, are no classes: captions.
MANY_NAMES = 100


def class_names(labels: np.ndarray, name: str) -> tuple[str, ...]:
    """The classes of `labels`, int [N] or str (objects) [N], of the data set `name`."""
    if labels.dtype.kind == "i":
        found = tuple(map(str, range(labels.max(initial=-1) + 1)))
    else:
        found = tuple(sorted({plain_name(label) for label in np.unique(labels)}))
        if len(found) > max(MANY_NAMES, len(labels) / 2):
            raise InputError(
                f"{name} has {len(found):,} different labels on {len(labels):,} "
                f"images: {listed(found)}. They look like texts; name other labels: "
                "...,label=NAME."
            )
    if len(found) < 2:
        raise InputError(
            f"{name} has {len(found)} classes ({listed(found)}); at least two are "
            "needed."
        )
    return found


def numbers(
    labels: np.ndarray, classes: Sequence[str], where: Callable[[int], str]
) -> np.ndarray:
    """int32 [N], in 0 .. C - 1.

    Args:
      labels: int [N], or names, str (objects) [N].
      where: What an error message calls an image.
    """
    if labels.dtype.kind == "i":
        result, shown = labels, f"0 .. {len(classes) - 1}"
    else:
        known = {name: number for number, name in enumerate(classes)}
        names, inverse = np.unique(labels, return_inverse=True)
        result = np.array([known.get(plain_name(n), -1) for n in names])[inverse]
        shown = listed(classes)
    strange = np.flatnonzero((result < 0) | (result >= len(classes)))
    if strange.size:
        raise InputError(
            f"{where(int(strange[0]))} has label {labels[strange[0]]}, expected "
            f"{shown}, the classes of the training images ({strange.size:,} of "
            f"{len(labels):,} images have such labels). Choose another split, or other "
            "labels."
        )
    return result.astype(np.int32)
