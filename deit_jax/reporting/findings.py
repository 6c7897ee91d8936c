"""What a group shows by itself, and which classes gain and lose between two."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from deit_jax.reporting.comparison import Sample, class_differences
from deit_jax.reporting.phrases import joined
from deit_jax.reporting.runs import Group, Run
from deit_jax.training.progress import clock

FEW = 3  # classes or pairs that a sentence has room for
EVALUATIONS = 4  # of a run, to say when its loss was lowest
RISE = 0.01  # of the lowest loss: less is no overfitting


def of_each(members: Sequence[Group]) -> list[tuple[str, str]]:
    """What each group shows, topic by topic."""
    found = []
    for topic, say in (
        ("Overfitting", overfitting),
        ("Calibration", calibration),
        ("Most confused", confused),
        ("Cost", cost),
    ):
        said = " ".join(filter(None, map(say, members)))
        if said:
            found.append((topic, said))
    return found


def overfitting(g: Group) -> str:
    """Training against validation at the end, and when the loss was lowest."""
    said = " ".join(filter(None, [_gap(g), _turn(g)]))
    return f"{g.name}: {said}" if said else ""


def _gap(g: Group) -> str:
    names = ("train/top1", "eval/class/top1")
    each = [[run.series(name, x="step")[1] for name in names] for run in g.finished]
    if not all(map(all, each)):
        return ""
    train, seen = (100 * statistics.fmean(one[n][-1] for one in each) for n in range(2))
    recipe = (g.runs[0].config.get("augment") or {}).get("recipe", "none")
    augmented = "" if recipe == "none" else f", augmented by {recipe},"
    return (
        f"at the end the class head is right on {train:.1f} % of the training images"
        f"{augmented} and on {seen:.1f} % of the evaluation images, a gap of "
        f"{train - seen:+.1f} points."
    )


def _turn(g: Group) -> str:
    lowest = [_lowest(run) for run in g.finished]
    if not all(lowest):
        return ""
    x, *_, end = lowest[0]
    at = joined(list(dict.fromkeys(f"{place:g}" for _, place, *_ in lowest)))
    low, last = (statistics.fmean(one[n] for one in lowest) for n in (2, 3))
    text = f"Validation loss was lowest at {x} {at} of {end:g} ({low:.3f})"
    if last == low:
        return f"{text}, the end: no sign of overfitting."
    if last <= (1 + RISE) * low:
        return f"{text} and {last:.3f} at the end: hardly any overfitting."
    return f"{text} and {last:.3f} at the end: it overfits."


def _lowest(run: Run) -> tuple | None:
    """The axis, where the loss was lowest, that loss, the last, and where that was."""
    x = "epoch" if all("epoch" in row for row in run.rows) else "step"
    at, losses = run.series("eval/class/loss", x=x)
    if len(losses) < EVALUATIONS:
        return None
    place = int(np.argmin(losses))
    return x, at[place], losses[place], losses[-1], at[-1]


def calibration(g: Group) -> str:
    """Whether a model is as often right as it is sure, with its mean confidence."""
    tables = [run.tables().get("calibration") for run in g.finished]
    if not all(tables):
        return ""
    bins = {
        name: np.nan_to_num(np.array([one[name] for one in tables], float))
        for name in ("count", "confidence", "accuracy")
    }
    count = bins["count"].sum(axis=1)
    sure, right = (
        ((bins["count"] * bins[name]).sum(axis=1) / count).mean()
        for name in ("confidence", "accuracy")
    )
    # Two standard errors of a share, of one run's images.
    noise = 2 * np.sqrt(max(right * (1 - right), 1 / count[0]) / count[0])
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
    matrix = _confusion(g)
    if matrix is None:
        return ""
    both = np.triu(matrix + matrix.T, 1)
    names = g.finished[0].summary["class_names"]
    pairs = []
    for place in np.argsort(-both, axis=None, kind="stable")[:FEW]:
        a, b = np.unravel_index(place, both.shape)
        if both[a, b]:
            share = 100 * both[a, b] / matrix.sum()
            pairs.append(f"{names[a]} and {names[b]} ({share:.1f} %)")
    if not pairs:
        return ""
    return f"{g.name}: {'; '.join(pairs)} of all images."


def _confusion(g: Group) -> np.ndarray | None:
    """Images of the row's class that are taken for the column's; seeds added up."""
    matrices = []
    for run in g.finished:
        if "confusion" in run.tables():
            matrices.append(np.array(run.tables()["confusion"]))
        elif run.predictions is not None:
            found = run.predictions[1]
            matrix = np.zeros((found.classes, found.classes), int)
            np.add.at(matrix, (found.labels, found.predicted), 1)
            matrices.append(matrix)
    return np.sum(matrices, axis=0) if matrices else None


def cost(g: Group) -> str:
    """Size, work and time of a run."""
    facts = [run.summary for run in g.finished]
    parts = []
    if parameters := facts[0].get("parameters"):
        parts.append(f"{parameters / 1e6:,.2f} million parameters")
    if flops := facts[0].get("flops_per_image"):
        parts.append(f"{flops / 1e9:,.3f} GFLOPs an image")
    whole = [
        f["seconds"] for f in facts if f.get("seconds") and not f.get("resumed_at_step")
    ]
    if whole:
        parts.append(f"{clock(statistics.fmean(whole))} of training")
    return f"{g.name}: {joined(parts)}." if parts else ""


def classes(
    members: Sequence[Group], samples: Mapping[Group, Sample]
) -> list[tuple[str, str]]:
    """Which classes gain and lose most against the first group, beyond chance."""
    first, *others = members
    said = []
    for g in others:
        each = [_f1(first), _f1(g)]
        if any(one is None for one in each):
            continue
        found = class_differences(samples[g], samples[first], each[::-1])
        if found is not None:
            said.append(_gains_and_losses(g, first, *found))
    if not said:
        return []
    margins = "Margins hold 95 % for all classes together."
    return [("Classes, by F1", " ".join([*said, margins]))]


def _f1(g: Group) -> np.ndarray | None:
    """[seeds, C], nan for a class without images."""
    found = [run.tables().get("per_class", {}).get("f1") for run in g.finished]
    return np.array(found, float) if all(found) else None


def _gains_and_losses(
    g: Group, first: Group, differences: np.ndarray, margins: np.ndarray
) -> str:
    names = g.finished[0].summary["class_names"]
    said = []
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
