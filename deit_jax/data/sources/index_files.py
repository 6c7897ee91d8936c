"""Where what was made of a user's files is kept: their folder is never written to."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from deit_jax.errors import InputError

FORMAT = 1


def directory(data_dir: str | None) -> Path:
    """`data_dir`, else `$XDG_CACHE_HOME/deit_jax/images`, `~/.cache` by default."""
    if data_dir:
        return Path(data_dir).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "deit_jax" / "images"


def path(data_dir: str | None, files: Sequence[str], *about: str, ending: str) -> Path:
    """The file that is kept of `files` as they are: another size or date is another.

    Args:
      about: What else it depends on.

    Raises:
      InputError: A file is not there.
    """
    real = [os.path.realpath(file) for file in files]
    try:
        states = [os.stat(file) for file in real]
    except OSError as error:
        raise InputError(
            f"{error.filename} cannot be read: {error.strerror}."
        ) from error
    facts = [[f, s.st_size, s.st_mtime_ns] for f, s in zip(real, states, strict=True)]
    key = hashlib.sha256(json.dumps([FORMAT, facts, about]).encode()).hexdigest()
    return directory(data_dir) / f"{key[:32]}{ending}"
