"""What stands behind the averages: classes, mistakes and confidence."""

from collections.abc import Sequence

import numpy as np

from deit_jax.reporting import figures
from deit_jax.reporting.comparison import class_f1
from deit_jax.reporting.document import Cell, Image, Table, Text
from deit_jax.reporting.runs import Group
from deit_jax.training import metrics

MOST_CLASSES = 30  # that the table of F1 has room for


def per_class(members: Sequence[Group]) -> list:
    """A table of the F1 of the classes; the lowest, of many."""
    members = [g for g in members if g.tables("per_class")]
    if not members:
        return []
    f1 = [class_f1(g) for g in members]
    means = np.array([one.mean(axis=0).round(4) for one in f1])
    support = np.array(members[0].tables("per_class")[0]["support"])
    shown = present = np.flatnonzero(support)
    text = "F1 of every class, with the head that predicts."
    if len(present) > MOST_CLASSES:
        order = np.argsort(means.mean(axis=0)[present], kind="stable")
        shown = present[order[:MOST_CLASSES]]
        text = (
            f"The {MOST_CLASSES} classes of {len(present)} with the lowest F1, "
            "averaged over the runs."
        )
    rows = []
    for c in shown:
        row = [members[0].class_names[c], f"{support[c]:,}"]
        for seeds, mean in zip(f1, means[:, c], strict=True):
            note = f"± {seeds[:, c].std(ddof=1):.4f}" if len(seeds) > 1 else ""
            is_best = len(members) > 1 and mean == means[:, c].max()
            row.append(Cell(f"{mean:.4f}", is_best, note))
        rows.append(row)
    return [Text(text), Table(["class", "images", *(g.name for g in members)], rows)]


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
