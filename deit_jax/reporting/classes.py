"""What stands behind the averages: classes, mistakes and confidence."""

from collections.abc import Sequence

import numpy as np

from deit_jax.reporting import figures
from deit_jax.reporting.comparison import class_f1
from deit_jax.reporting.document import Cell, Image, Table, Text
from deit_jax.reporting.runs import Group
from deit_jax.training import metrics

MOST_CLASSES = 30  # that the table and the image of F1 have room for


def per_class(members: Sequence[Group]) -> list:
    """F1 of the classes as an image and a table; the lowest, of many."""
    chosen = [(n, g) for n, g in enumerate(members) if g.tables("per_class")]
    if not chosen:
        return []
    f1 = [class_f1(g) for _, g in chosen]
    values = np.array([one.mean(axis=0) for one in f1])
    deviations = [one.std(axis=0, ddof=1) if len(one) > 1 else None for one in f1]
    support = np.array(chosen[0][1].tables("per_class")[0]["support"])
    shown = present = np.flatnonzero(support)
    caption = "F1 of every class, with the head that predicts."
    if len(present) > MOST_CLASSES:
        mean = values.mean(axis=0)[present]
        shown = present[np.argsort(mean, kind="stable")[:MOST_CLASSES]]
        caption = (
            f"The {MOST_CLASSES} classes of {len(present)} with the lowest F1, "
            "averaged over the runs."
        )
    if any(deviation is not None for deviation in deviations):
        caption += " Bars: one standard deviation over the seeds."
    names, rows = chosen[0][1].class_names, []
    for c in shown:
        row = [names[c], f"{support[c]:,}"]
        for value, deviation in zip(values[:, c].round(4), deviations, strict=True):
            text = f"{value:.4f}" + (
                f" ± {deviation[c]:.4f}" if deviation is not None else ""
            )
            row.append(Cell(text, len(f1) > 1 and value == values[:, c].max().round(4)))
        rows.append(row)
    drawn = [
        (n, value[shown], None if deviation is None else deviation[shown])
        for (n, _), value, deviation in zip(chosen, values, deviations, strict=True)
    ]
    image = figures.dots(drawn, [names[c] for c in shown], [g.name for g in members])
    header = ["class", "images", *(g.name for _, g in chosen)]
    return [Image("per_class_f1", image, caption), Table(header, rows)]


def confusion(g: Group) -> np.ndarray | None:
    """Images of the row's class that are taken for the column's; seeds added up."""
    matrices = list(map(np.array, g.tables("confusion")))
    if not matrices:  # of many classes the summary has none
        for _, found in (run.predictions for run in g.finished if run.predictions):
            matrix = np.zeros((found.classes, found.classes), int)
            np.add.at(matrix, (found.labels, found.predicted), 1)
            matrices.append(matrix)
    return np.sum(matrices, axis=0) if matrices else None


def confusions(members: Sequence[Group]) -> list:
    """A matrix for each group."""
    matrices = []
    for g in members:
        if seeds := len(g.tables("confusion")):
            title = g.name + (f", {seeds} seeds" if seeds > 1 else "")
            matrices.append((title, confusion(g)))
    if matrices:
        caption = (
            "Images of the row's class that were taken for the column's; the colour is "
            "the share of the row. Seeds are added up."
        )
        image = figures.confusions(matrices, members[0].class_names)
        return [Image("confusion", image, caption)]
    if len(members[0].class_names) > metrics.LARGEST_CONFUSION:
        return [Text("Too many classes for a matrix that can be read.")]
    return []


def pooled_calibration(g: Group) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, mean confidence and accuracy of each bin, over all seeds."""
    count, *means = (
        np.nan_to_num(np.array([one[name] for one in g.tables("calibration")], float))
        for name in ("count", "confidence", "accuracy")
    )
    total = count.sum(axis=0)
    return total, *((count * mean).sum(axis=0) / np.maximum(total, 1) for mean in means)


def calibration(members: Sequence[Group]) -> list:
    """Accuracy over confidence."""
    bins = [
        (number, *pooled_calibration(g))
        for number, g in enumerate(members)
        if g.tables("calibration")
    ]
    if not bins:
        return []
    caption = (
        "Below the dotted line a model is surer than it is right. Bins with few images "
        "scatter: see their share on the right. Seeds are pooled."
    )
    image = figures.calibration(bins, [g.name for g in members])
    return [Image("calibration", image, caption)]
