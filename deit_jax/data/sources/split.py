"""Names of splits, in the syntax of TFDS."""

import re

from deit_jax.errors import InputError


def parse_split(split: str, lengths: dict[str, int]) -> tuple[str, int, int]:
    """Resolves a split in TFDS syntax to `(base split, start, stop)`.

    Args:
      split: `train`, `train[:45000]`, `train[10%:90%]`, `test[-100:]`.
      lengths: The number of examples of each base split.

    Raises:
      InputError: The syntax or the base split is unknown, or the slice is empty.
    """
    match = re.fullmatch(r"(\w+)(?:\[(-?\d{1,18}%?)?:(-?\d{1,18}%?)?\])?", split)
    if not match or match[1] not in lengths:
        known = ", ".join(f"{k} ({n})" for k, n in lengths.items())
        raise InputError(
            f"unknown split {split!r}. Known: {known}, or a slice of one in TFDS "
            "syntax, such as train[:1000] or train[80%:]."
        )
    length = lengths[match[1]]

    def position(text: str | None, default: int) -> int:
        if text is None:
            return default
        value = int(text.rstrip("%"))
        if text.endswith("%"):
            value = round(length * value / 100)  # "closest", TFDS's rounding
        return min(max(value + length if value < 0 else value, 0), length)

    start, stop = position(match[2], 0), position(match[3], length)
    if start >= stop:
        raise InputError(
            f"the split {split!r} holds no image: {match[1]} has {length}."
        )
    return match[1], start, stop
