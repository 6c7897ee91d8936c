"""Clocks and meters that do not know which framework they time."""

import os
import resource
import time
from collections.abc import Callable


def rounds(
    function: Callable[[], object],
    wait: Callable[[object], object],
    *,
    count: int,
    steps: int,
) -> list[float]:
    """Seconds of a call of `function`: the mean over each of `count` rounds.

    Args:
      function: May return before its result is there.
      wait: Called with the last result of a round, returns when it is.
      steps: Calls a round; they may overlap.
    """
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        for _ in range(steps):
            result = function()
        wait(result)
        seconds.append((time.perf_counter() - began) / steps)
    return seconds


def peak_resident_bytes() -> int:
    """The most memory that this process has had, Linux's ru_maxrss."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0))
