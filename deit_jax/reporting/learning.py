"""What changes while a run trains: its curves, its gap, its teacher."""

import statistics
from collections.abc import Sequence

import numpy as np

from deit_jax.reporting import figures
from deit_jax.reporting.comparison import METRICS
from deit_jax.reporting.document import Image
from deit_jax.reporting.figures import Line
from deit_jax.reporting.runs import Group, Run

# What training has of the metrics.
TRAINED = {"loss": "train/loss_ce", "top1": "train/top1"}
TEACHER = (
    ("train/teacher_agreement", "top-1 agreement with the teacher"),
    ("train/teacher_kl", "KL(teacher || student), nats"),
    ("train/teacher_cosine", "cosine of the probabilities"),
    ("eval/token_cosine", "cosine of class and distillation token"),
)


def curves(groups: Sequence[Group]) -> list[Image]:
    """Every metric over the training."""
    panels = []
    for name, title, *_ in METRICS:
        lines = _lines(groups, f"eval/{{head}}/{name}")
        if name in TRAINED:
            lines = _lines(groups, TRAINED[name], dashed=True) + lines
        panels.append((title.removesuffix(" %"), lines))
    panels.append(
        ("training loss, as it is minimised", _lines(groups, "train/loss", dashed=True))
    )
    caption = (
        "Validation (solid): raw parameters, the head that predicts. Training "
        "(dashed): cross-entropy and accuracy of the class head on the augmented "
        "batches, means between two log lines; label smoothing and mixed labels raise "
        "that cross-entropy above zero."
    )
    if any(len(g.runs) > 1 for g in groups):
        caption += " Thin lines are single seeds, thick ones their mean."
    return _drawn(panels, groups, "learning_curves", caption)


def gaps(groups: Sequence[Group]) -> list[Image]:
    """How far training is ahead of validation."""
    panels = [
        (
            title,
            [
                line
                for number, g in enumerate(groups)
                for line in _with_mean(number, [gap(run, metric) for run in g.runs])
            ],
        )
        for metric, title in (
            ("top1", "top-1, training - validation"),
            ("loss", "NLL, validation - training"),
        )
    ]
    caption = (
        "Of the class head with the raw parameters; higher is more overfitting, and a "
        "gap that grows while the validation figures no longer improve is overfitting. "
        "Training figures are taken under augmentation, stochastic depth and label "
        "smoothing, so a strong recipe has a negative gap; they are those of the log "
        "line before the evaluation."
    )
    return _drawn(panels, groups, "generalisation_gap", caption)


def gap(run: Run, metric: str) -> tuple[list[float], list[float]]:
    """How much better the class head is in training: `top1` or `loss` by epoch.

    An evaluation is compared with the newest log line that is not after it.
    """
    sign = -1 if metric == "loss" else 1
    logged_at, logged = run.series(TRAINED[metric])
    epochs, gaps = [], []
    for at, value in zip(*run.series(f"eval/class/{metric}"), strict=True):
        before = int(np.searchsorted(logged_at, at, side="right")) - 1
        if before >= 0:
            epochs.append(at)
            gaps.append(sign * (logged[before] - value))
    return epochs, gaps


def agreement(groups: Sequence[Group]) -> list[Image]:
    """Student against teacher, and the two tokens; nothing without a teacher."""
    panels = [(title, _lines(groups, name)) for name, title in TEACHER]
    return _drawn(
        panels,
        groups,
        "student_and_teacher",
        "Student and teacher are compared on the training batches, at temperature 1; "
        "the tokens on the evaluation split, after the last norm (the paper finds 0.93 "
        "for DeiT on ImageNet).",
    )


def _drawn(
    panels: Sequence[tuple[str, list[Line]]],
    groups: Sequence[Group],
    name: str,
    caption: str,
) -> list[Image]:
    """The panels that have lines; nothing where none has."""
    panels = [(title, lines) for title, lines in panels if lines]
    if not panels:
        return []
    drawn = figures.curves(panels, [g.name for g in groups])
    return [Image(name, drawn, caption)]


def _lines(groups: Sequence[Group], name: str, *, dashed: bool = False) -> list[Line]:
    """The lines of a metric; `{head}` in its name is the head that predicts."""
    lines = []
    for number, g in enumerate(groups):
        each = [run.series(name.format(head=run.head)) for run in g.runs]
        lines += _with_mean(number, each, dashed=dashed)
    return lines


def _with_mean(
    number: int, each: Sequence[tuple[list, list[float]]], *, dashed: bool = False
) -> list[Line]:
    """A line for each seed and, where there are several, their mean."""
    each = [(at, values) for at, values in each if at]
    lines = [Line(number, *one, dashed=dashed, faint=len(each) > 1) for one in each]
    if len(each) > 1:
        looked_up = [dict(zip(*one, strict=True)) for one in each]
        shared = sorted(set.intersection(*map(set, looked_up)))
        mean = [statistics.fmean(one[at] for one in looked_up) for at in shared]
        lines.append(Line(number, shared, mean, dashed=dashed))
    return lines
