"""Stopping a run in good order: SIGTERM from a scheduler, SIGINT from the keyboard."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A signal has ended a run that the same command goes on with.

    Commands print its message and exit with `command.STOPPED`.
    """


class Stop:
    """What `caught` has caught.

    Attributes:
      signal: The name of the first signal; None: none has come.
    """

    def __init__(self):
        self.signal: str | None = None

    def check(self) -> None:
        """Raises `Stopped` when a signal has come."""
        if self.signal:
            raise Stopped(f"stopped by {self.signal}")

    def _receive(self, number, frame) -> None:
        self.signal = signal.Signals(number).name
        # By the system: it ends the process also where Python cannot run, as in a
        # compilation.
        for each in SIGNALS:
            if signal.getsignal(each) == self._receive:
                signal.signal(each, signal.SIG_DFL)
        # Not by print: it may have been interrupted while it held its buffer.
        os.write(
            2,
            f"\n{self.signal}: the run saves its state and stops; a second signal ends "
            "it at once\n".encode(),
        )


@contextlib.contextmanager
def caught() -> Iterator[Stop]:
    """Makes the first SIGTERM or SIGINT a request, which the caller looks for.

    A signal that the process ignores, as one in the background of a script does SIGINT,
    stays ignored. Outside of the main thread, where Python cannot handle signals, it
    changes nothing.
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

    A KeyboardInterrupt within the import of an extension would become an ImportError.
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
