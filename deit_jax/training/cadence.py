"""When a run logs, evaluates and saves, and which steps a device is given at once."""

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Cadence:
    """The timing of a run, as a function of the number of steps that are done.

    Attributes:
      total_steps: Steps of the whole run.
      dispatch: Steps that a device is given at once where the host has nothing to do
        between them.
      log: Steps between two log lines.
      evaluate: Steps between two evaluations; 0 evaluates at the end only.
      save: Steps between two checkpoints; 0 saves at the end only.
      verify: Steps between two looks at whether the teacher's cache is right; 0: none.
    """

    total_steps: int
    dispatch: int
    log: int
    evaluate: int
    save: int
    verify: int = 0

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
        """Yields the number of steps that are done after each dispatch.

        A dispatch has `dispatch` steps, or one where something is due earlier: two
        programs to compile, not one for every number of steps. A run that resumes at
        one of these ends has the others as well.

        Args:
          start: Steps that are done already.
        """
        periods = (self.log, self.evaluate, self.save, self.verify)
        periods = [period for period in periods if period]
        done = start
        while done < self.total_steps:
            before = max(done // period * period for period in periods)
            due = min((done // period + 1) * period for period in periods)
            due = min(due, self.total_steps)
            whole = (done - before) % self.dispatch == 0 and done + self.dispatch <= due
            done += self.dispatch if whole else 1
            yield done
