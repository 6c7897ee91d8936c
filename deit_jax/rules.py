"""Rules for the values of a config: what a field may hold, and how to say it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from numbers import Real


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a field may hold.

    Attributes:
      expected: The end of the message, "expected ...".
      accepts: Whether a value is allowed.
    """

    expected: str
    accepts: Callable[[object], bool]


def number(low=-math.inf, high=math.inf, *, above=None, below=None) -> Rule:
    """A finite number in low .. high, or strictly `above` and `below`."""
    finite = "" if high < math.inf or below is not None else "finite "
    words = [
        *([f"at least {low:g}"] if low > -math.inf else []),
        *([f"above {above:g}"] if above is not None else []),
        *([f"at most {high:g}"] if high < math.inf else []),
        *([f"below {below:g}"] if below is not None else []),
    ]

    def accepts(value) -> bool:
        return (
            isinstance(value, Real)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and low <= value <= high
            and (above is None or value > above)
            and (below is None or value < below)
        )

    return Rule(f"a {finite}number {' and '.join(words)}", accepts)


def whole(low: int, high: float = math.inf) -> Rule:
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
    same = len({rule.expected for rule in rules}) == 1
    each = rules[0].expected if same else "; ".join(rule.expected for rule in rules)
    return Rule(
        f"{len(rules)} values, each {each}" if same else f"{len(rules)} values: {each}",
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
