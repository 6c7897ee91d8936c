"""When a run logs, evaluates and saves, and which steps a device is given at once."""

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Cadence:
    """The timing of a run, in steps, as a function of the number that are done."""

    total_steps: int
    dispatch: int  # that a device is given at once, where the host has nothing to do
    log: int
    evaluate: int  # 0: at the end only
    save: int  # 0: at the end only
    verify: int = 0  # between two looks at the cache; 0: none

    def logs(self, done: int) -> bool:
        return self._is_due(done, self.log)

    def evaluates(self, done: int) -> bool:
        return self._is_due(done, self.evaluate)

    def saves(self, done: int) -> bool:
        return self._is_due(done, self.save)

    def verifies(self, done: int) -> bool:
        return self.verify > 0 and done % self.verify == 0

    def _is_due(self, done: int, period: int) -> bool:
        return done == self.total_steps or (period > 0 and done % period == 0)

    def ends(self, start: int) -> Iterator[int]:
        """Yields how many steps are done after each dispatch from step `start` on.

        A dispatch has `dispatch` steps, or one where something is due earlier: two
        programs to compile, not one for every number of steps. A run that resumes at
        one of these ends has the others as well.
        """
        periods = [p for p in (self.log, self.evaluate, self.save, self.verify) if p]
        done = start
        while done < self.total_steps:
            before = max(done // period * period for period in periods)
            due = min((done // period + 1) * period for period in periods)
            due = min(due, self.total_steps)
            whole = (done - before) % self.dispatch == 0 and done + self.dispatch <= due
            done += self.dispatch if whole else 1
            yield done
