"""What changes while a run trains: its curves, its gap, its teacher."""

import statistics
from collections.abc import Sequence

import numpy as np

from deit_jax.reporting import figures
from deit_jax.reporting.document import NONE, Image, Table, Text
from deit_jax.reporting.figures import Line, Panel
from deit_jax.reporting.runs import Group, Run

METRICS = {
    "loss": "NLL",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "f1": "macro F1",
    "precision": "macro precision",
    "recall": "macro recall",
    "auc": "one-vs-rest AUC",
    "ece": "expected calibration error",
}
# What training has of them.
TRAINED = {"loss": "train/loss_ce", "top1": "train/top1"}


def curves(groups: Sequence[Group]) -> list:
    """Every metric over the training."""
    x = _x_axis(groups)
    panels = []
    for name, title in METRICS.items():
        lines = _lines(groups, f"eval/{{head}}/{name}", x)
        if name in TRAINED:
            lines = _lines(groups, TRAINED[name], x, dashed=True) + lines
        panels.append(Panel(title, lines))
    panels = [panel for panel in panels if panel.lines]
    if not panels:
        return []
    if loss := _lines(groups, "train/loss", x, dashed=True):
        panels.append(Panel("training loss, as it is minimised", loss))
    caption = (
        "Validation (solid): raw parameters, the head that predicts. Training "
        "(dashed): cross-entropy and accuracy of the class head on the augmented "
        "batches, means between two log lines; label smoothing and mixed labels raise "
        "that cross-entropy above zero."
    )
    if any(len(g.runs) > 1 for g in groups):
        caption += " Thin lines are single seeds, thick ones their mean."
    drawn = figures.curves(panels, [g.name for g in groups], x_label=x)
    return [Image("learning_curves", drawn, caption)]


def gaps(groups: Sequence[Group]) -> list:
    """How far training is ahead of validation, over the training and at its end."""
    x = _x_axis(groups)
    panels = {"top1": [], "loss": []}
    rows = []
    for number, g in enumerate(groups):
        gaps = {name: [gap(run, name, x=x) for run in g.runs] for name in panels}
        for name, lines in panels.items():
            lines += _with_mean(number, gaps[name])
        for run, (_, top1), (_, nll) in zip(g.runs, *gaps.values(), strict=True):
            if top1:
                rows.append(_gap_row(run, top1, nll, x))
    if not rows:
        return []
    header = ["run", "last gap, top-1 points", "last gap, NLL"]
    header += ["highest validation top-1 %", f"at {x}", "last - highest, points"]
    drawn = figures.curves(
        [
            Panel("top-1, training - validation", panels["top1"]),
            Panel("NLL, validation - training", panels["loss"]),
        ],
        [g.name for g in groups],
        x_label=x,
    )
    return [
        Text(
            "Of the class head with the raw parameters. A gap that grows while the "
            "validation figures no longer improve is overfitting. Training figures are "
            "taken under augmentation, stochastic depth and label smoothing, so a "
            "strong recipe has a negative gap; they are those of the log line before "
            "the evaluation."
        ),
        Image(
            "generalisation_gap",
            drawn,
            "The gap between training and validation; higher is more overfitting.",
        ),
        Table(header, rows),
    ]


def _gap_row(run: Run, top1: list[float], nll: list[float], x: str) -> list[str]:
    at, validation = run.series("eval/class/top1", x=x)
    best = int(np.argmax(validation))
    return [
        run.name,
        f"{100 * top1[-1]:+.2f}",
        f"{nll[-1]:+.4f}" if nll else NONE,
        f"{100 * validation[best]:.2f}",
        f"{at[best]:g}",
        f"{100 * (validation[-1] - validation[best]):+.2f}",
    ]


def gap(run: Run, metric: str, *, x: str) -> tuple[list, list[float]]:
    """How much better the class head is in training: `top1` or `loss` over `x`.

    An evaluation is compared with the newest log line that is not after it.
    """
    sign = -1 if metric == "loss" else 1
    at, values = run.series(f"eval/class/{metric}", x=x)
    logged_at, logged = run.series(TRAINED[metric], x=x)
    points = []
    for place, value in zip(at, values, strict=True):
        before = int(np.searchsorted(logged_at, place, side="right")) - 1
        if before >= 0:
            points.append((place, sign * (logged[before] - value)))
    return [p for p, _ in points], [v for _, v in points]


def agreement(groups: Sequence[Group]) -> list:
    """Student against teacher, and the two tokens; nothing without a teacher."""
    x = _x_axis(groups)
    panels = []
    for name, title in (
        ("train/teacher_agreement", "top-1 agreement with the teacher"),
        ("train/teacher_kl", "KL(teacher || student), nats"),
        ("train/teacher_cosine", "cosine of the probabilities"),
        ("eval/token_cosine", "cosine of class and distillation token"),
    ):
        if lines := _lines(groups, name, x):
            panels.append(Panel(title, lines))
    if not panels:
        return []
    return [
        Image(
            "student_and_teacher",
            figures.curves(panels, [g.name for g in groups], x_label=x),
            "Student and teacher are compared on the training batches, at temperature "
            "1; the tokens on the evaluation split, after the last norm (the paper "
            "finds 0.93 for DeiT on ImageNet).",
        )
    ]


def _x_axis(groups: Sequence[Group]) -> str:
    """Epochs, which suit runs of any batch size, where every run tells them."""
    rows = (row for g in groups for run in g.runs for row in run.rows)
    return "epoch" if all("epoch" in row for row in rows) else "step"


def _lines(
    groups: Sequence[Group], name: str, x: str, *, dashed: bool = False
) -> list[Line]:
    """The lines of a metric; `{head}` in its name is the head that predicts."""
    lines = []
    for number, g in enumerate(groups):
        each = [run.series(name.format(head=run.head), x=x) for run in g.runs]
        lines += _with_mean(number, each, dashed=dashed)
    return lines


def _with_mean(
    number: int, each: Sequence[tuple[list, list[float]]], *, dashed: bool = False
) -> list[Line]:
    """A line for each seed and, where there are several, their mean."""
    each = [(at, values) for at, values in each if at]
    lines = [Line(number, *one, dashed=dashed, faint=len(each) > 1) for one in each]
    if len(each) > 1:
        shared = sorted(set.intersection(*(set(at) for at, _ in each)))
        looked_up = [dict(zip(*one, strict=True)) for one in each]
        mean = [statistics.fmean(one[at] for one in looked_up) for at in shared]
        lines.append(Line(number, shared, mean, dashed=dashed))
    return lines
