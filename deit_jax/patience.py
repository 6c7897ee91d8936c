"""Says how long work goes on that takes minutes: a bar, or a line now and then."""

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

SECONDS = 30  # between two lines where there is no terminal


class Patience:
    """The progress of `what`: `done` of `total` units so far."""

    def __init__(self, what: str, total: int, done: int = 0):
        self._what, self._total, self._done, self._first = what, total, done, done
        self._began = self._said = time.monotonic()
        hidden = not sys.stderr.isatty()
        self._bar = tqdm(
            desc=what, total=total, initial=done, leave=False, disable=hidden
        )

    def over(self, iterable: Iterable) -> Iterator:
        """Yields from `iterable`, where each item is one unit."""
        for item in iterable:
            yield item
            self.update(1)
        self.close()

    def update(self, units: int) -> None:
        self._done += units
        self._bar.update(units)
        now = time.monotonic()
        if self._bar.disable and now - self._said > SECONDS:
            self._said = now
            rate = (self._done - self._first) / (now - self._began)
            minutes = (self._total - self._done) / rate / 60
            print(
                f"{self._what}: {self._done:,} of {self._total:,}, {minutes:.1f} "
                "minutes left",
                flush=True,
            )

    def close(self) -> None:
        self._bar.close()
