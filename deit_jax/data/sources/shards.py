"""The files of a data set that is cut into many, and the split that each belongs to.

A name says the split as on the Hugging Face Hub: `train-00000-of-00004.parquet`,
`imagenet1k-validation-07.tar`, `data/train/0000.parquet`. Files whose names say none
are `train`.
"""

import glob
import itertools
import re
from collections.abc import Iterable
from pathlib import Path

from deit_jax.data.sources.split import kind_of
from deit_jax.errors import InputError, listed

COUNTED = re.compile(r"(?P<base>\w+)-(?P<number>\d{5})-of-(?P<count>\d{5})[^/]*$")
BRACES = re.compile(r"\{([^{}]*)\}")


def by_split(paths: Iterable[str], name: str) -> dict[str, list[str]]:
    """The files of each split of the data set `name`, in the order of their names.

    Args:
      paths: Relative to the data set's folder: what lies above says nothing of it.
    """
    found: dict[str, list[str]] = {}
    series, there = set(), set()
    for path in sorted(paths):
        found.setdefault(split_of(path), []).append(path)
        if match := COUNTED.search(path):
            series.add((path[: match.start("number")], match["count"]))
            there.add(path[: match.end("count")])
    announced = {
        f"{before}{number:05}-of-{count}"
        for before, count in series
        for number in range(int(count))
    }
    if missing := sorted(announced - there):
        raise InputError(
            f"{name}: {len(missing):,} of {len(announced):,} files are missing: "
            f"{listed(missing)}. Bring them back, or start the download again."
        )
    return found


def split_of(path: str) -> str:
    """`train`, `val`, `test`, or what stands before `-00000-of-00004`."""
    *folders, file = Path(path).parts
    counted = COUNTED.search(path)
    words = re.split(r"[^A-Za-z]+", file.partition(".")[0])
    named = [counted["base"]] if counted else []
    for word in (*named, *words, *reversed(folders)):
        if kind := kind_of(word):
            return kind
    return named[0] if named else "train"


def expand(pattern: str) -> list[str]:
    """The files that `{000..099}`, `{a,b}` and wildcards in a path stand for."""
    paths = [""]
    for text, braces in itertools.zip_longest(*[iter(BRACES.split(pattern))] * 2):
        words = _words(braces) if braces is not None else [""]
        paths = [path + text + word for path in paths for word in words]
    files = {path: glob.glob(path) for path in paths}
    if missing := [path for path in paths if not files[path]]:
        raise InputError(
            f"{len(missing):,} of the {len(paths):,} files of {pattern} are missing: "
            f"{listed(missing)}. Bring them back, or give those that there are."
        )
    return sorted(itertools.chain(*files.values()))


def _words(braces: str) -> list[str]:
    first, dots, last = braces.partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        numbers = range(int(first), int(last) + 1)
        return [str(number).zfill(len(first)) for number in numbers]
    return braces.split(",")
