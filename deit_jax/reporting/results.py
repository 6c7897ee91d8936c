"""The tables of results: every metric of every run, the best, the differences."""

import math
import statistics
from collections.abc import Iterable, Sequence

from deit_jax.reporting.comparison import (
    METRICS,
    PERCENT,
    Estimate,
    difference,
    sample,
)
from deit_jax.reporting.document import NONE, Cell, Table, Text
from deit_jax.reporting.runs import Group
from deit_jax.training.summary import WEIGHTS

TITLES = [title for _, title, *_ in METRICS]


def scores(groups: Sequence[Group]) -> list:
    """Metrics of the predicting head with the raw parameters, by config and by run."""
    text = (
        "At the last step, on the whole evaluation split, with the raw parameters and "
        "the head that the model predicts with (the mean of both heads' logits where "
        "there are two). Nothing was selected on this split. Bold is best; small print "
        "has the difference to the first run."
    )
    if any(len(g.counted) > 1 for g in groups):
        text += " Several seeds are their mean, ± their standard deviation."
    tables = [groups]
    if any(len(g.runs) > 1 for g in groups):
        tables.append([Group(run.name, [run]) for g in groups for run in g.runs])
    blocks = []
    for shown in tables:
        entries = [([_label(g)], g, _values(g, "eval", g.head)) for g in shown]
        blocks += [Text(text), Table(["run", *TITLES], _rows(entries))]
        text = "Every run by itself:"
    return blocks


def intervals(members: Sequence[Group]) -> list:
    """Every metric of finished groups with its interval, and the differences."""
    names = [name for name, *_ in METRICS]
    rows = [[g.name, *_cells(sample(g).estimate(n) for n in names)] for g in members]
    blocks = [
        Text("The head that predicts, with 95 % confidence intervals."),
        Table(["run", *TITLES], rows),
    ]
    first, *others = members
    if others:
        rows = [
            [g.name, *_cells((difference(g, first, name) for name in names), sign="+")]
            for g in others
        ]
        text = (
            f"Differences to {first.name}. Bold are those whose interval does not hold "
            "0, to the better or to the worse."
        )
        blocks += [Text(text), Table(["run", *TITLES], rows)]
    return blocks


def _cells(figures: Iterable[Estimate | None], *, sign: str = "") -> list[Cell | str]:
    """A cell for each of `METRICS`; with a `sign` they are differences."""
    cells = []
    for of, (name, *_) in zip(figures, METRICS, strict=True):
        if of is None:
            cells.append(NONE)
            continue
        value, interval = of.shown(name, sign=sign)
        cells.append(Cell(value, bool(sign) and not of.could_be_chance, interval))
    return cells


def every_head(groups: Sequence[Group]) -> list:
    """Every head of every config, raw and EMA; nothing where there is one only."""
    entries = [
        ([_label(g), weights, head], g, _values(g, key, head))
        for g in groups
        for key, weights in WEIGHTS
        for head in g.counted[0].heads(key)
    ]
    if len(entries) == len(groups):
        return []  # nothing that the table of results does not say
    rows = _rows(entries, differences=False)
    return [Table(["run", "weights", "head", *TITLES], rows, 3)]


def _values(g: Group, weights: str, head: str) -> dict[str, list[float]]:
    """Lists each metric with a value for each counted run."""
    found = {}
    for name, *_ in METRICS:
        scale = 100 if name in PERCENT else 1
        scores = [run.heads(weights).get(head, {}) for run in g.counted]
        values = [scale * one.get(name, math.nan) for one in scores]
        if all(map(math.isfinite, values)):
            found[name] = values
    return found


def _rows(
    entries: Sequence[tuple[list[str], Group, dict[str, list[float]]]],
    *,
    differences: bool = True,
) -> list[list[Cell | str]]:
    """Mean and deviation of every metric, the best bold, differences to the first.

    Args:
      entries: The first cells of a row, the group, and `_values`.
    """
    rows = [list(labels) for labels, *_ in entries]
    for name, _, more_is_better, digits in METRICS:
        # As shown, so that what looks equal is equally good.
        means = [
            round(statistics.fmean(values[name]), digits) if name in values else None
            for *_, values in entries
        ]
        rivals = [
            mean
            for (_, g, _), mean in zip(entries, means, strict=True)
            if g.finished and mean is not None
        ]
        best = (max if more_is_better else min)(rivals) if len(rivals) > 1 else None
        for row, (_, g, values), mean in zip(rows, entries, means, strict=True):
            if mean is None:
                row.append(NONE)
                continue
            notes = []
            if len(values[name]) > 1:
                notes.append(f"± {statistics.stdev(values[name]):.{digits}f}")
            if differences and row is not rows[0] and means[0] is not None:
                notes.append(f"{mean - means[0]:+.{digits}f}")
            is_best = bool(g.finished) and mean == best
            row.append(Cell(f"{mean:.{digits}f}", is_best, ", ".join(notes)))
    return rows


def _label(g: Group) -> str:
    if g.finished:
        return g.name
    return f"{g.name} (unfinished, step {max(run.last_step for run in g.runs):,})"
