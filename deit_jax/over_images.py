"""What predict, attention and embed do alike: they go over image files."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deit_jax.errors import InputError


def find(paths: Sequence[str]) -> list[str]:
    """The images at `paths`, sorted; says on stderr what was passed over.

    Raises:
      InputError: None were given; see `image_files.find`.
    """
    if not paths:
        raise InputError("give images or folders of images")
    from deit_jax.data.sources import image_files

    found, passed_over = image_files.find(paths)
    if passed_over:
        counted = ", ".join(f"{n:,} {ending}" for ending, n in passed_over.items())
        print(f"files passed over, no images: {counted}", file=sys.stderr)
    return found


def each(
    trained, compute: Callable, found: Sequence[str], *, batch_size: int
) -> Iterator[tuple[str, np.ndarray | InputError, Any]]:
    """Yields every file with what `TrainedModel.each` gives.

    Says on stderr what the model assumes and what cannot be read, at the end how much.
    """
    for note in trained.notes:
        print(f"note: {note}", file=sys.stderr)
    unreadable = 0
    results = trained.each(compute, found, batch_size=batch_size)
    for file, (view, row) in zip(found, results, strict=True):
        if isinstance(view, InputError):
            unreadable += 1
            print(f"error: {view}", file=sys.stderr)
        yield file, view, row
    if unreadable:
        print(f"{unreadable:,} of {len(found):,} files unreadable", file=sys.stderr)


def check_npz(path: str, flag: str) -> None:
    """Refuses what cannot become an .npz file, before anything is computed."""
    if not path.endswith(".npz"):
        raise InputError(f"{flag}={path}: expected a name ending in .npz.")
    if not Path(path).parent.is_dir():
        raise InputError(f"{flag}={path}: its folder does not exist.")
