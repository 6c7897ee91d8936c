"""Images named by their paths: what prediction and attention maps look at."""

import collections
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from deit_jax.data.sources.decode import open_rgb
from deit_jax.data.sources.folder import (
    find_image_files,
    no_images,
    read_image_file,
)
from deit_jax.errors import InputError


def find(paths: Sequence[str | os.PathLike]) -> tuple[list[str], dict[str, int]]:
    """The images at `paths`, sorted, each once; how many were passed over, by ending.

    Args:
      paths: Files, taken whatever their names, and folders, in which the images
        (`folder.ENDINGS`) are found at any depth.

    Raises:
      InputError: A path does not exist, or a folder holds no image.
    """
    found, passed_over = set(), collections.Counter()
    for path in map(Path, paths):
        if path.is_dir():
            here = [
                os.path.normpath(path / relative)
                for relative, _ in find_image_files(path, "", passed_over)
            ]
            if not here:
                raise no_images(path, passed_over)
            found.update(here)
        elif path.exists():
            found.add(str(path))
        else:
            raise InputError(f"{path} does not exist. Expected an image or a folder.")
    return sorted(found), dict(passed_over)


def read(path: str) -> Image.Image:
    """The image in the file `path`: RGB and upright.

    Raises:
      InputError: It cannot be read or decoded; the message names it.
    """
    return open_rgb(read_image_file(path), path)
