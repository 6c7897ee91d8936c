"""Small files that are whole at any moment, and disks that are full."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from deit_jax.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk, or of a user's share of it


def replace_file(path: str | os.PathLike, text: str) -> None:
    """Writes `text` to `path`: a kill leaves the old file or the new, never a half."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextlib.contextmanager
def explain_full_disk(directory: str | os.PathLike) -> Iterator[None]:
    """Turns the errors of a full disk, of whichever library, into one message.

    Args:
      directory: Where the caller writes.

    Raises:
      InputError: No space was left, or a quota was reached.
    """
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
    """Whether `error`, or one that it came from, is that of a full disk or quota."""
    texts = [os.strerror(number) for number in FULL]
    seen = []
    while error is not None and error not in seen:
        if getattr(error, "errno", None) in FULL:
            return True
        # TensorFlow and tensorstore have it in their texts only.
        if any(text in str(error) for text in texts):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False
