"""How sure the figures of a group are, and the differences between two."""

import dataclasses
import functools
import math
import statistics
import warnings
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri, stdtrit

from deit_jax.reporting.runs import Group, Run
from deit_jax.training import bootstrap
from deit_jax.training.bootstrap import LEVEL

# Name, title, whether more is better, and digits; the accuracies are in percent.
METRICS = (
    ("top1", "top-1 %", True, 2),
    ("top5", "top-5 %", True, 2),
    ("precision", "precision", True, 4),
    ("recall", "recall", True, 4),
    ("f1", "F1", True, 4),
    ("auc", "AUC", True, 4),
    ("ece", "ECE", False, 4),
    ("loss", "NLL", False, 4),
)
PERCENT = ("top1", "top5")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure, or a difference of two, with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    @property
    def could_be_chance(self) -> bool:
        """Whether the interval, that of a difference, holds 0."""
        return self.low <= 0 <= self.high

    def shown(self, metric: str, digits: int = 4, *, sign: str = "") -> tuple[str, str]:
        """The value and `low to high`; the accuracies in percent, with two digits."""
        scale, digits = (100, 2) if metric in PERCENT else (1, digits)
        low, high = (f"{scale * x:.{digits}f}" for x in (self.low, self.high))
        return f"{scale * self.value:{sign}.{digits}f}", f"{low} to {high}"


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """The metrics of a group's finished runs, and how they scatter.

    Attributes:
      values: {metric: a value for each seed}.
      replicates: {metric: [R]}, the mean over the seeds for resampled images, where
        all runs have predictions of the same images; else {}.
      deviations: {metric: standard deviation over the images of a run's value}, the
        mean over the seeds, which the mean's own does not exceed.
      images: The fingerprint of the images that `replicates` are of, or None.
    """

    values: dict[str, list]
    replicates: dict[str, np.ndarray]
    deviations: dict[str, np.ndarray]
    images: str | None

    def mean(self, metric: str) -> float | None:
        """Over the seeds; None where one of them lacks it."""
        values = self.values.get(metric)
        return values and statistics.fmean(values)

    def estimate(self, metric: str) -> Estimate | None:
        """The mean over the seeds; None for a metric without an interval."""
        if metric not in self.deviations or metric not in self.values:
            return None
        values, drawn = self.values[metric], self.replicates.get(metric)
        found = _estimate(
            statistics.fmean(values), drawn, self.deviations[metric], [values]
        )
        most = math.inf if metric == "loss" else 1.0
        return Estimate(found.value, max(found.low, 0.0), min(found.high, most))


@functools.cache
def sample(g: Group) -> Sample:
    """Resamples the evaluation images of the finished runs of a group, at least one.

    From their predictions or, without them, from the confusion matrix in the summary,
    or from the top-1 and the number of images alone.
    """
    each = [_replicates(run) for run in g.finished]
    names = set.intersection(*map(set, each))
    found = {run.predictions and run.predictions[0] for run in g.finished}
    images = found.pop() if len(found) == 1 else None
    scores = [run.heads()[run.head] for run in g.finished]
    return Sample(
        values={
            name: [one[name] for one in scores]
            for name in set.intersection(*map(set, scores))
            if all(math.isfinite(one[name]) for one in scores)
        },
        replicates={
            name: np.mean([one[name] for one in each], axis=0)
            for name in (names if images else ())
        },
        deviations={
            name: np.mean([_deviation(one[name]) for one in each], axis=0)
            for name in names
        },
        images=images,
    )


def difference(a: Group, b: Group, metric: str) -> Estimate | None:
    """`a` - `b`; None where one of them has no figure or no interval.

    On the same images it is paired: what is hard for both cancels. Without predictions
    it is that of two independent sets of images, which is rather too wide. With several
    seeds of both the interval covers these: Welch's, with the images' variance added.
    """
    a, b = sample(a), sample(b)
    if any(metric not in s.values or metric not in s.deviations for s in (a, b)):
        return None
    values = a.values[metric], b.values[metric]
    value = statistics.fmean(values[0]) - statistics.fmean(values[1])
    drawn = _paired(a, b, metric)
    deviation = math.hypot(a.deviations[metric], b.deviations[metric])
    return _estimate(value, drawn, deviation, values)


def class_differences(a: Group, b: Group) -> tuple | None:
    """The differences [C] in F1 by class, and how far chance alone may go in each.

    The margins allow for their number (Bonferroni): with nothing but chance, one report
    in twenty has any difference beyond its margin.
    """
    name = "f1_of_class"
    f1 = [class_f1(g) for g in (a, b)]
    a, b = sample(a), sample(b)
    if not all(map(len, f1)) or any(name not in s.deviations for s in (a, b)):
        return None
    differences = f1[0].mean(axis=0) - f1[1].mean(axis=0)
    deviations = np.hypot(a.deviations[name], b.deviations[name])
    if (paired := _paired(a, b, name)) is not None:
        deviations = _deviation(paired)
    level = 1 - (1 - LEVEL) / max(np.isfinite(differences).sum(), 1)
    margins = [
        _margin(deviation, [one[:, c] for one in f1], level)
        for c, deviation in enumerate(deviations)
    ]
    return differences, np.array(margins)


def class_f1(g: Group) -> np.ndarray:
    """[seeds, C], nan for a class without images."""
    return np.array([one["f1"] for one in g.tables("per_class")], float)


def _paired(a: Sample, b: Sample, metric: str) -> np.ndarray | None:
    """The differences [R] on the same resampled images; None of other images."""
    if a.images is None or a.images != b.images:
        return None
    return a.replicates[metric] - b.replicates[metric]


def _deviation(replicates: np.ndarray) -> np.ndarray:
    """Over axis 0, without nan; nan for a class without images."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        return np.nanstd(replicates, axis=0)


def _estimate(value: float, drawn, deviation: float, seeds: Sequence) -> Estimate:
    """Percentiles of the replicates, or `_margin` where these are not all."""
    if drawn is not None and not _over_seeds(seeds):
        return Estimate(value, *bootstrap.interval(drawn))
    margin = _margin(deviation if drawn is None else drawn.std(), seeds, LEVEL)
    return Estimate(value, value - margin, value + margin)


def _over_seeds(seeds: Sequence[Sequence[float]]) -> bool:
    return min(map(len, seeds)) > 1


def _margin(deviation: float, seeds: Sequence[Sequence[float]], level: float) -> float:
    """Half an interval from the images' standard deviation and the values by seed."""
    variance, upper = float(deviation) ** 2, (1 + level) / 2
    if not _over_seeds(seeds):
        return float(ndtri(upper)) * math.sqrt(variance)
    parts = [np.var(one, ddof=1) / len(one) for one in seeds]
    total = variance + sum(parts)
    if not total > 0:
        return 0.0
    # Satterthwaite: the images' part is as good as known.
    freedom = [p**2 / (len(one) - 1) for p, one in zip(parts, seeds, strict=True)]
    if not sum(freedom) > 0:
        return float(ndtri(upper)) * math.sqrt(total)
    return float(stdtrit(total**2 / sum(freedom), upper)) * math.sqrt(total)


def _replicates(run: Run) -> dict[str, np.ndarray]:
    if run.predictions is not None:
        return bootstrap.replicates(run.predictions[1])
    tables, images = run.tables, run.summary.get("eval_images")
    if "confusion" in tables:
        return bootstrap.confusion_replicates(tables["confusion"])
    if not images:
        return {}
    # Right and wrong are a confusion of two classes whose averages mean nothing.
    right = round(run.heads()[run.head]["top1"] * images)
    drawn = bootstrap.confusion_replicates([[right, 0], [images - right, 0]])
    return {"top1": drawn["top1"]}
