"""How a folder of images is laid out: where its splits and its classes lie.

People name and nest these in many ways. What can mean one thing only is taken, and a
note says so; anything else is refused with what was found and what would work:

- `train`, `val` and `test` have other names too (`SPLITS`), in any case of the letters,
  and one that is not there is stood in for by the other that is for evaluation;
- the data set may lie in a folder of the one that is given, or be the parent of it,
  and the classes of a split in one folder more;
- without splits the folders are the classes, and `train` is all of them;
- `val_annotations.txt` (Tiny ImageNet) names the classes of images beside it;
- names of classes are compared as NFC, without blanks around them: macOS and other
  systems write the same letters in two ways. Folders of one name are one class.
"""

import dataclasses
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from deit_jax.data.sources.split import SLICES, SPLITS, choose_split, kind_of, spelling
from deit_jax.errors import InputError, listed

PREFIX = "folder:"
WRAPPERS = ("images", "data")  # names of a folder around the classes of a split
ANNOTATIONS = "val_annotations.txt"
# Made by macOS, Windows, Synology, Linux: images in them are thumbnails or leftovers.
SYSTEM_FOLDERS = frozenset(
    ("__MACOSX", "$RECYCLE.BIN", "System Volume Information", "@eaDir", "lost+found")
)
DEPTH = 3  # folders around a data set
SHOWN = 10  # data sets in a message
EXPECTED = (
    "A folder of images is laid out as train/<class>/*.jpg and val/<class>/*.jpg "
    "(or test/)"
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """One split of a folder of images.

    Attributes:
      split: `train`, `val` or `test`, whatever its folder's name, and its slice.
      directory: The split's folder.
      class_folders: Of `train`, in the order of the labels; a class can have several.
      folders: (path relative to `directory`, label) of each folder with images; the
        label is None where `annotations` has those of the files.
      annotations: The label of a file by its name.
      notes: What was taken that is not laid out as expected, in sentences.
    """

    split: str
    directory: Path
    class_names: tuple[str, ...]
    class_folders: tuple[str, ...]
    folders: tuple[tuple[str, int | None], ...]
    annotations: Mapping[str, int]
    notes: tuple[str, ...]


def find(name: str, split: str) -> Layout:
    """Finds a split and its classes."""
    given = Path(name.removeprefix(PREFIX)).expanduser()
    if not given.is_dir():
        what = "is a file; unpack it" if given.exists() else "does not exist"
        raise InputError(f"{name!r}: the folder {given.absolute()} {what}. {EXPECTED}.")
    root, splits = _find_root(given)
    notes = [] if root == given else [f"{root} is taken for {given}"]
    if splits["train"] == ["."]:
        notes.append(f"{root} has no folder named train: its folders are the classes")
    train = _unwrapped(root / splits["train"][0], notes)
    classes = _classes(train, notes)
    if len(classes) < 2:
        found = f"only one class, {next(iter(classes))!r}" if classes else "no class"
        raise InputError(
            f"{train} holds {found}; at least two are needed ({_shown(train)}). "
            f"{EXPECTED}, one folder a class."
        )
    split, directory = _choose(root, split, splits, notes)
    labels = {class_name: label for label, class_name in enumerate(classes)}
    annotations = _annotations(directory, labels)
    if annotations:
        folders = [("", None)]
        notes.append(f"{directory}: the classes are those of {ANNOTATIONS}")
    else:
        theirs = classes if directory == train else _classes(directory, notes)
        _check_classes(train, directory, classes, theirs)
        folders = [(folder, labels[c]) for c, each in theirs.items() for folder in each]
    return Layout(
        split=split,
        directory=directory,
        class_names=tuple(classes),
        class_folders=tuple(folder for each in classes.values() for folder in each),
        folders=tuple(folders),
        annotations=annotations,
        notes=tuple(dict.fromkeys(notes)),
    )


def plain_name(name: str) -> str:
    """The name of a class as it is compared and shown."""
    return unicodedata.normalize("NFC", name).strip() or name


def _find_root(root: Path, depth: int = DEPTH) -> tuple[Path, dict[str, list[str]]]:
    """Where the splits lie, and the folders of each."""
    splits = _splits(root)
    if "train" in splits:
        return root, splits
    folders = subfolders(root)
    deeper = [f for f in folders if "train" in _splits(root / f)]
    if len(deeper) > 1:
        shown = ", ".join(f"{PREFIX}{root / f}" for f in deeper[:SHOWN])
        raise InputError(f"{root} holds several data sets: give one of {shown}.")
    given = root.absolute()
    kind = None if deeper else kind_of(given.name)
    beside = _splits(given.parent) if kind else {}
    if kind == "train":
        return given.parent, beside | {"train": [given.name]}
    if "train" in beside:
        raise InputError(
            f"{root} is a split: give {PREFIX}{given.parent} and the split {kind!r}."
        )
    if not deeper and len(folders) == 1 and depth and subfolders(root / folders[0]):
        deeper = list(folders)
    if deeper:
        return _find_root(root / deeper[0], depth - 1)
    if splits or not folders:
        raise InputError(
            f"{root} has no folder named train ({_shown(root)}). {EXPECTED}; without "
            f"splits, as <class>/*.jpg, and one part of the images evaluates:\n"
            f"  {SLICES}"
        )
    return root, {"train": ["."]}


def _splits(root: Path) -> dict[str, list[str]]:
    """The folders of each kind of split, the one to take first."""
    found: dict[str, list[tuple]] = {}
    for folder in subfolders(root):
        if kind := kind_of(folder):
            rank = SPLITS[kind].index(spelling(folder))
            found.setdefault(kind, []).append(
                (rank, folder not in SPLITS[kind], folder)
            )
    return {kind: [each[-1] for each in sorted(found[kind])] for kind in found}


def _choose(
    root: Path, split: str, splits: dict[str, list[str]], notes: list[str]
) -> tuple[str, Path]:
    """The split by its plain name, with its slice, and its folder."""
    base = split.partition("[")[0]
    kind, split, _ = choose_split(split, splits, f"{root} ({_shown(root)})")
    same = [f for f in splits[kind] if spelling(f) == spelling(base)]
    folder = (same or splits[kind])[0]
    if folder not in (base, "."):
        notes.append(f"{root / folder} is taken for {base}")
    return split, _unwrapped(root / folder, notes)


def _unwrapped(directory: Path, notes: list[str]) -> Path:
    """A split's folder, or the one folder in it that has the classes: `train/train`."""
    inner = [directory / folder for folder in subfolders(directory)]
    if len(inner) == 1 and subfolders(inner[0]):
        name = inner[0].name.lower()
        if name in WRAPPERS or kind_of(name):
            notes.append(f"{inner[0]} is taken for {directory}")
            return inner[0]
    return directory


def _classes(directory: Path, notes: list[str]) -> dict[str, list[str]]:
    """The folders of each class, by name, in the order of the folders."""
    classes: dict[str, list[str]] = {}
    folders, files = _listing(directory)
    # A class may be a link; without what it points to it would be missing.
    if gone := [f for f in files if not ((directory / f).exists() or Path(f).suffix)]:
        raise InputError(f"{directory / gone[0]}: what the link points to is gone.")
    for folder in folders:
        classes.setdefault(plain_name(folder), []).append(folder)
    for name, folders in classes.items():
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise InputError(
                f"the class folder {str(directory / folders[0])!r} has a name that "
                "cannot be printed: give it another in every split."
            )
        if len(folders) > 1:
            spelt = ", ".join(map(ascii, folders))
            notes.append(f"{directory}: the folders {spelt} are one class, {name}")
    return classes


def _check_classes(train: Path, directory: Path, classes, theirs) -> None:
    """Refuses classes that `train` does not have; others may lack images."""
    if theirs and theirs.keys() <= classes.keys():
        return
    found = _shown(directory)
    if theirs:
        extra, missing = (
            sorted(a.keys() - b) for a, b in ((theirs, classes), (classes, theirs))
        )
        found = f"in {directory} but not in {train}: {listed(extra)}"
        if missing:
            found = f"in {train} but not in {directory}: {listed(missing)}; {found}"
    raise InputError(
        f"the folders in {directory} are not the classes of {train} ({found}). Give "
        "the same classes the same names, or take a slice of the training images:\n"
        f"  {SLICES}"
    )


def _annotations(directory: Path, labels: Mapping[str, int]) -> dict[str, int]:
    """The label of each file in Tiny ImageNet's list; nothing where there is none."""
    path = directory / ANNOTATIONS
    if not path.is_file() or labels.keys() & map(plain_name, subfolders(directory)):
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    named = [line.split("\t")[:2] for line in lines if "\t" in line]
    unknown = sorted({plain_name(c) for _, c in named} - labels.keys())
    if unknown:
        raise InputError(
            f"{path} names classes that have no training images: {listed(unknown)}."
        )
    return {file: labels[plain_name(c)] for file, c in named}


def _shown(directory: Path) -> str:
    """What lies in a folder, in words."""
    folders, files = _listing(directory)
    names = listed([*(f"{folder}/" for folder in folders), f"{len(files):,} files"])
    return f"found there: {names}"


def subfolders(directory: Path) -> list[str]:
    """The names of the folders in a folder, sorted; without hidden ones."""
    return _listing(directory)[0]


def _listing(directory: Path) -> tuple[list[str], list[str]]:
    _, *found = next(os.walk(directory, onerror=refuse_listing))
    folders, files = (sorted(n for n in names if not is_hidden(n)) for names in found)
    return folders, files


def refuse_listing(error: OSError) -> NoReturn:
    raise InputError(f"{error.filename} cannot be listed: {error.strerror}.") from error


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS
