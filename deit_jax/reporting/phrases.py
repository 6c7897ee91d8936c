"""Figures in words."""

from collections.abc import Sequence

from deit_jax.reporting.comparison import Estimate
from deit_jax.reporting.results import PERCENT


def joined(words: Sequence[str]) -> str:
    """`a, b and c`."""
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


def change(metric: str, of: Estimate) -> str:
    """A difference with its sign: `+1.25 points`, `-0.0312`."""
    if metric in PERCENT:
        return f"{100 * of.value:+.2f} points"
    return f"{of.value:+.4f}"


def interval(metric: str, of: Estimate) -> str:
    if metric in PERCENT:
        return f"{100 * of.low:.2f} to {100 * of.high:.2f}"
    return f"{of.low:.4f} to {of.high:.4f}"
