"""Stops a run in good order when a signal asks for it.

SIGTERM comes from a scheduler, SIGINT from the keyboard, SIGHUP from an SSH session
that closes, SIGUSR1 and SIGUSR2 from Slurm (`--signal`) before the time limit.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(Exception):
    """A signal has stopped a run; the same command resumes it.

    Commands print its message and exit with `command.STOPPED`.
    """


class Stop:
    """The request to stop, if there is one.

    Attributes:
      signal: The name of the first signal, or None.
    """

    def __init__(self):
        self.signal: str | None = None

    def check(self) -> None:
        """Raises `Stopped` if a signal has come."""
        if self.signal:
            raise Stopped(f"stopped by {self.signal}")

    def _receive(self, number, frame) -> None:
        self.signal = signal.Signals(number).name
        # The system's handler ends the process also where Python cannot run, such as
        # in a compilation.
        for each in SIGNALS:
            if signal.getsignal(each) == self._receive:
                signal.signal(each, signal.SIG_DFL)
        # print may have been interrupted while it held its buffer.
        os.write(
            2,
            f"\n{self.signal}: the run saves its state and stops; a second signal ends "
            "it at once\n".encode(),
        )


@contextlib.contextmanager
def caught() -> Iterator[Stop]:
    """Turns the first of `SIGNALS` into a request, which the caller looks for.

    A signal that the process ignores stays ignored, such as SIGINT in the background of
    a script or SIGHUP under nohup. Outside of the main thread, where Python cannot
    handle signals, nothing changes.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {
        number: signal.signal(number, stop._receive)
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Lets SIGINT end the process, as SIGTERM does.

    A KeyboardInterrupt during the import of an extension would become an ImportError.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
