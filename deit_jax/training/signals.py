"""Stops a run in good order when a signal asks for it."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

# From a scheduler, the keyboard, an SSH session that closes, and Slurm's `--signal`.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(Exception):
    """A signal has stopped a run; commands print this and exit with `STOPPED`."""


class Stop:
    """The request to stop: the name of the first `signal`, or None."""

    signal: str | None = None

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

    What the process ignores stays ignored, such as SIGHUP under nohup. Outside of the
    main thread, where Python cannot handle signals, nothing changes.
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
