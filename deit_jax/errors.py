"""The one exception that a user, not a programmer, has to read."""

import textwrap
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """Something that the user gave cannot work.

    The message says what was given, what was expected, and how to fix it. Commands
    print it without a traceback and exit with code 2; everything else that is
    raised is a defect of the program and keeps its traceback.
    """


def joined(words: Sequence[str]) -> str:
    """`a, b and c`."""
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


def listed(words: Iterable[str]) -> str:
    """The first of many words, for a message."""
    return textwrap.shorten(", ".join(words), 200, placeholder=" ...")
