"""A folder of images: `root/train/<class>/*` and `root/val/<class>/*`.

The classes are the folders in `train`, sorted by name; `layout` finds them in what
else people have. Images lie in a class folder or deeper; files that are no images and
hidden ones are passed over and counted. Links are followed, also those that leave the
root: many data sets are folders of links, and whoever can make one in a folder could
copy what it points to. Pipes and devices are passed over, whatever their names.

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
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deit_jax.data.sources import fingerprints, layout
from deit_jax.data.sources.encoded import EncodedSource
from deit_jax.data.sources.layout import is_hidden
from deit_jax.data.sources.split import parse_split
from deit_jax.errors import InputError, listed

PREFIX = layout.PREFIX
ENDINGS = frozenset(
    [".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"]
)
# What a network disk says that is away for a moment, and a file that is not there yet.
TRANSIENT = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOENT)
RETRY_SECONDS = (0.3, 0.6, 1.2)


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
    """Opens a split of a folder of images; a relative path starts where we are."""
    found = layout.find(name, split)
    passed_over = collections.Counter()
    images = sorted(_images(found, passed_over))
    notes = _check_classes(found, images, passed_over)
    lengths = {found.split.partition("[")[0]: len(images)}
    _, start, stop = parse_split(found.split, lengths)
    _, paths, labels, sizes = zip(*images[start:stop], strict=True)

    records = FolderRecords(str(found.directory), paths, np.array(labels, np.int32))
    _, sums = fingerprints.scan(fingerprints.sample(records, sum(sizes)))
    names = (os.fsencode("\n".join(names)) for names in (found.class_folders, paths))
    order = (found.split, *names, records.labels)
    return EncodedSource(
        name=name,
        split=found.split,
        class_names=found.class_names,
        records=records,
        fingerprint=fingerprints.fingerprint(
            "folder", "1", *order, np.array(sizes, np.int64), sums
        ),
        order=fingerprints.fingerprint(*order),
        passed_over=dict(passed_over),
        notes=(*found.notes, *notes),
    )


def _images(
    found: layout.Layout, passed_over: collections.Counter
) -> Iterator[tuple[bytes, str, int, int]]:
    """Yields (order, relative path, label, size) of each image of a split."""
    for folder, label in found.folders:
        for path, size in find_image_files(found.directory, folder, passed_over):
            known = found.annotations.get(os.path.basename(path), label)
            if known is None:
                passed_over["without a class"] += 1
            else:
                yield hashlib.sha256(os.fsencode(path)).digest(), path, known, size


def _check_classes(found: layout.Layout, images: list, passed_over) -> list[str]:
    """Refuses classes without training images; notes those that are not measured."""
    present = {label for _, _, label, _ in images}
    empty = [c for label, c in enumerate(found.class_names) if label not in present]
    if not empty:
        return []
    where = found.directory
    if found.split.startswith("train"):
        label = found.class_names.index(empty[0])
        where /= next(f for f, its_label in found.folders if its_label == label)
    elif images:
        return [
            f"{where} holds no image of {len(empty)} of {len(found.class_names)} "
            f"classes, left out of F1 and AUC: {listed(empty)}"
        ]
    raise no_images(where, passed_over)


def no_images(folder: Path, passed_over: collections.Counter) -> InputError:
    others = ", ".join(f"{n} {ending}" for ending, n in passed_over.most_common(5))
    return InputError(
        f"the folder {folder} holds no image ({', '.join(sorted(ENDINGS))}); passed "
        f"over so far: {others or 'nothing'}."
    )


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
    seen = set()
    start = os.path.join(directory, relative)
    walk = os.walk(start, onerror=layout.refuse_listing, followlinks=True)
    for folder, folders, files in walk:
        if os.path.realpath(folder) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        inside = os.path.relpath(folder, directory).removeprefix(".")
        shown = [name for name in folders + files if not is_hidden(name)]
        if hidden := len(folders + files) - len(shown):
            passed_over["hidden"] += hidden
        folders[:] = sorted(set(folders) & set(shown))
        for name in sorted(set(files) & set(shown)):
            ending = os.path.splitext(name)[1].lower()
            if ending not in ENDINGS:
                passed_over[ending or "no ending"] += 1
                continue
            path = os.path.join(folder, name)
            try:
                about = os.stat(path)
            except OSError as error:
                raise InputError(
                    f"{path} cannot be read: {error.strerror}. If it is a link, what "
                    "it points to is gone."
                ) from error
            if stat.S_ISREG(about.st_mode):
                yield os.path.join(inside, name), about.st_size
            else:  # a pipe or a device, which may never end
                passed_over["no file"] += 1


def read_image_file(path: str | os.PathLike) -> bytes:
    """The bytes of an encoded image; a disk that is away for a moment is waited for.

    Raises:
      InputError: It cannot be read, or is no regular file.
    """
    for pause in (*RETRY_SECONDS, None):
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise InputError(f"{path} is no regular file. Replace or remove it.")
            return Path(path).read_bytes()
        except OSError as error:
            if pause is None or error.errno not in TRANSIENT:
                raise InputError(f"{path} cannot be read: {error.strerror}.") from error
            time.sleep(pause)
    raise AssertionError  # the last pause is None
