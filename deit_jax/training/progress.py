"""Averages what the steps of a run report, and shows it on the terminal."""

import collections
import math
import sys
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import optax
from tqdm import tqdm

from deit_jax.data.plan import BatchPlan
from deit_jax.training.cadence import Cadence
from deit_jax.training.skip_guard import SkipGuard

# Dispatches that run ahead of the host: enough to hide it, few enough to bound the
# memory.
IN_FLIGHT = 2


class Span:
    """Steps since the last line, with their numbers and metrics, and how fast they are.

    Skipped steps have no metrics. Those of an earlier start are not timed.
    """

    def __init__(self, rows: Sequence[tuple[int, dict]] = ()):
        self.rows, self.since = [tuple(row) for row in rows], time.monotonic()
        self._untimed = len(rows)

    def means(self, batch_size: int, schedule: optax.Schedule) -> dict[str, float]:
        """Means over the steps, and images per second."""
        seconds = max(time.monotonic() - self.since, 1e-9)
        finite = [row for _, row in self.rows if row]
        timed = len(self.rows) - self._untimed
        return {
            f"train/{name}": float(np.mean([row[name] for row in finite]))
            for name in (finite[0] if finite else ())
        } | {
            "train/skipped": len(self.rows) - len(finite),
            "train/learning_rate": float(schedule(self.rows[-1][0] - 1)),
            "train/images_per_sec": timed * batch_size / seconds,
        }


class Progress:
    """Metrics of finished steps, and the progress on the terminal.

    The metrics of a dispatch are fetched when `IN_FLIGHT` later ones are under way, so
    that the device never waits for the host. A skipped step, whose loss or gradient was
    not finite, counts in `train/skipped` and in no mean.

    Args:
      start: Steps that are done already.
      cadence, plan: The run's.
      schedule: Step (from 0) -> learning rate.
      max_consecutive_skips, parameters: As for `SkipGuard`.
      resume_state: What `resume_state` returned when step `start` was saved.
      rates: Images per second of the intervals of earlier starts.

    Raises:
      FloatingPointError: Any method that fetches metrics finds that
        `max_consecutive_skips` is reached.
    """

    def __init__(
        self,
        start: int,
        cadence: Cadence,
        plan: BatchPlan,
        schedule: optax.Schedule,
        *,
        max_consecutive_skips: int,
        parameters: Sequence[str],
        resume_state: Mapping | None = None,
        rates: Sequence[float] = (),
    ):
        before = {"rows": [], "seconds": 0.0, "consecutive_skips": 0}
        before |= resume_state or {}
        self._plan, self._schedule, self._total = plan, schedule, cadence.total_steps
        self._logs = cadence.logs
        # A run that is short or logs seldom has ten lines on the terminal all the same.
        tenth = max(math.ceil(self._total / 10), cadence.dispatch)
        self._shown_every = min(cadence.log, tenth)
        self._guard = SkipGuard(
            max_consecutive_skips, schedule, parameters, before["consecutive_skips"]
        )
        self._pending = collections.deque()
        self._interval, self._line = Span(before["rows"]), Span(before["rows"])
        self._rates = list(rates)
        self._began = time.monotonic() - before["seconds"]
        self._bar = tqdm(
            total=self._total,
            initial=start,
            unit=" images",
            unit_scale=plan.batch_size,
            dynamic_ncols=True,
            disable=jax.process_index() > 0 or not sys.stderr.isatty(),
        )

    @property
    def consecutive_skips(self) -> int:
        """Skipped steps in a row, up to the last that was fetched."""
        return self._guard.consecutive

    @property
    def images_per_sec(self) -> float | None:
        """Median over the logged intervals; the first, which compiles, is left out."""
        rates = self._rates[1:] or self._rates
        return round(float(np.median(rates)), 1) if rates else None

    @property
    def seconds(self) -> float:
        """Seconds of the run so far, without steps that no checkpoint kept."""
        return time.monotonic() - self._began

    def resume_state(self) -> dict:
        """What a run that resumes here has to know, for JSON.

        With the metrics of the interval under way its means are those of a run that was
        never stopped.
        """
        self.drain()
        return {
            "rows": list(self._interval.rows),
            "seconds": self.seconds,
            "consecutive_skips": self.consecutive_skips,
        }

    def dispatched(self, done: int, metrics: dict) -> None:
        """Takes metrics of step `done`, scalars, or of the k steps up to it, [k]."""
        self._pending.append((done, metrics))
        while len(self._pending) > IN_FLIGHT:
            self._fetch()
        self._bar.update(np.size(metrics["skipped"]))

    def drain(self) -> None:
        while self._pending:
            self._fetch()

    def interval(self) -> dict[str, float]:
        """Returns the means over the steps since the last call; prints a line."""
        self.drain()
        values = self._interval.means(self._plan.batch_size, self._schedule)
        self._print_line()
        self._rates.append(values["train/images_per_sec"])
        self._interval = Span()
        return values

    def _print_line(self) -> None:
        """Prints the means of the steps since the line before."""
        steps = self._line.rows
        values = self._line.means(self._plan.batch_size, self._schedule)
        done, self._line = steps[-1][0], Span()
        rate, skipped = values["train/images_per_sec"], values["train/skipped"]
        left = (self._total - done) * self._plan.batch_size / rate
        parts = [f"step {done}/{self._total}"]
        parts.append(f"epoch {done / self._plan.steps_per_epoch:.1f}")
        names = ["loss"]
        if "train/loss_distill" in values:
            names += ["loss_ce", "loss_bce", "loss_distill", "loss_features"]
        for name in names:
            if (value := values.get(f"train/{name}")) is not None:
                parts.append(f"{name.removeprefix('loss_')} {value:.4f}")
        if "train/top1" in values:
            parts.append(f"top-1 {values['train/top1']:.3f}")
        if skipped:
            parts.append(f"skipped {skipped} of {len(steps)}")
        parts.append(f"{rate:,.0f} images/s")
        self._show("  ".join(parts), f"  ETA {clock(left)}")

    def pause(self) -> None:
        """An evaluation begins: its time is not the training's."""
        self.drain()
        self._paused = time.monotonic()

    def resume(self, headline: str) -> None:
        paused = time.monotonic() - self._paused
        self._interval.since += paused
        self._line.since += paused
        self._show(headline, "")

    def close(self) -> None:
        self._bar.close()

    def _fetch(self) -> None:
        done, metrics = self._pending.popleft()
        metrics = jax.device_get(metrics)
        if metrics["skipped"].ndim == 0:
            metrics = {name: values[None] for name, values in metrics.items()}
        number = len(metrics["skipped"])
        for place in range(number):
            one = {name: values[place] for name, values in metrics.items()}
            self._take(done - number + 1 + place, one)

    def _take(self, done: int, metrics: dict[str, np.ndarray]) -> None:
        """Keeps the metrics of step `done`; an empty row stands for a skipped step."""
        norms = metrics.pop("grad_norms")
        row = {name: float(value) for name, value in metrics.items()}
        skipped = bool(row.pop("skipped"))
        for span in (self._interval, self._line):
            span.rows.append((done, {} if skipped else row))
        if line := self._guard.check(done, row, norms, skipped):
            self._show(line, "")
        if done % self._shown_every == 0 and not self._logs(done):
            self._print_line()

    def _show(self, line: str, rest: str) -> None:
        # The bar has its own ETA; lines in a log file need one.
        if self._bar.disable:
            print(line + rest, flush=True)
        else:
            self._bar.write(line)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
