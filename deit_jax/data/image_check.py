"""Decodes images before hours are spent, and says which cannot be read."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from deit_jax.errors import InputError
from deit_jax.patience import Patience

CHUNK = 64  # images between two looks at the clock
SHOWN = 20  # damaged images in a message
UNEQUAL = 10  # times that the largest class may have the images of the smallest


def check_images(source, *, seconds: float | None = None) -> int:
    """Decodes the images of `source`, all or as many as `seconds` allow.

    Args:
      source: A source (`deit_jax.data.sources`) of encoded images.

    Returns:
      The number of images that were decoded.

    Raises:
      InputError: Lists the images that cannot be read.
    """

    def damage(index: int) -> str | None:
        try:
            list(source.pil_images([index]))
        except InputError as error:
            return str(error)
        return None

    damaged, began = [], time.monotonic()
    progress = Patience(f"{source.split} images decoded", len(source))
    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases Python's lock
        for first in range(0, len(source), CHUNK):
            if seconds is not None and time.monotonic() - began > seconds:
                break
            block = range(first, min(first + CHUNK, len(source)))
            damaged += filter(None, pool.map(damage, block))
            done += len(block)
            progress.update(len(block))
    progress.close()
    if damaged:
        more = f"\n  ... and {len(damaged) - SHOWN} more" * (len(damaged) > SHOWN)
        raise InputError(
            f"{len(damaged):,} of {done:,} {source.split} images cannot be read:\n  "
            + "\n  ".join(damaged[:SHOWN])
            + more
        )
    return done


def describe_classes(source) -> str:
    """Images of each class in a line, and a word where they are very unequal."""
    counts = np.bincount(source.labels, minlength=source.num_classes)
    order = np.argsort(-counts, kind="stable")
    shown = [f"{source.class_names[c]} {counts[c]:,}" for c in order]
    if len(shown) > SHOWN:
        shown = [*shown[: SHOWN // 2], "...", *shown[-SHOWN // 2 :]]
    line = f"{source.split} images of each class: {', '.join(shown)}"
    if counts.max() > UNEQUAL * max(counts.min(), 1):
        line += (
            "\nthe classes are very unequal: the rare ones will hardly be learned, and "
            "top-1 says little of them (see F1 and recall)"
        )
    return line
