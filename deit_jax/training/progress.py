"""What the steps of a run report: checked, averaged, and shown on the terminal."""

import collections
import math
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from tqdm import tqdm

# Dispatches that run ahead of the host: enough to hide it, few enough to bound the
# memory.
IN_FLIGHT = 2


class Progress:
    """Metrics of finished steps, and the progress on the terminal.

    The metrics of a dispatch are fetched when `IN_FLIGHT` later ones are under way, so
    that the device never waits for the host. A step that was skipped, because its loss
    or gradient was not finite, counts in `train/skipped` and in no mean.

    Args:
      start: Steps that are done already.
      total: Steps of the whole run.
      plan: Gives the steps of an epoch.
      batch_size: Images a step.
      schedule: Step (from 0) -> learning rate.
      max_consecutive_skips: Skipped steps in a row that are too many.
      parameters: Names, in the order of `grad_norms`.
      carried: What `carried` gave when step `start` was saved.
      rates: Images per second of the intervals of earlier starts.

    Attributes:
      consecutive_skips: Skipped steps in a row, up to the last that was fetched.

    Raises:
      FloatingPointError: Any method that fetches metrics finds that
        `max_consecutive_skips` is reached.
    """

    def __init__(
        self,
        start,
        total,
        plan,
        batch_size,
        schedule,
        *,
        max_consecutive_skips: int,
        parameters: Sequence[str],
        carried: Mapping | None = None,
        rates: Sequence[float] = (),
    ):
        carried = {"rows": [], "seconds": 0.0, "consecutive_skips": 0} | (carried or {})
        self._plan, self._batch_size, self._schedule = plan, batch_size, schedule
        self._total = total
        self._max_consecutive_skips = max_consecutive_skips
        self._parameters = parameters
        self._last_finite = None
        self.consecutive_skips = carried["consecutive_skips"]
        self._pending = collections.deque()
        self._rows = [(done, row) for done, row in carried["rows"]]
        self._clocked = 0  # rows since `_clock`: those of an earlier start are not
        self._rates = list(rates)
        self._clock = time.monotonic()
        self._began = self._clock - carried["seconds"]
        self._bar = tqdm(
            total=total,
            initial=start,
            unit=" images",
            unit_scale=batch_size,
            dynamic_ncols=True,
            disable=jax.process_index() > 0 or not sys.stderr.isatty(),
        )

    @property
    def images_per_sec(self) -> float | None:
        """Median over the logged intervals; the first, which compiles, is left out."""
        rates = self._rates[1:] or self._rates
        return round(float(np.median(rates)), 1) if rates else None

    @property
    def seconds(self) -> float:
        """Of the whole run so far, but for what stopped starts computed in vain."""
        return time.monotonic() - self._began

    def carried(self) -> dict:
        """What a run that goes on from here has to know, for JSON.

        The metrics of the interval under way are part of it: its means are then those
        of a run that was never stopped.
        """
        self.drain()
        return {
            "rows": list(self._rows),
            "seconds": self.seconds,
            "consecutive_skips": self.consecutive_skips,
        }

    def dispatched(self, done: int, metrics: dict) -> None:
        """Of one step, scalars, or of the last few up to `done`, [k]."""
        self._pending.append((done, metrics))
        while len(self._pending) > IN_FLIGHT:
            self._fetch()
        self._bar.update(np.size(metrics["skipped"]))

    def drain(self) -> None:
        while self._pending:
            self._fetch()

    def interval(self) -> dict[str, float]:
        """Means over the steps since the last call, and prints them."""
        self.drain()
        now = time.monotonic()
        done, rows = self._rows[-1][0], [row for _, row in self._rows]
        rate = self._clocked * self._batch_size / max(now - self._clock, 1e-9)
        self._rates.append(rate)
        finite = [row for row in rows if row]
        values = {
            f"train/{name}": float(np.mean([row[name] for row in finite]))
            for name in (finite[0] if finite else ())
        }
        values["train/skipped"] = skipped = len(rows) - len(finite)
        values["train/learning_rate"] = float(self._schedule(done - 1))
        values["train/images_per_sec"] = rate
        self._rows, self._clocked, self._clock = [], 0, now
        left = (self._total - done) * self._batch_size / rate
        self._show(
            f"step {done}/{self._total}  epoch {done / self._plan.steps_per_epoch:.1f}"
            + "".join(
                f"  {name.removeprefix('loss_')} {values['train/' + name]:.4f}"
                for name in ("loss", "loss_ce", "loss_distill")
                if "train/" + name in values
                and (name == "loss" or "loss_distill" in finite[0])
            )
            + (f"  top-1 {values['train/top1']:.3f}" if finite else "")
            + (f"  skipped {skipped} of {len(rows)}" if skipped else "")
            + f"  {rate:,.0f} images/s",
            f"  ETA {clock(left)}",
        )
        return values

    def pause(self) -> None:
        """An evaluation begins: its time is not the training's."""
        self.drain()
        self._paused = time.monotonic()

    def resume(self, headline: str) -> None:
        self._clock += time.monotonic() - self._paused
        self._show(headline, "")

    def close(self) -> None:
        self._bar.close()

    def _fetch(self) -> None:
        done, metrics = self._pending.popleft()
        metrics = jax.device_get(metrics)
        if metrics["skipped"].ndim == 0:
            self._take(done, metrics)
            return
        number = len(metrics["skipped"])
        for place in range(number):
            one = {name: values[place] for name, values in metrics.items()}
            self._take(done - number + 1 + place, one)

    def _take(self, done: int, metrics: dict[str, np.ndarray]) -> None:
        """The metrics of step `done`."""
        norms = metrics.pop("grad_norms")
        row = {name: float(value) for name, value in metrics.items()}
        skipped = row.pop("skipped")
        # An empty row stands for a skipped step.
        self._rows.append((done, {} if skipped else row))
        self._clocked += 1
        if not skipped:
            self.consecutive_skips = 0
            self._last_finite = (done, norms)
            return
        self.consecutive_skips += 1
        name = "grad_norm" if math.isfinite(row["loss"]) else "loss"
        what = (
            f"{name} is {row[name]} at step {done} (learning rate "
            f"{float(self._schedule(done - 1)):.3g})"
        )
        if self.consecutive_skips >= self._max_consecutive_skips:
            raise FloatingPointError(
                f"{what}, the last of {self.consecutive_skips} such steps in a row. "
                + self._blame(norms)
            )
        if self.consecutive_skips == 1:
            self._show(f"{what}: skipped", "")

    def _blame(self, norms: np.ndarray) -> str:
        """The parameters whose gradients are not finite, and the largest before."""
        broken = [
            name
            for name, norm in zip(self._parameters, norms, strict=True)
            if not math.isfinite(norm)
        ]
        if not broken:  # finite one by one, but not the sum of their squares
            return f"The largest gradient is {self._largest(norms)}."
        names = "all"
        if len(broken) < len(norms):
            names = textwrap.shorten(", ".join(broken), 200, placeholder=" ...")
        sentence = f"Not finite: {len(broken)} of {len(norms)} gradients ({names})."
        if self._last_finite is not None:
            step, norms = self._last_finite
            sentence += f" The largest of step {step} was {self._largest(norms)}."
        return sentence

    def _largest(self, norms: np.ndarray) -> str:
        largest = np.argmax(norms)
        return f"that of {self._parameters[largest]}, {norms[largest]:.3g}"

    def _show(self, line: str, rest: str) -> None:
        # The bar has its own ETA; lines in a log file need one.
        if self._bar.disable:
            print(line + rest, flush=True)
        else:
            self._bar.write(line)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
