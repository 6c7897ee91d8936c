"""Names of splits, in the syntax of TFDS."""

import re
from collections.abc import Collection

from deit_jax.errors import InputError

# What a folder or a file is named, the first found counts; `_set` may follow.
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
STAND_IN = {"val": "test", "test": "val"}  # people have one of them
SYNTAX = "; a slice of one is written train[:1000] or train[80%:], as in TFDS."
SLICES = (
    "--config.dataset.train_split='train[:90%]' "
    "--config.dataset.eval_split='train[90%:]'\n"
    "(teacher.finetune has --train_split and --eval_split)"
)


def kind_of(name: str) -> str | None:
    """`val` for `validation`, `Dev` or `valid_set`; None of what names no split."""
    spelt = spelling(name)
    return next((kind for kind in SPLITS if spelt in SPLITS[kind]), None)


def spelling(name: str) -> str:
    return re.sub(r"[ _-]?set$", "", name.strip().lower())


def choose_split(
    split: str, found: Collection[str], name: str
) -> tuple[str, str, list[str]]:
    """Which of the splits of a data set is meant.

    Args:
      split: As asked for, with its slice.
      found: The splits that there are, those in `SPLITS` by their plain names.
      name: The data set's.

    Returns:
      The split in `found`; it with the slice; notes.
    """
    base = split.partition("[")[0]
    asked = base if base in found else kind_of(base)
    chosen = asked if asked in found else STAND_IN.get(asked)
    if chosen not in found:
        has = f"{name} has {', '.join(found) or 'none'}"
        if asked in STAND_IN:
            raise InputError(
                f"{has}, and neither val nor test to evaluate on. Take a slice of the "
                f"training images:\n  {SLICES}"
            )
        raise InputError(f"unknown split {split!r}. {has}{SYNTAX}")
    notes = [] if chosen == asked else [f"{name}: {chosen} is taken for {base}"]
    return chosen, chosen + split[len(base) :], notes


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
        raise InputError(f"unknown split {split!r}. Known: {known}{SYNTAX}")
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
