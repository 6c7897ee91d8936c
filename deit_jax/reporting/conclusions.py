"""What the runs show, in words: sentences from their figures, and none beyond them."""

import itertools
import statistics
from collections.abc import Mapping, Sequence

from deit_jax.reporting import effects, findings
from deit_jax.reporting.comparison import Estimate, Sample, difference
from deit_jax.reporting.document import Points, Text
from deit_jax.reporting.phrases import interval, joined
from deit_jax.reporting.results import METRICS
from deit_jax.reporting.runs import Group

Samples = Mapping[Group, Sample]
Said = list[tuple[str, str]]
SURENESS = {
    True: "That is more than chance.",
    False: "That could be chance.",
    None: "Whether by chance cannot be told without predictions.npz.",
}


def sentences(members: Sequence[Group], samples: Samples, label: str) -> list:
    """All that can be said of finished groups on the same data.

    Args:
      label: Names the data where there are others.
    """
    points = []
    if len(members) > 1:
        points += best(members, samples)
        for a, b in itertools.permutations(members, 2):
            points += effects.effect(a, b, samples)
        points += findings.classes(members, samples)
    points += findings.of_each(members)
    points.append(("How sure", caveats(members, samples)))
    return [*([Text(label)] if label else []), Points(points)]


def best(members: Sequence[Group], samples: Samples) -> Said:
    """Who is best by top-1, by how much, and by which of the other metrics."""
    points, others = [], {}
    for name, title, more, _ in METRICS:
        ranked = _ranked(members, samples, name, more)
        if len(ranked) < 2:
            continue
        first, second = ranked[:2]
        ahead = difference(samples[first], samples[second], name)
        if name == "top1":
            points.append(("Best", _lead(first, second, samples, ahead)))
            continue
        sure = None if ahead is None else not ahead.could_be_chance
        others.setdefault((sure, first.name), []).append(title.removesuffix(" %"))
    said = []
    for sure, sentence in SURENESS.items():
        leads = [
            f"{name} is best by {joined(titles)}"
            for (how, name), titles in others.items()
            if how is sure
        ]
        if leads:
            said.append(f"{'; '.join(leads)}. {sentence}")
    return [*points, ("The other metrics", " ".join(said))] if said else points


def _ranked(members, samples: Samples, name: str, more: bool) -> list[Group]:
    there = [g for g in members if name in samples[g].values]
    return sorted(
        there, key=lambda g: statistics.fmean(samples[g].values[name]), reverse=more
    )


def _lead(first: Group, second: Group, samples: Samples, ahead: Estimate | None) -> str:
    top1 = f"{100 * statistics.fmean(samples[first].values['top1']):.2f} %"
    if ahead is None:
        return f"By top-1 {first.name} is best with {top1}."
    if ahead.value == 0:
        return f"{first.name} and {second.name} have the same top-1, {top1}."
    return (
        f"By top-1 {first.name} is best with {top1}, {100 * ahead.value:.2f} points "
        f"before {second.name} (95 % interval {interval('top1', ahead)}). "
        f"{SURENESS[not ahead.could_be_chance]}"
    )


def caveats(members: Sequence[Group], samples: Samples) -> str:
    """What the intervals are over, and what they leave out."""
    said = ["Each 95 % interval is by itself: of twenty, one misses."]
    if several := [f"{g.name} ({samples[g].seeds})" for g in members if _several(g)]:
        said.append(
            f"There are several seeds of {joined(several)}: where both sides of a "
            "difference have them, its interval covers test images and seeds."
        )
    if single := [g.name for g in members if not _several(g)]:
        said.append(
            f"There is one seed of {joined(single)}: such an interval covers the test "
            "images alone, and how much another seed would change is not known."
        )
    unpaired = [g.name for g in members if samples[g].images is None]
    if unpaired and len(members) > 1:
        said.append(
            f"Without predictions.npz: {joined(unpaired)}. Their differences are taken "
            "as if others had been tested on other images: such an interval is rather "
            "too wide than too narrow."
        )
    return " ".join(said)


def _several(g: Group) -> bool:
    return len(g.finished) > 1
