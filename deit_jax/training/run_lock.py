"""One process at a time in a run directory."""

import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from deit_jax.errors import InputError
from deit_jax.files import FULL

LOCK = "run.lock"


@contextlib.contextmanager
def hold(workdir: str | os.PathLike) -> Iterator[None]:
    """Makes the run directory, and keeps other processes out of it.

    The lock is the kernel's and ends with the process. The file that stays names the
    process to others. A directory that was made goes again where it stays empty.

    Raises:
      InputError: Another process has it, or the directory cannot be written.
    """
    workdir = Path(workdir)
    made = not workdir.exists()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / LOCK, "a+")  # noqa: SIM115 - it is the lock
    except OSError as error:
        if error.errno in FULL:
            raise
        raise InputError(f"the run directory cannot be written: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InputError(
                f"{workdir} is in use by {holder}. Two runs would overwrite each "
                "other: wait for that one or stop it, or give another --workdir."
            ) from error
        except OSError as error:  # a file system without locks
            print(
                f"{workdir} cannot be locked ({error.strerror}): start no second run "
                "in it",
                file=sys.stderr,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            if made and os.listdir(workdir) == [LOCK]:
                (workdir / LOCK).unlink()
                workdir.rmdir()
