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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

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


@dataclasses.dataclass(eq=False, repr=False)
class TarRecords:
    """Images in tar files (see `deit_jax.data.sources.encoded`).

    Attributes:
      shards: Their paths.
      shard, offset, size: int64 [N], where each image lies; bytes.
      keys: The samples' names.
      labels: int32 [N].
    """

    shards: Sequence[str]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    keys: Sequence[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, indices) -> Iterator[tuple[bytes, int]]:
        for index in indices:
            path = self.shards[self.shard[index]]
            with _open(path) as file:
                file.seek(int(self.offset[index]))
                image = file.read(int(self.size[index]))
            if len(image) < self.size[index]:
                raise InputError(f"{path} has become shorter than its index says.")
            yield image, int(self.labels[index])

    def where(self, index: int) -> str:
        return f"{self.shards[self.shard[index]]}, sample {self.keys[index]}"


def open_tar(name: str, split: str, data_dir: str | None = None) -> EncodedSource:
    """Opens a split of webdataset shards, whose index is kept in `data_dir`."""
    pattern, _, label = name.removeprefix(PREFIX).partition(",label=")
    root, paths = _find(name, pattern)
    found = shards.by_split(paths, name)
    base, split, notes = choose_split(split, found, name)
    indices = {
        part: _index(name, [str(root / p) for p in found[part]], label, data_dir)
        for part in {base, "train"} & found.keys()
    }
    index = indices[base]
    texts = [text for each in indices.values() for text in each["labels"]]
    kind = np.int64 if all(map(NUMBER.fullmatch, texts)) else object
    raw = {
        part: np.array(each["labels"], object).astype(kind)
        for part, each in indices.items()
    }
    class_names = labels.class_names(raw.get("train", raw[base]), name)
    _, start, stop = parse_split(split, {base: len(raw[base])})
    rows = np.random.RandomState(0).permutation(len(raw[base]))[start:stop]
    records = TarRecords(
        [str(root / p) for p in found[base]],
        *(index[field][rows] for field in ("shard", "offset", "size")),
        [index["keys"][row] for row in rows],
        raw[base][rows],
    )
    records.labels = labels.numbers(records.labels, class_names, records.where)
    side = index["side"]
    return open_records(
        name,
        split,
        class_names,
        records,
        records.size,
        image_shape=(side, side, 3) if side else None,
        passed_over=index["passed_over"],
        notes=tuple(notes),
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


def _index(name: str, paths: list[str], label: str, data_dir: str | None) -> dict:
    """Where the images of some shards lie, in the order of shards and members.

    Returns:
      `shard`, `offset`, `size`, int64 [N]; `keys` and `labels`, lists of str as they
      are written; `side`, pixels where all images are squares of one size, else 0; and
      `passed_over`, how many samples were left out, by reason.
    """
    kept = index_files.path(data_dir, paths, "index", label, ending=".npz")
    if not kept.exists():
        index = _make(name, paths, label)
        with index_files.writing(kept, name) as partial:
            np.savez(partial, **index)
    with np.load(kept) as index:
        return dict(index) | json.loads(index["about"].tobytes())


def _make(name: str, paths: Sequence[str], label: str) -> dict[str, np.ndarray]:
    rows, sides, passed_over = [], set(), collections.Counter()
    progress = Patience(f"{name}: shards indexed", len(paths))
    for number, path in progress.over(enumerate(paths)):
        with _open(path) as file:
            for key, image, text in _samples(path, file, label, passed_over):
                rows.append((number, image.offset_data, image.size, key, text))
                if len(sides) < 2 and 0 not in sides:
                    file.seek(image.offset_data)
                    sides.add(square_side(file.read(image.size)))
    if not rows:
        seen = ", ".join(f"{n:,} {what}" for what, n in passed_over.items())
        raise InputError(
            f"{name}: {paths[0]} and the others hold no labelled image. Found: "
            f"{seen or 'nothing'}. Expected 17.jpg and beside it 17.cls, 17.txt or "
            "17.json with a field 'label'; ...,label=json.FIELD names another."
        )
    shard, offset, size, keys, texts = zip(*rows, strict=True)
    side = sides.pop() if len(sides) == 1 else 0
    about = {"keys": keys, "labels": texts, "side": side, "passed_over": passed_over}
    return {
        "shard": np.array(shard),
        "offset": np.array(offset),
        "size": np.array(size),
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
    }


def _samples(
    path: str, file: io.BufferedReader, label: str, passed_over: collections.Counter
) -> Iterator[tuple[str, tarfile.TarInfo, str]]:
    """Yields (name, image, label) of each sample of a shard that has both."""
    key, sample = None, {}
    for member in (*_members(path, file), None):
        folder, _, base = (member.name if member else "").rpartition("/")
        stem, _, ending = base.partition(".")
        its_key, ending = f"{folder}/{stem}".lstrip("/"), ending.lower()
        if member is None or its_key != key or ending in sample:
            image, text = _sample(path, file, sample, label)
            if text is not None:
                yield key, image, text
            elif sample:
                endings = " ".join(f".{ending}" for ending in sorted(sample))
                passed_over[f"samples of {endings}"] += 1
            key, sample = its_key, {}
        sample[ending] = member


def _open(path: str) -> io.BufferedReader:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def _members(path: str, file: io.BufferedReader) -> list[tarfile.TarInfo]:
    """The files in a tar; refuses one that is cut short."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members = tar.getmembers()
    except tarfile.TarError as error:
        raise InputError(
            f"{path} is damaged or no plain tar ({error}). A compressed one has no "
            "random access: unpack it with gunzip, zstd -d or xz -d first."
        ) from error
    length, end = os.stat(path).st_size, END
    if members:
        end += members[-1].offset_data + -(-members[-1].size // 512) * 512
    if end > length:
        raise InputError(
            f"{path} is cut short: {length:,} bytes, at least {end:,} expected. Bring "
            "it again."
        )
    return [m for m in members if m.isfile() and not Path(m.name).name.startswith(".")]


def _sample(
    path: str, file: io.BufferedReader, sample: Mapping, label: str
) -> tuple[tarfile.TarInfo | None, str | None]:
    """The image of a sample and its label; None where it lacks one."""
    images = [ending for ending in sample if f".{ending}" in ENDINGS]
    wanted, _, field = label.partition(".")
    found = [ending for ending in ([wanted] if label else LABELS) if ending in sample]
    if not images or not found:
        return None, None
    member = sample[found[0]]
    file.seek(member.offset_data)
    text = file.read(member.size).decode(errors="replace").strip()
    if found[0] == "json":
        text = _of_json(f"{path}, {member.name}", text, field)
    return sample[images[0]], text


def _of_json(where: str, text: str, field: str) -> str | None:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {error}.") from error
    for name in (field,) if field else labels.USUAL:
        if isinstance(values, dict) and type(values.get(name)) in (int, str):
            return str(values[name])
    return None
