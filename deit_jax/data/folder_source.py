"""A folder of pictures: `root/train/<class>/*` and `root/val/<class>/*`.

The classes are the folders in `train`, sorted by name. Pictures lie in a class folder
or deeper; files that are no pictures and hidden ones are passed over and counted.
Links are followed, also those that leave the root.

Pictures are ordered by a hash of `<class>/<file>`, not by class, so that a slice such
as `train[:90%]` holds every class in about its share, on every machine; a picture
that is added later moves no other picture's place in the order.

The fingerprint covers split, class names, relative paths, sizes and the bytes of the
files: of all of them up to 1 GiB, beyond that of 1,024 evenly spaced ones. It does not
change when the folder is copied elsewhere.
"""

import collections
import dataclasses
import hashlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deit_jax.data import fingerprint as fingerprints
from deit_jax.data.encoded_source import EncodedSource
from deit_jax.data.split import parse_split
from deit_jax.errors import InputError

PREFIX = "folder:"
ENDINGS = frozenset(
    [".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"]
)
# Made by macOS, Windows, Synology: pictures in them are thumbnails or leftovers.
SYSTEM_FOLDERS = frozenset(("__MACOSX", "$RECYCLE.BIN", "@eaDir"))
# Whichever exists stands in for the other: people have one of them.
EVALUATION_SPLITS = ("val", "test")
LAYOUT = (
    "A folder of pictures is laid out as train/<class>/*.jpg and val/<class>/*.jpg "
    "(or test/)"
)
SLICES = (
    "--config.dataset.train_split='train[:90%]' "
    "--config.dataset.eval_split='train[90%:]'"
)


@dataclasses.dataclass(eq=False, repr=False)
class FolderRecords:
    """Files under one folder.

    Attributes:
      directory: Where the paths start.
      paths: Relative to it, one a picture.
      labels: int32 [N].
    """

    directory: str
    paths: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices) -> list[tuple[bytes, int]]:
        return [(self._bytes(index), int(self.labels[index])) for index in indices]

    def where(self, index: int) -> str:
        return os.path.join(self.directory, self.paths[index])

    def _bytes(self, index: int) -> bytes:
        path = self.where(index)
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def open_folder(name: str, split: str) -> EncodedSource:
    """Opens a split of a folder of pictures.

    Args:
      name: `folder:` and the path of the root; a relative one starts at the working
        directory.
      split: `train`, `val` or `test`, or a slice: `train[:90%]`. Where the folder has
        only one of `val` and `test`, it serves for both; the source's `split` says
        which it is.

    Raises:
      InputError: The root or the split is missing, there are fewer than two classes,
        a class has no picture, or the split's classes are not those of `train`.
    """
    root = Path(name.removeprefix(PREFIX)).expanduser()
    train, splits = _splits(root, name)
    split = _resolve(root, split, splits)
    base = split.partition("[")[0]
    class_names = _subfolders(train)
    if len(class_names) < 2:
        found = f"only one class, {class_names[0]!r}" if class_names else "no class"
        raise InputError(
            f"{train} holds {found}; at least two are needed. {LAYOUT}, one folder a "
            "class."
        )
    directory = root / base
    _check_classes(train, class_names, directory)

    passed_over = collections.Counter()
    found = []  # (order, relative path, label, size)
    for label, class_name in enumerate(class_names):
        pictures = list(find_pictures(directory, class_name, passed_over))
        if not pictures:
            others = _counted(passed_over)
            raise InputError(
                f"the class folder {directory / class_name} holds no picture "
                f"({', '.join(sorted(ENDINGS))}). "
                + (f"Passed over so far: {others}. " if others else "")
                + "Fill it, convert its files, or remove the class from every split."
            )
        found += [(_order(path), path, label, size) for path, size in pictures]
    found.sort()
    _, start, stop = parse_split(split, {base: len(found)})
    _, paths, labels, sizes = zip(*found[start:stop], strict=True)

    records = FolderRecords(str(directory), paths, np.array(labels, np.int32))
    read = fingerprints.positions(len(paths), sum(sizes))
    _, sums = fingerprints.scan(records, read)
    portable = "\n".join(path.replace(os.sep, "/") for path in paths)
    return EncodedSource(
        name=name,
        split=split,
        class_names=class_names,
        records=records,
        fingerprint=fingerprints.fingerprint(
            "folder",
            "1",
            split,
            os.fsencode("\n".join(class_names)),
            os.fsencode(portable),
            records.labels,
            np.array(sizes, np.int64),
            sums,
        ),
        passed_over=dict(passed_over),
    )


def _splits(root: Path, name: str) -> tuple[Path, list[str]]:
    """The training folder and the names of the splits that exist."""
    if not name.removeprefix(PREFIX):
        raise InputError(
            f"{PREFIX!r} needs a path: {PREFIX}/path/to/pictures. {LAYOUT}."
        )
    if not root.is_dir():
        what = "is a file; unpack it" if root.exists() else "does not exist"
        raise InputError(
            f"{name!r}: the folder {Path(root).absolute()} {what}. {LAYOUT}."
        )
    splits = [s for s in ("train", *EVALUATION_SPLITS) if (root / s).is_dir()]
    if "train" in splits:
        return root / "train", splits
    folders = _subfolders(root)
    message = f"{root} has no folder named train. {LAYOUT}."
    classes = [f for f in folders if f not in splits]
    if classes:
        shown = " ".join(shlex.quote(f) for f in classes[:20])
        more = " ..." if len(classes) > 20 else ""
        message += (
            f" If its folders ({', '.join(classes[:5])}{', ...' * (len(classes) > 5)}) "
            f"are the classes:\n  cd {shlex.quote(str(root))} && mkdir train && "
            f"mv {shown}{more} train/"
        )
        if not splits:
            message += f"\nand evaluate on a slice of them:\n  {SLICES}"
    raise InputError(message)


def _resolve(root: Path, split: str, splits: list[str]) -> str:
    """`split` with `val` and `test` standing in for each other."""
    base = split.partition("[")[0]
    if base in EVALUATION_SPLITS and base not in splits:
        for other in EVALUATION_SPLITS:
            if other in splits:
                return other + split[len(base) :]
        raise InputError(
            f"{root} has neither val nor test to evaluate on. Make one, or take a "
            f"slice of the training pictures:\n  {SLICES}"
        )
    if base not in splits:
        raise InputError(
            f"unknown split {split!r}. {root} has {', '.join(splits)}; a slice of one "
            "is written in TFDS syntax, such as train[:1000] or train[80%:]."
        )
    return split


def _check_classes(train: Path, class_names: tuple[str, ...], directory: Path) -> None:
    others = _subfolders(directory)
    if others == class_names:
        return
    missing = sorted(set(class_names) - set(others))
    extra = sorted(set(others) - set(class_names))
    sides = []
    for names, here, there in ((missing, train, directory), (extra, directory, train)):
        if names:
            shown = ", ".join(names[:10]) + ", ..." * (len(names) > 10)
            sides.append(f"in {here} but not in {there}: {shown}")
    raise InputError(
        f"{train.name} and {directory.name} have different classes ({'; '.join(sides)})"
        ". Both need the same folders, in the same spelling."
    )


def _subfolders(directory: Path) -> tuple[str, ...]:
    with _listing(directory) as entries:
        return tuple(sorted(e.name for e in entries if _is_dir(e) and not _hidden(e)))


def find_pictures(
    directory: Path,
    relative: str,
    passed_over: collections.Counter,
    ancestors: tuple[str, ...] = (),
) -> Iterator[tuple[str, int]]:
    """Finds the pictures in a folder and the folders below it.

    Args:
      relative: The folder, seen from `directory`.
      passed_over: Counts, by ending, the files that are no pictures.
      ancestors: Real paths of the folders above, which a link may lead back to.

    Yields:
      (path relative to `directory`, size in bytes), by name.
    """
    here = os.path.realpath(directory / relative)
    if here in ancestors:  # a link to a folder that contains it
        return
    with _listing(directory / relative) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    for entry in entries:
        path = os.path.join(relative, entry.name)
        ending = os.path.splitext(entry.name)[1].lower()
        if _hidden(entry):
            passed_over["hidden"] += 1
        elif _is_dir(entry):
            yield from find_pictures(directory, path, passed_over, (*ancestors, here))
        elif ending in ENDINGS:
            try:
                yield path, entry.stat().st_size
            except OSError as error:
                raise InputError(
                    f"{entry.path} cannot be read: {error.strerror}. If it is a link, "
                    "what it points to is gone."
                ) from error
        else:
            passed_over[ending or "no ending"] += 1


def _listing(directory: Path):
    try:
        return os.scandir(directory)
    except OSError as error:
        raise InputError(f"{directory} cannot be listed: {error.strerror}.") from error


def _is_dir(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _hidden(entry: os.DirEntry) -> bool:
    return entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS


def _order(path: str) -> bytes:
    name = os.fsencode(path.replace(os.sep, "/"))
    return hashlib.sha256(name).digest()


def _counted(passed_over: collections.Counter) -> str:
    return ", ".join(f"{n} {ending}" for ending, n in passed_over.most_common(5))
