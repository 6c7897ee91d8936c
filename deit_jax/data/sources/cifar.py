"""CIFAR-10 and CIFAR-100 as their authors published them.

    cifar:/path      a folder with cifar-10-batches-py, cifar-10-batches-bin,
                     cifar-100-python or cifar-100-binary, one of these, or the
                     .tar.gz of one as downloaded

The python version is a pickle, and a pickle is a program: it is read by an unpickler
that knows nothing but NumPy's arrays. The images keep the authors' order.
"""

import dataclasses
import functools
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deit_jax.data.sources import fingerprints, labels, recompressed
from deit_jax.data.sources.arrays import ArraySource
from deit_jax.data.sources.split import choose_split, parse_split
from deit_jax.errors import InputError, listed

PREFIX = "cifar:"
SIDE = 32
PIXELS = 3 * SIDE * SIDE
PPM = f"P6 {SIDE} {SIDE} 255\n".encode()  # of a fingerprint, each image as a file
EXPECTED = (
    "cifar:/path, a folder with cifar-10-batches-py, cifar-10-batches-bin, "
    "cifar-100-python or cifar-100-binary in it, or the .tar.gz of one"
)
TEN = {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}
HUNDRED = {"train": ["train"], "test": ["test"]}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The files of one version.

    Attributes:
      splits: The files of each, without their ending.
      ending: `.bin`, or nothing for pickles.
      names: The file with the names of the classes ...
      fields: ... and the pickles' fields for these names and for the labels.
      label_bytes: Of a binary version, before the pixels; the last one counts.
    """

    splits: dict[str, list[str]]
    ending: str
    names: str
    fields: tuple[bytes, bytes] = (b"", b"")
    label_bytes: int = 0

    def files(self, split: str) -> list[str]:
        return [file + self.ending for file in self.splits[split]]


LAYOUTS = (
    Layout(TEN, ".bin", "batches.meta.txt", label_bytes=1),
    Layout(TEN, "", "batches.meta", (b"label_names", b"labels")),
    Layout(HUNDRED, ".bin", "fine_label_names.txt", label_bytes=2),
    Layout(HUNDRED, "", "meta", (b"fine_label_names", b"fine_labels")),
)


class CifarSource(ArraySource):
    """It pickles to its path, not to 154 MB of pixels."""

    def __reduce__(self):
        return open_cifar, (self.name, self.split)


def open_cifar(name: str, split: str) -> CifarSource:
    """Opens a split of CIFAR-10 or CIFAR-100 (its 100 fine labels)."""
    place, layout, files = _find(name)
    base, split, notes = choose_split(split, layout.splits, name)
    class_names = _class_names(place, layout, files)
    decode = _of_binary if layout.ending else _of_pickle
    parts = [
        decode(_content(place, file, files), layout, place / file)
        for file in layout.files(base)
    ]
    planes, numbers = map(np.concatenate, zip(*parts, strict=True))
    where = functools.partial("{} {}, image {}".format, place, base)
    numbers = labels.numbers(numbers, class_names, where)
    _, start, stop = parse_split(split, {base: len(numbers)})
    planes = planes[start:stop].reshape(-1, 3, SIDE, SIDE)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    numbers = numbers[start:stop]
    sizes = np.full(len(images), len(PPM) + PIXELS, np.int64)
    encoded = (
        (PPM + image.tobytes(), label)
        for image, label in zip(images, numbers.tolist(), strict=True)
    )
    found = fingerprints.of_records(split, class_names, numbers, sizes, encoded)
    fields = (name, split, images, numbers, class_names, found)
    copies = recompressed.notes(CifarSource(*fields))
    return CifarSource(*fields, notes=(*notes, *copies))


def _find(name: str) -> tuple[Path, Layout, dict[str, Callable[[], bytes]]]:
    """The folder or archive that is meant, how it is laid out, and its files."""
    given = Path(name.removeprefix(PREFIX)).expanduser()
    if name == PREFIX or not given.exists():
        raise InputError(
            f"{name!r}: {given.absolute()} does not exist. Expected {EXPECTED}."
        )
    folders, archives = [given], []
    if given.is_dir():
        folders += sorted(p for p in given.iterdir() if p.is_dir())
        archives = sorted(given.glob("cifar*.tar.gz"))
    # Of the python and the binary version of one, the first; archives if none is
    # unpacked.
    found = _recognised(folders) or _recognised(archives)
    if len(found) > 1:
        shown = " or ".join(f"{PREFIX}{place}" for place, *_ in found)
        raise InputError(f"{name} holds CIFAR-10 and CIFAR-100: give {shown}.")
    if not found:
        here = listed(sorted(_files(given))) or "nothing"
        raise InputError(f"{name} holds no CIFAR. Expected {EXPECTED}. Found: {here}.")
    return found[0]


def _recognised(places: list[Path]) -> list[tuple]:
    found = {}
    for place in places:
        files = _files(place)
        for layout in LAYOUTS:
            if {layout.files("train")[0], layout.names} <= files.keys():
                found.setdefault(len(layout.splits["train"]), (place, layout, files))
    return list(found.values())


def _files(place: Path) -> dict[str, Callable[[], bytes]]:
    """The files in a folder or an archive, and what reads them."""
    if place.is_dir():
        return {path.name: path.read_bytes for path in place.iterdir()}
    try:
        with tarfile.open(place) as archive:
            return {
                os.path.basename(member.name): functools.partial(
                    bytes, archive.extractfile(member).read()
                )
                for member in archive
                if member.isfile()
            }
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(
            f"{place} is damaged, cut short or no archive ({error}): download it "
            f"again. Expected {EXPECTED}."
        ) from error


def _content(place: Path, name: str, files: dict) -> bytes:
    try:
        return files[name]()
    except (KeyError, OSError) as error:
        why = getattr(error, "strerror", None) or "it is missing"
        raise InputError(
            f"{place / name} cannot be read: {why}. Unpack the archive again."
        ) from error


def _class_names(place: Path, layout: Layout, files: dict) -> tuple[str, ...]:
    content = _content(place, layout.names, files)
    if layout.ending:
        return tuple(content.decode(errors="replace").split())
    try:
        return tuple(name.decode() for name in _unpickle(content)[layout.fields[0]])
    except Exception as error:  # a damaged pickle raises anything
        raise _not_original(place / layout.names, error) from error


def _of_binary(
    content: bytes, layout: Layout, where: Path
) -> tuple[np.ndarray, np.ndarray]:
    """The pixels, uint8 [N, 3072] (planes of red, green, blue), and labels int [N]."""
    row = layout.label_bytes + PIXELS
    if not content or len(content) % row:
        raise InputError(
            f"{where} has {len(content):,} bytes, expected a multiple of {row:,}: it "
            "is cut short or another file. Unpack the archive again."
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, row)
    before, pixels = np.split(rows, [layout.label_bytes], axis=1)
    return pixels, before[:, -1].astype(np.int64)


def _of_pickle(
    content: bytes, layout: Layout, where: Path
) -> tuple[np.ndarray, np.ndarray]:
    """As `_of_binary`."""
    try:
        fields = _unpickle(content)
        numbers = np.array(fields[layout.fields[1]], np.int64)
        pixels = fields[b"data"]
        if (pixels.dtype, pixels.shape) != (np.uint8, (len(numbers), PIXELS)):
            raise ValueError(f"data is no uint8 [{len(numbers)}, {PIXELS}]")
    except Exception as error:  # a damaged pickle raises anything
        raise _not_original(where, error) from error
    return pixels, numbers


def _not_original(where: Path, why: Exception) -> InputError:
    return InputError(
        f"{where} is no batch of the original CIFAR ({why}). Unpack the archive again."
    )


class _Unpickler(pickle.Unpickler):
    """Reads dicts, lists, numbers, strings and arrays; anything else is refused."""

    KNOWN = {  # noqa: RUF012
        "numpy.core.multiarray._reconstruct": np.zeros(0).__reduce__()[0],
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
    }

    def find_class(self, module: str, name: str):
        if f"{module}.{name}" in self.KNOWN:
            return self.KNOWN[f"{module}.{name}"]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickle(content: bytes) -> dict:
    """The fields of a batch, whose strings are bytes."""
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()
