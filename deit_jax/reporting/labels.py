"""Names that come from elsewhere, as matplotlib's font can show them."""

import functools
import unicodedata

from matplotlib import font_manager


def readable(name: str, number: int, most: int = 28, *, kind: str = "class") -> str:
    """The name of a class or run without characters that the font lacks, in one line.

    Args:
      number: Stands, with `kind`, for a name without a readable letter.
      most: Characters; a longer name is shortened.
    """
    shown = _readable(name)
    if not any(c.isalnum() for c in shown):
        shown = f"{kind} {number}"
    return shorten(shown, most)


def shorten(name: str, most: int) -> str:
    """A name of at most `most` characters."""
    name = name if len(name) <= most else name[: most - 1] + "…"
    # matplotlib leaves out of a legend what begins with an underscore.
    return "\N{ZERO WIDTH SPACE}" + name if name.startswith("_") else name


def _readable(name: str) -> str:
    known = _characters()
    name = " ".join(unicodedata.normalize("NFC", name).split())
    return "".join(c if ord(c) in known else "?" for c in name)


@functools.cache
def _characters() -> frozenset[int]:
    path = font_manager.findfont("DejaVu Sans")  # matplotlib brings it
    return frozenset(font_manager.get_font(path).get_charmap())
