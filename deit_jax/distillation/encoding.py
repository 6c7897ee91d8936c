"""How a teacher cache stores a row: all logits, or the largest of them."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from deit_jax.errors import InputError

# On |cached - live| beyond float16's rounding: convolutions sum in another order on
# other machines.
TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How the logits of a row are stored.

    Attributes:
      num_classes: C.
      top_k: How many of them are kept; None for all.
      tau: Temperature at which the others' probability is kept beside that at 1.
    """

    num_classes: int
    top_k: int | None = None
    tau: float | None = None

    def __post_init__(self):
        if self.top_k is not None and not 0 < self.top_k < self.num_classes:
            raise InputError(
                f"--top_k={self.top_k}: expected 1 .. {self.num_classes - 1}, fewer "
                "than there are classes; without it all logits are kept."
            )
        if self.top_k is not None and not (self.tau and self.tau > 0):
            raise InputError(f"distillation.tau={self.tau} is not above 0.")

    @property
    def arrays(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """By name: (type, shape of a row)."""
        if self.top_k is None:
            arrays = {"logits": (np.float16, (self.num_classes,))}
        else:
            wide = np.uint16 if self.num_classes <= 2**16 else np.uint32
            arrays = {
                "indices": (wide, (self.top_k,)),
                "values": (np.float16, (self.top_k,)),
                "tails": (np.float32, (2,)),
            }
        return {name: (np.dtype(kind), shape) for name, (kind, shape) in arrays.items()}

    @property
    def bytes_per_row(self) -> int:
        return sum(
            kind.itemsize * math.prod(shape) for kind, shape in self.arrays.values()
        )

    def describe(self) -> dict:
        """The manifest's `logits` section."""
        return {"top_k": self.top_k, "tau": self.tau}

    def encode(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """What is stored of logits float [n, C].

        Raises:
          InputError: They are not finite, or exceed float16.
        """
        if not np.isfinite(logits).all():
            raise InputError(
                "the teacher gives non-finite logits: its weights are damaged, or "
                "half precision overflows; try --precision=float32."
            )
        with np.errstate(over="ignore"):  # reported below
            rounded = logits.astype(np.float16)
        if not np.isfinite(rounded).all():
            raise InputError("the teacher's logits exceed float16 (65,504).")
        if self.top_k is None:
            return {"logits": rounded}
        # Stable, so that equal logits keep the order of their classes.
        order = np.argsort(-logits, axis=1, kind="stable")[:, : self.top_k]
        tails = [_tail(logits, order, tau) for tau in (1.0, self.tau)]
        indices, _ = self.arrays["indices"]
        return {
            "indices": order.astype(indices),
            "values": np.take_along_axis(rounded, order, axis=1),
            "tails": np.stack(tails, axis=1).astype(np.float32),
        }

    def check_rows(self, rows: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError for rows that `encode` cannot have given."""
        finite = "logits" if self.top_k is None else "values"
        if not np.isfinite(rows[finite]).all():
            raise ValueError("it holds logits that are not finite")
        if self.top_k is None:
            return
        if (rows["indices"] >= self.num_classes).any():
            raise ValueError(f"it holds classes beyond {self.num_classes}")
        if not ((rows["tails"] >= 0) & (rows["tails"] < 1)).all():
            raise ValueError("it holds probabilities beyond 0 .. 1")

    def decode(self, rows: Mapping[str, np.ndarray], tau: float) -> np.ndarray:
        """Logits [n, C] whose softmax at temperature `tau` is the teacher's.

        float16 where all are stored; otherwise float32, and `tau` is 1 or that of the
        export (`check_tau`).
        """
        if self.top_k is None:
            return rows["logits"]
        values = rows["values"].astype(np.float32) / tau
        from scipy.special import log_softmax  # slow; for top-k alone

        tail = rows["tails"][:, 0 if tau == 1 else 1, None]
        # 1e-30: a probability that has vanished in float32 still has a logarithm.
        log_tail = np.log(np.maximum(tail, 1e-30) / (self.num_classes - self.top_k))
        log_top = log_softmax(values, axis=1) + np.log1p(-tail)
        # Where all logits are equal, rounding must not put the others first.
        log_tail = np.minimum(log_tail, log_top.min(axis=1, keepdims=True))
        logits = np.repeat(log_tail, self.num_classes, axis=1)
        np.put_along_axis(logits, rows["indices"].astype(np.int64), log_top, 1)
        return tau * logits

    def compare(
        self, stored: Mapping[str, np.ndarray], live: np.ndarray
    ) -> tuple[float, float]:
        """Compares rows with logits float32 [n, C] that are computed again.

        Returns:
          The largest |stored - live|, and the most by which one exceeds half the
          distance of neighbouring float16 numbers, which rounding alone explains (0.03
          for logits between 64 and 128).
        """
        name, beyond = "logits", 0.0
        if self.top_k:
            # Nearly equal logits may have changed places: compared by class.
            name = "values"
            tails = self.encode(live)["tails"]
            beyond = np.abs(stored["tails"] - tails).max()
            live = np.take_along_axis(live, stored["indices"].astype(np.int64), axis=1)
        gap = np.abs(stored[name] - live)
        with np.errstate(invalid="ignore"):  # not a number is no neighbour
            rounding = np.abs(np.spacing(stored[name])) / 2
        return gap.max(), np.maximum(beyond, (gap - rounding).max())

    def check_tau(self, tau: float) -> None:
        """Raises InputError where the softmax at `tau` is not known."""
        if self.top_k is not None and tau not in (1.0, self.tau):
            raise InputError(
                f"the teacher cache holds the {self.top_k} largest logits, for "
                f"distillation.tau of 1 or {self.tau:g}, not {tau:g}. Set "
                f"--config.distillation.tau={self.tau:g}, or export anew with "
                f"--config.distillation.tau={tau:g}."
            )


def _tail(logits: np.ndarray, top: np.ndarray, tau: float) -> np.ndarray:
    """The probability [n] of the classes that are not in `top` [n, K]."""
    from scipy.special import softmax

    probabilities = softmax(logits.astype(np.float64) / tau, axis=1)
    np.put_along_axis(probabilities, top, 0, axis=1)
    return probabilities.sum(axis=1)
