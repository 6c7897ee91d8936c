"""A folder of images: `root/train/<class>/*` and `root/val/<class>/*`.

The classes are the folders in `train`, sorted by name. Images lie in a class folder
or deeper; files that are no images and hidden ones are passed over and counted.
Links are followed, also those that leave the root: many data sets are folders of links,
and whoever can make one in a folder could copy what it points to. Pipes and devices are
passed over, whatever their names.

Images are ordered by a hash of `<class>/<file>`, not by class, so that a slice such
as `train[:90%]` holds every class in about its share, on every machine; an image
that is added later moves no other image's place in the order.

The fingerprint covers split, class names, relative paths, sizes and the bytes of the
files: of all of them up to 1 GiB, beyond that of 1,024 evenly spaced ones. It does not
change when the folder is copied elsewhere.
"""

import collections
import dataclasses
import errno
import hashlib
import os
import shlex
import stat
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deit_jax.data.sources import fingerprints
from deit_jax.data.sources.encoded import EncodedSource
from deit_jax.data.sources.split import parse_split
from deit_jax.errors import InputError

PREFIX = "folder:"
ENDINGS = frozenset(
    [".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"]
)
# Of an encoded image: Pillow's limit of pixels, uncompressed, takes 0.5 GB.
MAX_BYTES = 2**30
# What a network disk says that is away for a moment, and a file that is not there yet.
TRANSIENT = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOENT)
RETRY_SECONDS = (0.3, 0.6, 1.2)
# Made by macOS, Windows, Synology: images in them are thumbnails or leftovers.
SYSTEM_FOLDERS = frozenset(("__MACOSX", "$RECYCLE.BIN", "@eaDir"))
# Whichever exists stands in for the other: people have one of them.
EVALUATION_SPLITS = ("val", "test")
LAYOUT = (
    "A folder of images is laid out as train/<class>/*.jpg and val/<class>/*.jpg "
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
      paths: Relative to it, one an image.
      labels: int32 [N].
    """

    directory: str
    paths: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices) -> Iterator[tuple[bytes, int]]:
        for index in indices:
            yield read_image_file(self.where(index)), int(self.labels[index])

    def where(self, index: int) -> str:
        return os.path.join(self.directory, self.paths[index])


def open_folder(name: str, split: str) -> EncodedSource:
    """Opens a split of a folder of images.

    Args:
      name: `folder:` and the path of the root; a relative one starts at the working
        directory.
      split: `train`, `val` or `test`, or a slice: `train[:90%]`. Where the folder has
        only one of `val` and `test`, it serves for both; the source's `split` says
        which it is.

    Raises:
      InputError: The root or the split is missing, there are fewer than two classes,
        a class has no image, or the split's classes are not those of `train`.
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
    _check_names(train, class_names)
    found = []  # (order, relative path, label, size)
    for label, class_name in enumerate(class_names):
        pictures = list(find_image_files(directory, class_name, passed_over))
        if not pictures:
            others = _counted(passed_over)
            raise InputError(
                f"the class folder {directory / class_name} holds no image "
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
    names = os.fsencode("\n".join(class_names))
    order = (split, names, os.fsencode(portable), records.labels)
    return EncodedSource(
        name=name,
        split=split,
        class_names=class_names,
        records=records,
        fingerprint=fingerprints.fingerprint(
            "folder", "1", *order, np.array(sizes, np.int64), sums
        ),
        order=fingerprints.fingerprint(*order),
        passed_over=dict(passed_over),
    )


def _splits(root: Path, name: str) -> tuple[Path, list[str]]:
    """The training folder and the names of the splits that exist."""
    if not name.removeprefix(PREFIX):
        raise InputError(f"{PREFIX!r} needs a path: {PREFIX}/path/to/images. {LAYOUT}.")
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
            f"slice of the training images:\n  {SLICES}"
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


def _check_names(train: Path, class_names: tuple[str, ...]) -> None:
    """Names of classes are printed and written: they have to be text."""
    for name in class_names:
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise InputError(
                f"the class folder {str(train / name)!r} has a name that cannot be "
                "printed: it is not in UTF-8, or has line breaks or other control "
                "characters. Rename it in every split."
            )


def _subfolders(directory: Path) -> tuple[str, ...]:
    with _listing(directory) as entries:
        return tuple(sorted(e.name for e in entries if _is_dir(e) and not _hidden(e)))


def find_image_files(
    directory: Path, relative: str, passed_over: collections.Counter
) -> Iterator[tuple[str, int]]:
    """Finds the images in a folder and the folders below it.

    A folder that several links lead to, or that contains itself, is looked into once.

    Args:
      relative: The folder, seen from `directory`.
      passed_over: Counts, by ending, the files that are no images.

    Yields:
      (path relative to `directory`, size in bytes); those of one folder by name.
    """
    folders, seen = [relative], set()
    while folders:
        relative = folders.pop()
        with _listing(directory / relative) as entries:
            about = os.stat(directory / relative)
            entries = sorted(entries, key=lambda entry: entry.name)
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        below = []
        for entry in entries:
            path = os.path.join(relative, entry.name)
            ending = os.path.splitext(entry.name)[1].lower()
            if _hidden(entry):
                passed_over["hidden"] += 1
            elif _is_dir(entry):
                below.append(path)
            elif ending in ENDINGS:
                about = _stat(entry)
                if stat.S_ISREG(about.st_mode):
                    yield path, about.st_size
                else:  # a pipe or a device, which may never end
                    passed_over["no file"] += 1
            else:
                passed_over[ending or "no ending"] += 1
        folders += reversed(below)


def read_image_file(path: str | os.PathLike) -> bytes:
    """The bytes of an encoded image; a disk that is away for a moment is waited for.

    Raises:
      InputError: It cannot be read, is no regular file, or has more than `MAX_BYTES`.
    """
    for pause in (*RETRY_SECONDS, None):
        try:
            return _read_once(path)
        except OSError as error:
            if pause is None or error.errno not in TRANSIENT:
                raise InputError(f"{path} cannot be read: {error.strerror}.") from error
            time.sleep(pause)
    raise AssertionError  # the last pause is None


def _read_once(path: str | os.PathLike) -> bytes:
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise InputError(f"{path} is no regular file. Replace or remove it.")
    if about.st_size > MAX_BYTES:
        raise InputError(
            f"{path} has {about.st_size:,} bytes, more than {MAX_BYTES:,}. Scale it "
            "down, compress or remove it."
        )
    with open(path, "rb") as file:
        return file.read()


def _stat(entry: os.DirEntry) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:
        raise InputError(
            f"{entry.path} cannot be read: {error.strerror}. If it is a link, what it "
            "points to is gone."
        ) from error


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
