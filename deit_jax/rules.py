"""Rules for the values of a config: what a field may hold, and how to say it."""

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from numbers import Real


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a field may hold."""

    expected: str  # the end of a message, "expected ..."
    accepts: Callable[[object], bool]


LIMITS = {
    "at least": operator.ge,
    "above": operator.gt,
    "at most": operator.le,
    "below": operator.lt,
}


def number(low=None, high=None, *, above=None, below=None) -> Rule:
    """A finite number in low .. high, or strictly `above` and `below`."""
    limits = dict(zip(LIMITS, (low, above, high, below), strict=True))
    limits = {word: limit for word, limit in limits.items() if limit is not None}
    finite = "" if {"at most", "below"} & limits.keys() else "finite "
    words = " and ".join(f"{word} {limit:g}" for word, limit in limits.items())

    def accepts(value) -> bool:
        return (
            isinstance(value, Real)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and all(LIMITS[word](value, limit) for word, limit in limits.items())
        )

    return Rule(f"a {finite}number {words}", accepts)


def whole(low: int, high: int | None = None) -> Rule:
    """A whole number in low .. high."""
    rule = number(low, high)
    return Rule(
        f"a whole {rule.expected[rule.expected.index('number') :]}",
        lambda value: isinstance(value, int) and rule.accepts(value),
    )


def choice(names: Sequence[str]) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda value: value in tuple(names))


def row(*rules: Rule) -> Rule:
    """A tuple with one value for each rule."""
    return Rule(
        f"{len(rules)} values: {'; '.join(rule.expected for rule in rules)}",
        lambda value: (
            isinstance(value, (tuple, list))
            and len(value) == len(rules)
            and all(rule.accepts(v) for rule, v in zip(rules, value, strict=True))
        ),
    )


def bounds(rule: Rule) -> Rule:
    """Two ascending values of one rule."""
    pair = row(rule, rule)
    return Rule(
        f"two ascending values, each {rule.expected}",
        lambda value: pair.accepts(value) and value[0] <= value[1],
    )


def channels(rule: Rule) -> Rule:
    """Three values, or one for all three channels."""
    return Rule(
        f"one value or three, each {rule.expected}",
        lambda value: any(
            one.accepts(value) for one in (rule, row(rule), row(rule, rule, rule))
        ),
    )


def optional(rule: Rule) -> Rule:
    return Rule(rule.expected, lambda value: value is None or rule.accepts(value))


TEXT = Rule("a string", lambda value: isinstance(value, str))
FLAG = Rule("True or False", lambda value: isinstance(value, bool))
