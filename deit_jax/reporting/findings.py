"""What a group shows by itself, and which classes gain and lose between two."""

import statistics
from collections.abc import Sequence

import numpy as np

from deit_jax.errors import joined
from deit_jax.reporting.classes import confusion, pooled_calibration
from deit_jax.reporting.comparison import class_differences
from deit_jax.reporting.runs import Group
from deit_jax.training.progress import clock

FEW = 3  # classes or pairs that a sentence has room for
EVALUATIONS = 4  # of a run, to say when its loss was lowest
RISE = 0.01  # of the lowest loss: less is no overfitting


def of_each(members: Sequence[Group]) -> list[tuple[str, ...]]:
    """What each group shows, topic by topic."""
    found = []
    for topic, say in (
        ("Overfitting", overfitting),
        ("Calibration", calibration),
        ("Most confused", confused),
        ("Cost", cost),
    ):
        if said := list(filter(None, map(say, members))):
            found.append((topic, *said))
    return found


def overfitting(g: Group) -> str:
    """Training against validation at the end, and when the loss was lowest."""
    said = " ".join(filter(None, [_gap(g), _turn(g)]))
    return f"{g.name}: {said}" if said else ""


def _gap(g: Group) -> str:
    names = ("train/top1", "eval/class/top1")
    each = [[run.series(name)[1] for name in names] for run in g.finished]
    if not all(map(all, each)):
        return ""
    train, seen = (100 * statistics.fmean(one[n][-1] for one in each) for n in range(2))
    recipe = g.setting("augment", "recipe")
    augmented = "" if recipe == "none" else f", augmented (recipe {recipe}),"
    return (
        f"at the end the class head is right on {train:.1f} % of the training images"
        f"{augmented} and on {seen:.1f} % of the evaluation images, a gap of "
        f"{train - seen:+.1f} points."
    )


def _turn(g: Group) -> str:
    curves = [run.series("eval/class/loss") for run in g.finished]
    if any(len(losses) < EVALUATIONS for _, losses in curves):
        return ""
    at = [epochs[int(np.argmin(losses))] for epochs, losses in curves]
    low = statistics.fmean(min(losses) for _, losses in curves)
    last = statistics.fmean(losses[-1] for _, losses in curves)
    where = joined(list(dict.fromkeys(f"{epoch:g}" for epoch in at)))
    end = curves[0][0][-1]
    text = f"Validation loss was lowest at epoch {where} of {end:g} ({low:.3f})"
    if last == low:
        return f"{text}, the end: no sign of overfitting."
    if last <= (1 + RISE) * low:
        return f"{text} and {last:.3f} at the end: hardly any overfitting."
    return f"{text} and {last:.3f} at the end: it overfits."


def calibration(g: Group) -> str:
    """Whether a model is as often right as it is sure, with its mean confidence."""
    if not g.tables("calibration"):
        return ""
    count, *means = pooled_calibration(g)
    sure, right = (float((count * mean).sum() / count.sum()) for mean in means)
    # Two standard errors of a share, of one run's images.
    images = count.sum() / len(g.tables("calibration"))
    noise = 2 * np.sqrt(max(right * (1 - right), 1 / images) / images)
    how = "as sure as it is right, but for chance"
    if abs(sure - right) > noise:
        how = f"{'surer' if sure > right else 'less sure'} than it is right"
    ece = [run.heads()[run.head].get("ece") for run in g.finished]
    error = f"; ECE {statistics.fmean(ece):.3f}" if None not in ece else ""
    return (
        f"{g.name} is {how}: mean confidence {100 * sure:.1f} %, accuracy "
        f"{100 * right:.1f} %{error}."
    )


def confused(g: Group) -> str:
    """The pairs of classes that are taken for each other most often, both ways."""
    matrix = confusion(g)
    if matrix is None:
        return ""
    both = np.triu(matrix + matrix.T, 1)
    pairs = []
    for place in np.argsort(-both, axis=None, kind="stable")[:FEW]:
        a, b = np.unravel_index(place, both.shape)
        if both[a, b]:
            share = 100 * both[a, b] / matrix.sum()
            pairs.append(f"{g.class_names[a]} and {g.class_names[b]} ({share:.1f} %)")
    return f"{g.name}: {'; '.join(pairs)} of all images." if pairs else ""


def cost(g: Group) -> str:
    """Size, work and time of a run."""
    facts = [run.summary for run in g.finished]
    parts = []
    if parameters := facts[0].get("parameters"):
        parts.append(f"{parameters / 1e6:,.2f} million parameters")
    if flops := facts[0].get("flops_per_image"):
        parts.append(f"{flops / 1e9:,.3f} GFLOPs an image")
    if seconds := [f["seconds"] for f in facts if f.get("seconds")]:
        parts.append(f"{clock(statistics.fmean(seconds))} of training")
    return f"{g.name}: {joined(parts)}." if parts else ""


def classes(members: Sequence[Group]) -> list[tuple[str, ...]]:
    """Which classes gain and lose most against the first group, beyond chance."""
    first, *others = members
    said = []
    for g in others:
        found = class_differences(g, first)
        if found is not None:
            said.append(_gains_and_losses(g, first, *found))
    if not said:
        return []
    said[-1] += " Margins hold 95 % for all classes together."
    return [("Classes, by F1", *said)]


def _gains_and_losses(
    g: Group, first: Group, differences: np.ndarray, margins: np.ndarray
) -> str:
    names, said = g.class_names, []
    for verb, sign in (("gains", 1), ("loses", -1)):
        beyond = np.flatnonzero(sign * differences > margins)
        top = beyond[np.argsort(-sign * differences[beyond], kind="stable")]
        shown = [f"{names[c]} ({differences[c]:+.3f} ± {margins[c]:.3f})" for c in top]
        if shown:
            more = f" ({len(shown)} classes in all)" if len(shown) > FEW else ""
            said.append(f"{verb} most in {joined(shown[:FEW])}{more}")
        else:
            said.append(f"{verb} in none")
    return f"Against {first.name}, beyond chance, {g.name} {joined(said)}."
