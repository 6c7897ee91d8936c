"""What the steps of a run report: checked, averaged, and shown on the terminal."""

import collections
import math
import sys
import time

import jax
import numpy as np
from tqdm import tqdm

# Steps that run ahead of the host: enough to hide it, few enough to bound the memory.
IN_FLIGHT = 2


class Progress:
    """Metrics of finished steps, and the progress on the terminal.

    The metrics of a step are fetched when `IN_FLIGHT` later ones are dispatched, so
    that the device never waits for the host; each is checked to be finite.

    Args:
      start: Steps that are done already.
      total: Steps of the whole run.
      plan: Gives the steps of an epoch.
      batch_size: Images a step.
      schedule: Step (from 0) -> learning rate.

    Raises:
      FloatingPointError: Any method that fetches metrics finds a loss or a gradient
        norm that is not finite.
    """

    def __init__(self, start, total, plan, batch_size, schedule):
        self._plan, self._batch_size, self._schedule = plan, batch_size, schedule
        self._total = total
        self._pending = collections.deque()
        self._rows = []
        self._rates = []
        self._clock = time.monotonic()
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

    def dispatched(self, done: int, metrics: dict) -> None:
        self._pending.append((done, metrics))
        while len(self._pending) > IN_FLIGHT:
            self._fetch()
        self._bar.update()

    def drain(self) -> None:
        while self._pending:
            self._fetch()

    def interval(self) -> dict[str, float]:
        """Means since the last call, and prints them."""
        self.drain()
        now = time.monotonic()
        done, rows = self._rows[-1][0], [row for _, row in self._rows]
        rate = len(rows) * self._batch_size / max(now - self._clock, 1e-9)
        self._rates.append(rate)
        values = {
            f"train/{name}": float(np.mean([row[name] for row in rows]))
            for name in rows[0]
        }
        values["train/learning_rate"] = float(self._schedule(done - 1))
        values["train/images_per_sec"] = rate
        self._rows, self._clock = [], now
        left = (self._total - done) * self._batch_size / rate
        self._show(
            f"step {done}/{self._total}  epoch {done / self._plan.steps_per_epoch:.1f}"
            f"  loss {values['train/loss']:.4f}"
            + "".join(
                f"  {name.removeprefix('loss_')} {values['train/' + name]:.4f}"
                for name in ("loss_ce", "loss_distill")
                if "train/" + name in values and "loss_distill" in rows[0]
            )
            + f"  top-1 {values['train/top1']:.3f}  {rate:,.0f} images/s",
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
        row = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(row[name]):
                raise FloatingPointError(
                    f"{name} is {row[name]} at step {done} (learning rate "
                    f"{float(self._schedule(done - 1)):.3g})."
                )
        self._rows.append((done, row))

    def _show(self, line: str, rest: str) -> None:
        # The bar has its own ETA; lines in a log file need one.
        if self._bar.disable:
            print(line + rest, flush=True)
        else:
            self._bar.write(line)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
