"""Shards of webdataset: tar files of images and, beside each, its label.

    tar:/path                   all *.tar in a folder; their names say the splits
    tar:/path/{000..099}.tar    these shards; braces as a shell expands them, or *
    tar:...,label=L             the label's member: cls, txt, json or json.FIELD

A sample is what has one name up to the first dot: `cat/17.jpg` and `cat/17.cls`. The
label is a number or a name in `.cls` or `.txt`, or the field `label` (or `class`, ...)
of `.json`. Samples are shuffled by a fixed permutation, as the rows of Parquet files
are (`hub`).

Tar files have no index. The positions of all images are found by one pass over the
headers, and kept (`index_files`), so that any image is one read.
"""

import collections
import dataclasses
import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from deit_jax import files
from deit_jax.data.sources import index_files, labels, shards
from deit_jax.data.sources.decode import square_side
from deit_jax.data.sources.encoded import EncodedSource, open_records
from deit_jax.data.sources.folder import ENDINGS
from deit_jax.data.sources.split import choose_split, parse_split
from deit_jax.errors import InputError
from deit_jax.patience import Patience

PREFIX = "tar:"
EXPECTED = "tar:/path/{000..099}.tar or tar:/path, a folder of *.tar; then ,label=..."
LABELS = ("cls", "txt", "json")  # members, the first that a sample has counts
NUMBER = re.compile(r"-?\d{1,9}")
END = 1024  # zero bytes after the last member


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Where the images of a split lie, in the order of shards and members.

    Attributes:
      shard, offset, size: int64 [N]; the number of the shard, and bytes.
      keys: The samples' names.
      labels: As they are written.
      side: Pixels a side where all images are squares of one size, else 0.
      passed_over: How many samples and files were left out, by reason.
    """

    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    keys: Sequence[str]
    labels: Sequence[str]
    side: int
    passed_over: Mapping[str, int]


@dataclasses.dataclass(eq=False, repr=False)
class TarRecords:
    """Images in tar files (see `deit_jax.data.sources.encoded`).

    Attributes:
      shards: Their paths.
      index: Of all images in them.
      rows: int [N], which of these, in which order.
      labels: int32 [N].
    """

    shards: Sequence[str]
    index: Index
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices) -> Iterator[tuple[bytes, int]]:
        for index in indices:
            row = self.rows[index]
            image = _read(self.shards, self.index, row)
            yield image, int(self.labels[index])

    def where(self, index: int) -> str:
        row = self.rows[index]
        return f"{self.shards[self.index.shard[row]]}, sample {self.index.keys[row]}"


def open_tar(name: str, split: str, data_dir: str | None = None) -> EncodedSource:
    """Opens a split of webdataset shards.

    Args:
      name: See the module.
      split: `train`, `val`, `test` or another that the shards' names say, or a slice.
      data_dir: Where the index is kept, see `index_files`.

    Raises:
      InputError: Shards are missing, damaged or compressed, they hold no labelled
        images, or the split has other classes than `train`.
    """
    pattern, *rest = name.removeprefix(PREFIX).split(",label=")
    root, paths = _find(name, pattern)
    found = shards.by_split(paths, name)
    base, split, notes = choose_split(split, found, name)
    label = rest[0] if rest else None
    opened = {
        part: _index(name, [str(root / p) for p in found[part]], label, data_dir)
        for part in dict.fromkeys((base, "train"))
        if part in found
    }
    index, kept = opened[base]
    raw = {part: _parse(each.labels) for part, (each, _) in opened.items()}
    if len({each.dtype.kind for each in raw.values()}) > 1:  # a class named 7
        raw = {part: np.array(opened[part][0].labels, object) for part in raw}
    class_names = labels.class_names(raw.get("train", raw[base]), name)
    _, start, stop = parse_split(split, {base: len(index.keys)})
    rows = np.random.RandomState(0).permutation(len(index.keys))[start:stop]
    # Worker processes need no labels as they are written.
    places = dataclasses.replace(index, labels=())
    records = TarRecords([str(root / p) for p in found[base]], places, rows, rows)
    records.labels = labels.numbers(raw[base][rows], class_names, records.where)
    return open_records(
        name,
        split,
        class_names,
        records,
        sizes=index.size[rows],
        side=index.side,
        passed_over=index.passed_over,
        notes=(*notes, *kept),
    )


def _find(name: str, pattern: str) -> tuple[Path, list[str]]:
    """A folder, and the paths of the shards from there."""
    path = Path(pattern).expanduser()
    if not pattern:
        raise InputError(f"{name!r}: expected {EXPECTED}.")
    if path.is_dir():
        found = sorted(str(p.relative_to(path)) for p in path.rglob("*.tar"))
        if not found:
            raise InputError(f"{name}: {path.absolute()} holds no *.tar.")
        return path, found
    plain = re.split(r"[{*?[]", str(path))[0]
    root = Path(plain).parent if not plain.endswith(os.sep) else Path(plain)
    return root, [os.path.relpath(p, root) for p in shards.expand(str(path))]


def _index(
    name: str, paths: list[str], label: str | None, data_dir: str | None
) -> tuple[Index, list[str]]:
    """The index of some shards, made or kept, and notes."""
    kept = index_files.path(data_dir, paths, str(label), ending=".npz")
    index, notes = _load(kept), []
    if index is None:
        index = _make(name, paths, label)
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            files.replace_file(kept, _packed(index))
        except OSError as error:
            notes = [
                f"{name}: the index cannot be kept in {kept.parent} "
                f"({error.strerror or error}), so it is made at every start; "
                "--config.dataset.data_dir=DIR is another place"
            ]
    if not index.keys:
        seen = ", ".join(f"{n:,} {what}" for what, n in index.passed_over.items())
        raise InputError(
            f"{name}: {paths[0]} and the others hold no labelled image. Found: "
            f"{seen or 'nothing'}. Expected 17.jpg and beside it 17.cls, 17.txt or "
            "17.json with a field 'label'; ...,label=json.FIELD names another."
        )
    return index, notes


def _make(name: str, paths: Sequence[str], label: str | None) -> Index:
    rows, passed_over = [], collections.Counter()
    progress = Patience(f"{name}: shards indexed", len(paths))
    for number, path in progress.over(enumerate(paths)):
        for key, image, text in _samples(path, label, passed_over):
            rows.append((number, image.offset_data, image.size, key, text))
    shard, offset, size, keys, texts = zip(*rows, strict=True) if rows else [()] * 5
    index = Index(
        *(np.array(values, np.int64) for values in (shard, offset, size)),
        keys,
        texts,
        0,
        dict(passed_over),
    )
    side = 0
    for row in range(len(keys)):
        its_side = square_side(_read(paths, index, row))
        if not its_side or (row and its_side != side):
            return index
        side = its_side
    return dataclasses.replace(index, side=side)


def _samples(
    path: str, label: str | None, passed_over: collections.Counter
) -> Iterator[tuple[str, tarfile.TarInfo, str]]:
    """Yields (name, image, label) of each sample of a shard that has both."""
    with _open(path) as file:
        key, sample = None, {}
        for member in _members(path, file):
            folder, _, base = member.name.rpartition("/")
            stem, _, ending = base.partition(".")
            its_key, ending = f"{folder}/{stem}".lstrip("/"), ending.lower()
            if its_key != key or ending in sample:
                yield from _sample(path, file, key, sample, label, passed_over)
                key, sample = its_key, {}
            sample[ending] = member
        yield from _sample(path, file, key, sample, label, passed_over)


def _open(path: str) -> io.BufferedReader:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def _members(path: str, file: io.BufferedReader) -> Iterator[tarfile.TarInfo]:
    """Yields the files in a tar; refuses one that is cut short."""
    length, end = os.stat(path).st_size, 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # of a large shard they are many
                end = member.offset_data + -(-member.size // 512) * 512
                if end > length:
                    break
                if member.isfile() and not os.path.basename(member.name).startswith(
                    "."
                ):
                    yield member
    except tarfile.TarError as error:
        raise InputError(
            f"{path} is damaged or no plain tar ({error}). A compressed one has no "
            "random access: unpack it with gunzip, zstd -d or xz -d first."
        ) from error
    if end + END > length:
        raise InputError(
            f"{path} is cut short: {length:,} bytes, at least {end + END:,} expected. "
            "Bring it again."
        )


def _sample(path, file, key, sample: Mapping, label, passed_over) -> Iterator[tuple]:
    images = [ending for ending in sample if f".{ending}" in ENDINGS]
    wanted, _, field = (label or "").partition(".")
    found = next((e for e in ((wanted,) if label else LABELS) if e in sample), None)
    if images and found:
        member = sample[found]
        file.seek(member.offset_data)
        text = file.read(member.size).decode(errors="replace").strip()
        if found == "json":
            text = _of_json(f"{path}, {member.name}", text, field)
        if text is not None:
            yield key, sample[images[0]], text
            return
    if sample:
        endings = " ".join(f".{ending}" for ending in sorted(sample))
        passed_over[f"samples of {endings}"] += 1


def _of_json(where: str, text: str, field: str) -> str | None:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {error}.") from error
    for name in (field,) if field else labels.USUAL:
        if isinstance(values, dict) and type(values.get(name)) in (int, str):
            return str(values[name])
    return None


def _parse(texts: Sequence[str]) -> np.ndarray:
    """Numbers, int64 [N], where all are; else names, str (objects) [N]."""
    if all(map(NUMBER.fullmatch, texts)):
        return np.array(texts).astype(np.int64)
    return np.array(texts, object)


def _read(paths: Sequence[str], index: Index, row: int) -> bytes:
    path, size = paths[index.shard[row]], int(index.size[row])
    with _open(path) as file:
        file.seek(int(index.offset[row]))
        image = file.read(size)
    if len(image) < size:
        raise InputError(f"{path} has become shorter than its index says.")
    return image


def _packed(index: Index) -> bytes:
    """The content of a file that `_load` reads."""
    about = {
        "keys": index.keys,
        "labels": index.labels,
        "side": index.side,
        "passed_over": index.passed_over,
    }
    out = io.BytesIO()
    np.savez(
        out,
        shard=index.shard,
        offset=index.offset,
        size=index.size,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
    )
    return out.getvalue()


def _load(path: Path) -> Index | None:
    """The index in a file; None where there is none that is whole."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            about = json.loads(arrays["about"].tobytes())
            return Index(arrays["shard"], arrays["offset"], arrays["size"], **about)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
