"""The tables of results: every metric of every run, the best, the differences."""

import collections
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from deit_jax.reporting.comparison import Estimate, Sample, difference
from deit_jax.reporting.document import NONE, Cell, Table, Text
from deit_jax.reporting.runs import Group

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
WEIGHTS = (("eval", "raw"), ("eval_ema", "EMA"))


def scores(groups: Sequence[Group]) -> list:
    """Metrics of the predicting head with the raw parameters, by config and by run."""
    header = ["run", *(title for _, title, _, _ in METRICS)]
    entries = [(g, _values(g, "eval", g.head)) for g in groups]
    text = (
        "At the last step, on the whole evaluation split, with the raw parameters and "
        "the head that the model predicts with (the mean of both heads' logits where "
        "there are two). Nothing was selected on this split. Bold is best; small print "
        "has the difference to the first run on the same data."
    )
    if any(len(g.counted) > 1 for g in groups):
        text += " Several seeds are their mean, ± their standard deviation."
    blocks = [Text(text), Table(header, _rows(entries, [[_label(g)] for g in groups]))]
    if any(len(g.runs) > 1 for g in groups):
        single = [Group(run.name, [run]) for g in groups for run in g.runs]
        entries = [(g, _values(g, "eval", g.head)) for g in single]
        blocks += [
            Text("Every run by itself:"),
            Table(header, _rows(entries, [[_label(g)] for g in single])),
        ]
    return blocks


def intervals(
    members: Sequence[Group], samples: Mapping[Group, Sample], label: str
) -> list:
    """Every metric of groups on the same data with its interval, and the differences.

    Args:
      label: Begins the texts.
    """
    header = ["run", *(title for _, title, *_ in METRICS)]
    names = [name for name, *_ in METRICS]
    rows = [
        [g.name, *_intervals(samples[g].estimate(name) for name in names)]
        for g in members
    ]
    blocks = [
        Text(f"{label}The head that predicts, with 95 % confidence intervals."),
        Table(header, rows),
    ]
    first, *others = members
    if not others:
        return blocks
    rows = []
    for g in others:
        found = (difference(samples[g], samples[first], name) for name in names)
        rows.append([g.name, *_intervals(found, sign="+")])
    text = (
        f"{label}Differences to {first.name}. Bold are those whose interval does not "
        "hold 0, to the better or to the worse."
    )
    return [*blocks, Text(text), Table(header, rows)]


def _intervals(
    figures: Iterable[Estimate | None], *, sign: str = ""
) -> list[Cell | str]:
    """A cell for each of `METRICS`; with a `sign` they are differences."""
    cells = []
    for of, (name, _, _, digits) in zip(figures, METRICS, strict=True):
        if of is None:
            cells.append(NONE)
            continue
        scale = 100 if name in PERCENT else 1
        value, low, high = (
            f"{scale * x:{sign}.{digits}f}" for x in (of.value, of.low, of.high)
        )
        surely = bool(sign) and not of.could_be_chance
        cells.append(Cell(value, surely, f"{low} to {high}"))
    return cells


def every_head(groups: Sequence[Group]) -> list:
    """Every head of every config, raw and EMA; nothing where there is one only."""
    entries, labels = [], []
    for g in groups:
        for key, weights in WEIGHTS:
            for head in g.counted[0].heads(key):
                entries.append((g, _values(g, key, head)))
                labels.append([_label(g), weights, head])
    if len(entries) == len(groups):
        return []  # nothing that the table of results does not say
    header = ["run", "weights", "head", *(title for _, title, _, _ in METRICS)]
    return [Table(header, _rows(entries, labels, differences=False), 3)]


def _values(g: Group, weights: str, head: str) -> dict[str, list[float]]:
    """Lists each metric with a value for each counted run."""
    found = {}
    for name, *_ in METRICS:
        values = [run.heads(weights).get(head, {}).get(name) for run in g.counted]
        scale = 100 if name in PERCENT else 1
        if all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            found[name] = [scale * value for value in values]
    return found


def _rows(
    entries: Sequence[tuple[Group, dict[str, list[float]]]],
    labels: Sequence[list[str]],
    *,
    differences: bool = True,
) -> list[list[Cell | str]]:
    """Mean and deviation of every metric, the best bold, differences to the first."""
    rows = [list(label) for label in labels]
    for name, _, more_is_better, digits in METRICS:
        # As shown, so that what looks equal is equally good.
        means = [
            round(statistics.fmean(values[name]), digits) if name in values else None
            for _, values in entries
        ]
        best, first, rivals = {}, {}, collections.Counter()
        for (g, _), mean in zip(entries, means, strict=True):
            if mean is None:
                continue
            first.setdefault(g.data, mean)
            if g.finished:
                better = max if more_is_better else min
                best[g.data] = better(best.get(g.data, mean), mean)
                rivals[g.data] += 1
        seen = set()
        for row, (g, values), mean in zip(rows, entries, means, strict=True):
            if mean is None:
                row.append(NONE)
                continue
            notes = []
            if len(values[name]) > 1:
                notes.append(f"± {statistics.stdev(values[name]):.{digits}f}")
            if differences and g.data in seen:
                notes.append(f"{mean - first[g.data]:+.{digits}f}")
            seen.add(g.data)
            is_best = bool(g.finished) and mean == best[g.data] and rivals[g.data] > 1
            row.append(Cell(f"{mean:.{digits}f}", is_best, ", ".join(notes)))
    return rows


def _label(g: Group) -> str:
    if g.finished:
        return g.name
    return f"{g.name} (unfinished, step {max(run.last_step for run in g.runs):,})"
