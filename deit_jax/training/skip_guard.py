"""Counts the steps that were skipped, and stops a run that skips too many in a row."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import optax

from deit_jax.errors import listed


@dataclasses.dataclass(eq=False)
class SkipGuard:
    """Watches for steps whose loss or gradient is not finite.

    Attributes:
      limit: Skipped steps in a row that are too many.
      schedule: Step (from 0) -> learning rate, for messages.
      parameters: Names, in the order of `grad_norms`.
      consecutive: Skipped steps in a row so far.
    """

    limit: int
    schedule: optax.Schedule
    parameters: Sequence[str]
    consecutive: int = 0
    _last_finite: tuple[int, np.ndarray] | None = None

    def check(self, done: int, row: dict, norms: np.ndarray, skipped: bool) -> str:
        """Counts step `done`; returns a line for the terminal, mostly empty.

        Args:
          row: The step's metrics, with `loss` and `grad_norm`.
          norms: The norm of each parameter's gradient.

        Raises:
          FloatingPointError: This was one skipped step too many.
        """
        if not skipped:
            self.consecutive = 0
            self._last_finite = (done, norms)
            return ""
        self.consecutive += 1
        name = "grad_norm" if math.isfinite(row["loss"]) else "loss"
        what = (
            f"{name} is {row[name]} at step {done} (learning rate "
            f"{float(self.schedule(done - 1)):.3g})"
        )
        if self.consecutive >= self.limit:
            raise FloatingPointError(
                f"{what}, the last of {self.consecutive} such steps in a row. "
                + self._blame(norms)
            )
        return f"{what}: skipped" if self.consecutive == 1 else ""

    def _blame(self, norms: np.ndarray) -> str:
        """The parameters whose gradients are not finite, and the largest before."""
        broken = [self.parameters[n] for n in np.flatnonzero(~np.isfinite(norms))]
        if not broken:  # finite one by one, but not the sum of their squares
            return f"The largest gradient is {self._largest(norms)}."
        names = listed(broken) if len(broken) < len(norms) else "all"
        sentence = f"Not finite: {len(broken)} of {len(norms)} gradients ({names})."
        if self._last_finite is not None:
            step, norms = self._last_finite
            sentence += f" The largest of step {step} was {self._largest(norms)}."
        return sentence

    def _largest(self, norms: np.ndarray) -> str:
        largest = np.argmax(norms)
        return f"that of {self.parameters[largest]}, {norms[largest]:.3g}"
