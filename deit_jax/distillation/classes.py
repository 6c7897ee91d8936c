"""The classes of a teacher: compared by name with a data set's; and known at all."""

from collections.abc import Sequence

import numpy as np

from deit_jax.data.sources.layout import plain_name
from deit_jax.errors import InputError, listed


def difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Says how the classes `theirs` differ from `ours`; empty where they do not."""
    theirs, ours = [*map(plain_name, theirs)], [*map(plain_name, ours)]
    known, wanted = set(theirs), set(ours)
    missing = [repr(name) for name in ours if name not in known]
    added = [repr(name) for name in theirs if name not in wanted]
    words = [f"missing: {listed(missing)}"] if missing else []
    words += [f"too many: {listed(added)}"] if added else []
    if words or theirs == ours:
        return "; ".join(words)
    moved = [
        f"class {number} is {there!r} there and {here!r} here"
        for number, (there, here) in enumerate(zip(theirs, ours, strict=True))
        if there != here
    ]
    return f"the order is another, {listed(moved)}"


def match(teacher, source) -> tuple[list[int], str]:
    """Finds the classes of `source` among the teacher's, by name.

    Where nothing says the teacher's, they are taken to be those of `source`.

    Args:
      teacher: Has `num_classes`, `class_names` (or None) and `arch`.
      source: See `deit_jax.data.sources`.

    Returns:
      For each class of `source` the column of the teacher's logits, and a sentence
      about it, which is empty where they have the same names in the same order.

    Raises:
      InputError: The teacher has other classes, or without names another number.
    """
    names, ours = teacher.class_names, [*map(plain_name, source.class_names)]
    names = names and [*map(plain_name, names)]
    columns, words = list(range(teacher.num_classes)), ""
    wrong = f"it has {len(columns)}, not {len(ours)}"
    if names is None:
        words = (
            "the teacher's file names no classes: its logits are taken to be those of "
            f"{source.name}, in that order"
        )
    elif set(names) != set(ours):
        columns, wrong = [], difference(names, ours)
    elif names != ours:
        words = f"the teacher's classes are put into the order of {source.name} by name"
        place = {name: column for column, name in enumerate(names)}
        columns = [place[name] for name in ours]
    if len(columns) == len(ours):
        return columns, words
    raise InputError(
        f"the teacher does not have the classes of {source.name} ({wrong}). Train one: "
        f"python -m teacher.finetune --dataset={source.name} --arch={teacher.arch} "
        "--out=DIR"
    )


def check_strength(
    top1: float,
    counts: np.ndarray,
    split: str,
    advice: str,
    name: str = "the teacher",
) -> None:
    """Refuses a teacher near chance, which points at a wrong file or preprocessing.

    Chance is the share of the most frequent class: what one constant answer gets. A
    teacher has to come a tenth of the way from there to 1, and more than three
    standard errors of chance above it.

    Args:
      top1: Measured accuracy in 0 .. 1.
      counts: Images of each class in the split, int [C].
      split, name: Of the data and the teacher, for the message, which ends with
        `advice`.
    """
    chance = counts.max() / counts.sum()
    error = np.sqrt(chance * (1 - chance) / counts.sum())
    needed = min(max(chance + 0.1 * (1 - chance), chance + 3 * error), 1.0)
    if top1 < needed:
        raise InputError(
            f"{name} is near chance: top-1 {top1:.1%} on {split}, where one "
            f"constant answer gets {chance:.1%} and {needed:.1%} is the least. {advice}"
        )
