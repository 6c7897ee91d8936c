"""How a teacher cache stores a row: logits, or the largest of them, and features."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from deit_jax.distillation.teacher import Answers
from deit_jax.errors import InputError

# On |cached - live| beyond float16's rounding: convolutions sum in another order on
# other machines.
TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How a teacher's answer to an image is stored.

    Attributes:
      num_classes: C.
      top_k: How many of them are kept; None for all.
      tau: Temperature at which the others' probability is kept beside that at 1.
      features: The number of pooled features beside the logits; 0 for none.
    """

    num_classes: int
    top_k: int | None = None
    tau: float | None = None
    features: int = 0

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
        if self.features:
            arrays["features"] = (np.float16, (self.features,))
        return {name: (np.dtype(kind), shape) for name, (kind, shape) in arrays.items()}

    @property
    def bytes_per_row(self) -> int:
        return sum(
            kind.itemsize * math.prod(shape) for kind, shape in self.arrays.values()
        )

    def describe(self) -> dict:
        """The manifest's `logits` section."""
        about = {"top_k": self.top_k, "tau": self.tau}
        return about | ({"features": self.features} if self.features else {})

    def encode(self, answers: Answers) -> dict[str, np.ndarray]:
        """What is stored of answers float [n, ...].

        Raises:
          InputError: They are not finite, or exceed float16.
        """
        logits, rounded = answers.logits, _rounded("logits", answers.logits)
        stored = {}
        if self.features:
            stored["features"] = _rounded("features", answers.features)
        if self.top_k is None:
            return stored | {"logits": rounded}
        # Stable, so that equal logits keep the order of their classes.
        order = np.argsort(-logits, axis=1, kind="stable")[:, : self.top_k]
        tails = [_tail(logits, order, tau) for tau in (1.0, self.tau)]
        indices, _ = self.arrays["indices"]
        return stored | {
            "indices": order.astype(indices),
            "values": np.take_along_axis(rounded, order, axis=1),
            "tails": np.stack(tails, axis=1).astype(np.float32),
        }

    def check_rows(self, rows: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError for rows that `encode` cannot have given."""
        for name in ("logits", "values", "features"):
            if name in rows and not np.isfinite(rows[name]).all():
                what = "features" if name == "features" else "logits"
                raise ValueError(f"it holds {what} that are not finite")
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
        self, stored: Mapping[str, np.ndarray], answers: Answers
    ) -> tuple[float, float]:
        """Compares rows with answers float32 [n, ...] that are computed again.

        Returns:
          The largest |stored - live|, and the most by which one exceeds half the
          distance of neighbouring float16 numbers, which rounding alone explains (0.03
          for logits between 64 and 128).
        """
        live, beyond = {"logits": answers.logits, "features": answers.features}, [0.0]
        if self.top_k:
            # Nearly equal logits may have changed places: compared by class.
            indices = stored["indices"].astype(np.int64)
            live["values"] = np.take_along_axis(answers.logits, indices, axis=1)
            tails = self.encode(answers)["tails"]
            beyond = [np.abs(stored["tails"] - tails).max()]
        gaps = []
        for name in live.keys() & stored.keys():
            gap = np.abs(stored[name] - live[name])
            with np.errstate(invalid="ignore"):  # not a number is no neighbour
                rounding = np.abs(np.spacing(stored[name])) / 2
            gaps.append(gap.max())
            beyond.append((gap - rounding).max())
        return np.max(gaps), np.max(beyond)

    def check_tau(self, tau: float) -> None:
        """Raises InputError where the softmax at `tau` is not known."""
        if self.top_k is not None and tau not in (1.0, self.tau):
            raise InputError(
                f"the teacher cache holds the {self.top_k} largest logits, for "
                f"distillation.tau of 1 or {self.tau:g}, not {tau:g}. Set "
                f"--config.distillation.tau={self.tau:g}, or export anew with "
                f"--config.distillation.tau={tau:g}."
            )


def _rounded(name: str, values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise InputError(
            f"the teacher gives non-finite {name}: its weights are damaged, or half "
            "precision overflows; try --precision=float32."
        )
    with np.errstate(over="ignore"):  # reported below
        rounded = values.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise InputError(f"the teacher's {name} exceed float16 (65,504).")
    return rounded


def _tail(logits: np.ndarray, top: np.ndarray, tau: float) -> np.ndarray:
    """The probability [n] of the classes that are not in `top` [n, K]."""
    from scipy.special import softmax

    probabilities = softmax(logits.astype(np.float64) / tau, axis=1)
    np.put_along_axis(probabilities, top, 0, axis=1)
    return probabilities.sum(axis=1)
