"""What the runs show, in words: sentences from their figures, and none beyond them."""

import itertools
from collections.abc import Sequence

from deit_jax.errors import joined
from deit_jax.reporting import effects, findings
from deit_jax.reporting.comparison import METRICS, Estimate, difference, sample
from deit_jax.reporting.document import Points
from deit_jax.reporting.runs import Group

SURE, CHANCE = "That is more than chance.", "That could be chance."


def points(members: Sequence[Group]) -> list[Points]:
    """All that can be said of finished groups on the same data."""
    said = []
    if len(members) > 1:
        said += best(members)
        for a, b in itertools.permutations(members, 2):
            said += effects.effect(a, b)
        said += findings.classes(members)
    said += findings.of_each(members)
    return [Points([*said, ("How sure", caveats(members))])]


def best(members: Sequence[Group]) -> list[tuple[str, str]]:
    """Who is best by top-1, by how much, and by which of the other metrics."""
    said, others = [], {SURE: {}, CHANCE: {}}
    for name, title, more, _ in METRICS:
        there = [g for g in members if sample(g).mean(name) is not None]
        if len(there) < 2:
            continue
        there.sort(key=lambda g, name=name: sample(g).mean(name), reverse=more)
        first, second = there[:2]
        ahead = difference(first, second, name)
        if name == "top1":
            said.append(("Best", _lead(first, second, ahead)))
        elif ahead is not None and ahead.value != 0:
            titles = others[CHANCE if ahead.could_be_chance else SURE]
            titles.setdefault(first.name, []).append(title.removesuffix(" %"))
    sentences = []
    for sureness, leads in others.items():
        if leads:
            each = (
                f"{name} is best by {joined(found)}" for name, found in leads.items()
            )
            sentences.append(f"{'; '.join(each)}. {sureness}")
    if sentences:
        said.append(("The other metrics", " ".join(sentences)))
    return said


def _lead(first: Group, second: Group, ahead: Estimate | None) -> str:
    top1 = f"{100 * sample(first).mean('top1'):.2f} %"
    if ahead is None:
        return f"By top-1 {first.name} is best with {top1}."
    if ahead.value == 0:
        return f"{first.name} and {second.name} have the same top-1, {top1}."
    points, interval = ahead.shown("top1")
    return (
        f"By top-1 {first.name} is best with {top1}, {points} points before "
        f"{second.name} (95 % interval {interval}). "
        f"{CHANCE if ahead.could_be_chance else SURE}"
    )


def caveats(members: Sequence[Group]) -> str:
    """What the intervals are over, and what they leave out."""
    said = ["Each 95 % interval is by itself: of twenty, one misses."]
    several = [g for g in members if len(g.finished) > 1]
    if several:
        counted = joined([f"{g.name} ({len(g.finished)})" for g in several])
        said.append(
            f"There are several seeds of {counted}: where both sides of a difference "
            "have them, its interval covers test images and seeds."
        )
    if single := [g.name for g in members if g not in several]:
        said.append(
            f"There is one seed of {joined(single)}: such an interval covers the test "
            "images alone, and how much another seed would change is not known."
        )
    unpaired = [g.name for g in members if sample(g).images is None]
    if unpaired and len(members) > 1:
        said.append(
            f"Without predictions.npz: {joined(unpaired)}. Their differences are taken "
            "as if others had been tested on other images: such an interval is rather "
            "too wide than too narrow."
        )
    return " ".join(said)
