"""CIFAR-10 and CIFAR-100 as their authors published them.

    cifar:/path      a folder with cifar-10-batches-py, cifar-10-batches-bin,
                     cifar-100-python or cifar-100-binary, one of these, or the
                     .tar.gz of one as downloaded

The python version is a pickle, and a pickle is a program. It is read by an unpickler
that knows the three names which NumPy's arrays need, and that calls none of them. The
images keep the authors' order. They are decoded once a process, 154 MB of pixels for
50,000 images, and given out as PPM, so that they are read as all other images are.
"""

import contextlib
import dataclasses
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from deit_jax.data.sources.encoded import EncodedSource, open_records
from deit_jax.data.sources.split import choose_split, parse_split
from deit_jax.errors import InputError, listed

PREFIX = "cifar:"
SIDE = 32
PIXELS = 3 * SIDE * SIDE
PPM = f"P6 {SIDE} {SIDE} 255\n".encode()
ORIGINAL = {"train": 50_000, "test": 10_000}  # images
EXPECTED = (
    "cifar:/path, a folder with cifar-10-batches-py, cifar-10-batches-bin, "
    "cifar-100-python or cifar-100-binary in it, or the .tar.gz of one"
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The files of one version.

    Attributes:
      folder: Their folder in the archive.
      splits: Of each, its files in their order.
      names: The file with the names of the classes ...
      key: ... and, of the python version, the field in it.
      labels: The field of the labels, or how many bytes before the pixels are
        labels, the last of which counts.
    """

    folder: str
    splits: dict[str, tuple[str, ...]]
    names: str
    key: bytes | None
    labels: bytes | int


def _ten(ending: str) -> dict[str, tuple[str, ...]]:
    train = tuple(f"data_batch_{number}{ending}" for number in range(1, 6))
    return {"train": train, "test": (f"test_batch{ending}",)}


def _hundred(ending: str) -> dict[str, tuple[str, ...]]:
    return {"train": (f"train{ending}",), "test": (f"test{ending}",)}


LAYOUTS = (
    Layout("cifar-10-batches-bin", _ten(".bin"), "batches.meta.txt", None, 1),
    Layout("cifar-10-batches-py", _ten(""), "batches.meta", b"label_names", b"labels"),
    Layout("cifar-100-binary", _hundred(".bin"), "fine_label_names.txt", None, 2),
    Layout(
        "cifar-100-python", _hundred(""), "meta", b"fine_label_names", b"fine_labels"
    ),
)


class CifarRecords:
    """The images of a split (see `deit_jax.data.sources.encoded`), read on first use.

    Args:
      place: The folder or archive.
      layout: Of its files.
      base: `train` or `test`.
      start, stop: The slice of it.
    """

    def __init__(self, place: Path, layout: Layout, base: str, start: int, stop: int):
        self._place, self._layout, self._base = place, layout, base
        self._start, self._stop = start, stop
        self._pixels = None
        self.labels = None

    def __len__(self) -> int:
        return self._stop - self._start

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_pixels": None}

    def keep(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        """Spares the first use the reading: what `_read_split` gives."""
        part = slice(self._start, self._stop)
        self._pixels, self.labels = pixels[part], labels[part]

    def read(self, indices) -> Iterator[tuple[bytes, int]]:
        if self._pixels is None:
            self.keep(*_read_split(self._place, self._layout, self._base))
        for index in indices:
            planes = self._pixels[index].reshape(3, SIDE, SIDE)
            yield PPM + planes.transpose(1, 2, 0).tobytes(), int(self.labels[index])

    def where(self, index: int) -> str:
        return f"{self._place} {self._base}, image {self._start + index}"


def open_cifar(name: str, split: str) -> EncodedSource:
    """Opens a split of CIFAR-10 or CIFAR-100 (its 100 fine labels).

    Args:
      name: `cifar:` and a path, see the module.
      split: `train` or `test`, or a slice.

    Raises:
      InputError: The files are missing, cut short or something else.
    """
    place, layout = _find(name)
    base, split, notes = choose_split(split, ORIGINAL, name)
    class_names = _class_names(place, layout)
    pixels, labels = _read_split(place, layout, base)
    strange = np.flatnonzero(labels >= len(class_names))
    if strange.size:
        raise InputError(
            f"{place} {base}, image {strange[0]} has label {labels[strange[0]]}, "
            f"expected 0 .. {len(class_names) - 1}: the file is damaged."
        )
    if len(labels) != ORIGINAL[base]:
        notes.append(
            f"{name}: {base} has {len(labels):,} images, the original "
            f"{ORIGINAL[base]:,}"
        )
    _, start, stop = parse_split(split, {base: len(labels)})
    records = CifarRecords(place, layout, base, start, stop)
    records.keep(pixels, labels)
    sizes = np.full(len(records), len(PPM) + PIXELS, np.int64)
    return open_records(
        name, split, class_names, records, sizes=sizes, side=SIDE, notes=notes
    )


def _find(name: str) -> tuple[Path, Layout]:
    """The folder or archive that is meant, and how its files are laid out."""
    given = Path(name.removeprefix(PREFIX)).expanduser()
    if name == PREFIX or not given.exists():
        raise InputError(
            f"{name!r}: {given.absolute()} does not exist. Expected {EXPECTED}."
        )
    folders, archives = [given], []
    if given.is_dir():
        folders += sorted(p for p in given.iterdir() if p.is_dir())
        archives = sorted(given.glob("cifar*.tar.gz"))
    found: dict[int, tuple[Path, Layout]] = {}
    for place in (*folders, *archives):
        if place in archives and found:
            break  # they are unpacked
        if layout := _recognise(_names(place)):
            # Of the python and the binary version of one, the first.
            found.setdefault(len(layout.splits["train"]), (place, layout))
    if len(found) > 1:
        shown = " or ".join(f"{PREFIX}{place}" for place, _ in found.values())
        raise InputError(f"{name} holds CIFAR-10 and CIFAR-100: give {shown}.")
    if not found:
        here = listed(sorted(_names(given))) or "nothing"
        raise InputError(f"{name} holds no CIFAR. Expected {EXPECTED}. Found: {here}.")
    return next(iter(found.values()))


def _recognise(names: Iterable[str]) -> Layout | None:
    seen = set()
    for name in names:
        seen.add(name)
        for layout in LAYOUTS:
            if {layout.splits["train"][0], layout.names} <= seen:
                return layout
    return None


def _names(place: Path) -> Iterator[str]:
    """The names in a folder or an archive."""
    if place.is_dir():
        yield from sorted(os.listdir(place))
        return
    with _archive(place) as archive:
        for member in archive:
            yield os.path.basename(member.name)


def _contents(place: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of files in a folder or an archive, in any order."""
    if place.is_dir():
        for name in names:
            try:
                yield name, (place / name).read_bytes()
            except OSError as error:
                raise InputError(
                    f"{place / name} cannot be read: {error.strerror}. Unpack the "
                    "archive again, whole."
                ) from error
        return
    missing = set(names)
    with _archive(place) as archive:
        for member in archive:
            name = os.path.basename(member.name)
            if name in missing and member.isfile():
                missing.remove(name)
                yield name, archive.extractfile(member).read()
    if missing:
        raise InputError(f"{place} lacks {listed(sorted(missing))}: download it again.")


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[tarfile.TarFile]:
    """The archive as it was downloaded; refuses one that is damaged or cut short."""
    try:
        with tarfile.open(path) as archive:
            yield archive
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(
            f"{path} is damaged, cut short or no archive ({error}): download it again. "
            f"Expected {EXPECTED}."
        ) from error


def _read_split(
    place: Path, layout: Layout, base: str
) -> tuple[np.ndarray, np.ndarray]:
    """The pixels, uint8 [N, 3072] (planes of red, green, blue), and labels int32 [N].

    Raises:
      InputError: A file is missing, damaged or cut short.
    """
    names = layout.splits[base]
    read = {}
    for name, content in _contents(place, names):
        decode = _of_pickle if layout.key else _of_binary
        read[name] = decode(content, layout.labels, place / name)
    pixels, labels = zip(*(read[name] for name in names), strict=True)
    return np.concatenate(pixels), np.concatenate(labels)


def _class_names(place: Path, layout: Layout) -> tuple[str, ...]:
    [(name, content)] = _contents(place, [layout.names])
    if layout.key:
        fields = _unpickle(content, place / name)
        try:
            return tuple(class_name.decode() for class_name in fields[layout.key])
        except (KeyError, TypeError, AttributeError, UnicodeError) as error:
            raise _not_original(place / name, f"no {layout.key.decode()}") from error
    return tuple(content.decode(errors="replace").split())


def _of_binary(
    content: bytes, label_bytes: int, where: Path
) -> tuple[np.ndarray, np.ndarray]:
    row = label_bytes + PIXELS
    if not content or len(content) % row:
        raise InputError(
            f"{where} has {len(content):,} bytes, expected a multiple of {row:,}: it "
            "is cut short or another file. Unpack the archive again."
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, row)
    return rows[:, label_bytes:], rows[:, label_bytes - 1].astype(np.int32)


def _of_pickle(
    content: bytes, labels_key: bytes, where: Path
) -> tuple[np.ndarray, np.ndarray]:
    fields = _unpickle(content, where)
    try:
        labels = np.array(fields[labels_key], np.int64).astype(np.int32)
        _, shape, kind, by_column, pixels = fields[b"data"].state
        rows, columns = shape
        known = kind.arguments[0] in (b"u1", "u1") and columns == PIXELS
        if not known or labels.shape != (rows,) or len(pixels) != rows * PIXELS:
            raise ValueError(f"data is no uint8 [{len(labels)}, {PIXELS}]")
        order = "F" if by_column else "C"
        data = np.frombuffer(pixels, np.uint8).reshape(shape, order=order)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _not_original(where, error) from error
    return data, labels


def _not_original(where: Path, why) -> InputError:
    return InputError(
        f"{where} is no batch of the original CIFAR ({why}). Unpack the archive again."
    )


class _Noted:
    """What a pickle says of a NumPy array: its arguments and state, and no array."""

    def __init__(self, *arguments):
        self.arguments, self.state = arguments, None

    def __setstate__(self, state) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Reads dicts, lists, numbers and strings; arrays become `_Noted`."""

    NUMPY = frozenset(
        [
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        ]
    )

    def find_class(self, module: str, name: str):
        if (module, name) in self.NUMPY:
            return _Noted
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it refers to other files")


def _unpickle(content: bytes, where: Path) -> dict:
    """The fields of a batch, whose strings are bytes."""
    try:
        fields = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises anything
        raise _not_original(where, error) from error
    if not isinstance(fields, dict):
        raise _not_original(where, f"a {type(fields).__name__}")
    return fields
