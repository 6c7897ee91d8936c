"""Small files: written whole, read with a check, and disks that are full."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from deit_jax.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk, or of a user's share of it
NULL = type(None)


def replace_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file: a kill leaves the old one or the new, never a half."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextlib.contextmanager
def writing(path: str | os.PathLike, flag: str = "--out") -> Iterator[None]:
    """Turns an error of the system, while `path` is written, into a message."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{flag}={path} cannot be written: {error.strerror or error}. Give another "
            f"{flag}."
        ) from error


def check_regular(path: str | os.PathLike) -> None:
    """Raises ValueError for a directory, a pipe (which would never end) or a device."""
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError("it is no regular file")


def read_json(path: str | os.PathLike):
    """The content of a JSON file in UTF-8; raises OSError or ValueError."""
    check_regular(path)
    return json.loads(Path(path).read_text(encoding="utf-8-sig"))


def check(value, kind, name: str = "it") -> None:
    """Raises ValueError, naming the place, for a JSON value of another kind.

    Args:
      kind: A type or a tuple of types, where `float` takes whole numbers too and a
        bool is no number; `[kind]`, a list; `{field: kind}`, an object with these
        fields and maybe others; `{...: kind}`, an object with any fields of one kind.
      name: What the message calls the value.
    """
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{name} is no object")
        fields = dict.fromkeys(value, kind[...]) if ... in kind else kind
        for field, expected in fields.items():
            if field not in value:
                raise ValueError(f"{name} has no {field}")
            check(value[field], expected, f"{name}.{field}".removeprefix("it."))
    elif isinstance(kind, list):
        if not isinstance(value, list):
            raise ValueError(f"{name} is no list")
        for number, item in enumerate(value):
            check(item, kind[0], f"{name}[{number}]")
    else:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if type(value) not in kinds and not (type(value) is int and float in kinds):
            expected = " or ".join("null" if k is NULL else k.__name__ for k in kinds)
            raise ValueError(f"{name} is {type(value).__name__}, expected {expected}")


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def explain_full_disk(directory: str | os.PathLike) -> Iterator[None]:
    """Turns the errors of a full disk, from whichever library, into one message."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        free = shutil.disk_usage(directory).free
        raise InputError(
            f"no space is left on the disk of {directory} ({free:,} bytes are free "
            "now). What is complete there is intact. Make room, and start the same "
            "command again: it goes on from the newest checkpoint."
        ) from error


def is_full_disk(error: BaseException) -> bool:
    """Whether a full disk or quota caused `error`, directly or through others."""
    # TensorFlow and tensorstore have it in their texts only.
    texts = [os.strerror(number) for number in FULL]
    seen = []
    while error is not None and error not in seen:
        if getattr(error, "errno", None) in FULL:
            return True
        if any(text in str(error) for text in texts):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False
