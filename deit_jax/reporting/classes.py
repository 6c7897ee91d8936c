"""What stands behind the averages: classes, mistakes and confidence."""

from collections.abc import Callable, Sequence

import numpy as np

from deit_jax.reporting import figures
from deit_jax.reporting.document import Cell, Image, Table, Text
from deit_jax.reporting.runs import Group

MOST_CLASSES = 30  # that the table and the image of F1 have room for


def per_class(chosen, names, suffix: str, label: str) -> list:
    """F1 of the classes as an image and a table; the lowest, of many."""
    class_names = _class_names(chosen[0][1])
    support = np.array(_tables(chosen[0][1])[0]["per_class"]["support"])
    values = []
    for number, g in chosen:
        f1 = np.array([t["per_class"]["f1"] for t in _tables(g)], float)  # None is nan
        deviation = f1.std(axis=0, ddof=1) if len(f1) > 1 else None
        values.append((number, f1.mean(axis=0), deviation))
    mean = np.mean([value for _, value, _ in values], axis=0)
    present = np.flatnonzero(support)
    shown = present
    caption = f"{label}F1 of every class, with the head that predicts."
    if len(present) > MOST_CLASSES:
        shown = present[np.argsort(mean[present], kind="stable")[:MOST_CLASSES]]
        caption = (
            f"{label}The {MOST_CLASSES} classes of {len(present)} with the lowest F1, "
            "averaged over the runs."
        )
    if any(deviation is not None for *_, deviation in values):
        caption += " Bars: one standard deviation over the seeds."
    rows = []
    for c in shown:
        best = max(round(value[c], 4) for _, value, _ in values)
        rows.append([class_names[c], f"{support[c]:,}"])
        for _, value, deviation in values:
            text = f"{value[c]:.4f}"
            if deviation is not None:
                text += f" ± {deviation[c]:.4f}"
            is_best = len(values) > 1 and round(value[c], 4) == best
            rows[-1].append(Cell(text, is_best))
    image = figures.dots(
        [(n, v[shown], None if d is None else d[shown]) for n, v, d in values],
        [class_names[c] for c in shown],
        names,
        x_label="F1",
    )
    header = ["class", "images", *(g.name for _, g in chosen)]
    return [Image(f"per_class_f1{suffix}", image, caption), Table(header, rows)]


def confusions(chosen, names, suffix: str, label: str) -> list:
    matrices = []
    for _, g in chosen:
        found = [t["confusion"] for t in _tables(g) if "confusion" in t]
        if found:
            seeds = f", {len(found)} seeds" if len(found) > 1 else ""
            matrices.append((g.name + seeds, np.sum(found, axis=0)))
    if not matrices:
        return [Text(f"{label}too many classes for a matrix that can be read.")]
    image = figures.confusions(matrices, _class_names(chosen[0][1]))
    caption = (
        f"{label}Images of the row's class that were taken for the column's; the "
        "colour is the share of the row. Seeds are added up."
    )
    return [Image(f"confusion{suffix}", image, caption)]


def calibration(chosen, names, suffix: str, label: str) -> list:
    bins = []
    for number, g in chosen:
        found = [t["calibration"] for t in _tables(g)]
        count, *means = (
            np.nan_to_num(np.array([one[name] for one in found], float))
            for name in ("count", "confidence", "accuracy")
        )
        total = count.sum(axis=0)
        means = [(count * mean).sum(axis=0) / np.maximum(total, 1) for mean in means]
        bins.append((number, total, *means))
    caption = (
        f"{label}Below the dotted line a model is surer than it is right. Bins with "
        "few images scatter: see their share on the right. Seeds are pooled."
    )
    return [Image(f"calibration{suffix}", figures.calibration(bins, names), caption)]


def by_data(groups: Sequence[Group], make: Callable) -> list:
    """What `make` gives for the groups of each data set that have tables."""
    chosen: dict[tuple, list[tuple[int, Group]]] = {}
    for number, g in enumerate(groups):
        if _tables(g):
            chosen.setdefault((g.data, *_class_names(g)), []).append((number, g))
    blocks = []
    for place, ((data, *_), members) in enumerate(chosen.items(), 1):
        suffix = f"_{place}" if len(chosen) > 1 else ""
        label = f"{data}: " if len(chosen) > 1 else ""
        blocks += make(members, [g.name for g in groups], suffix, label)
    return blocks


def _tables(g: Group) -> list[dict]:
    return [run.tables() for run in g.finished if run.tables()]


def _class_names(g: Group) -> list[str]:
    return [str(name) for name in g.finished[0].summary["class_names"]]
