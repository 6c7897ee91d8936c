"""Where what was made of a user's files is kept: their folder is never written to."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from deit_jax.errors import InputError

FORMAT = 1


def path(data_dir: str | None, files: Sequence[str], *about: str, ending: str) -> Path:
    """The file that is kept of `files` as they are: another size or date is another.

    It lies in `data_dir`, else in `$XDG_CACHE_HOME/deit_jax/images`, `~/.cache` by
    default.

    Args:
      about: What else it depends on.
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
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    directory = Path(data_dir or f"{cache}/deit_jax/images").expanduser()
    return directory / f"{key[:32]}{ending}"


@contextlib.contextmanager
def writing(path: Path, name: str) -> Iterator[Path]:
    """A file to write of the data set `name`, which becomes `path` once it is whole."""
    partial = path.with_suffix(f".{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise InputError(
            f"what is made of {name} cannot be written into {path.parent}: "
            f"{error.strerror or error}. Give another folder: "
            "--config.dataset.data_dir=DIR."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
