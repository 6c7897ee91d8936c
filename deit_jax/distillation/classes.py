"""The classes of a teacher and those of a data set, compared by name."""

from collections.abc import Sequence

from deit_jax.data.sources.layout import plain_name
from deit_jax.errors import listed


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
