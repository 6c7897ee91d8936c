"""The same few images as a folder, as Parquet, as shards and as batches of CIFAR."""

import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NAMES = ("ant", "bee", "cow", "doe")
COUNTS = {"train": 20, "test": 8}
DATASETS = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel"}}


def images(split: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 32, 32, 3] and labels, sorted by class."""
    random = np.random.RandomState(len(split))
    count = COUNTS[split]
    pixels = random.randint(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    return pixels, np.arange(count) * len(NAMES) // count


def encoded(image: np.ndarray | Image.Image, format: str = "PNG", **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def folder(root: Path) -> str:
    for split in COUNTS:
        for number, (image, label) in enumerate(zip(*images(split), strict=True)):
            path = root / split / NAMES[label] / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(image))
    return f"folder:{root}"


def parquet(
    path: Path,
    split: str = "train",
    *,
    rows=slice(None),
    names=NAMES,
    columns=("image", "label"),
    labels=lambda label: int(label),
    whole=True,
    **options,
) -> Path:
    """Writes some rows as `datasets` does.

    Args:
      names: Of the classes, in the schema; None: no such schema.
      labels: What is written of a label.
      whole: Images are structs {bytes, path}, else bytes.
    """
    pixels, numbers = images(split)
    pictures = [encoded(image) for image in pixels[rows]]
    if whole:
        pictures = [{"bytes": picture, "path": None} for picture in pictures]
    values = [pictures, [labels(n) for n in numbers[rows]]]
    table = pa.table(dict(zip(columns, values, strict=True)))
    if names is not None:
        features = dict(zip(columns, map(dict, DATASETS.values()), strict=True))
        features[columns[1]]["names"] = list(names)
        about = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": about})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3, **options)
    return path


def hub(root: Path, **how) -> str:
    parquet(root / "data/train-00000-of-00002.parquet", rows=slice(0, 9), **how)
    parquet(root / "data/train-00001-of-00002.parquet", rows=slice(9, None), **how)
    parquet(root / "data/test-00000-of-00001.parquet", "test", **how)
    return f"hf:{root}"


def shard(path: Path, split: str, rows: slice, members) -> Path:
    """Writes some images.

    Args:
      members: {ending: what is written of a label, as str}.
    """
    pixels, labels = images(split)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(len(labels))[rows]:
            files = {"png": encoded(pixels[number])}
            files |= {e: write(labels[number]).encode() for e, write in members.items()}
            for ending, content in files.items():
                about = tarfile.TarInfo(f"set/{number:05}.{ending}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    return path


BY_NAME = {"cls": lambda label: NAMES[label]}


def shards(root: Path, members=BY_NAME) -> str:
    shard(root / "set-train-0000.tar", "train", slice(0, 9), members)
    shard(root / "set-train-0001.tar", "train", slice(9, None), members)
    shard(root / "set-val-0000.tar", "test", slice(None), members)
    return f"tar:{root}"


# CIFAR. The python version was pickled by Python 2.


def pickled(value) -> bytes:
    """As cPickle's protocol 2, without its memo; arrays are uint8 [N, M]."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value) -> bytes:
    if isinstance(value, dict):
        items = b"".join(_opcodes(k) + _opcodes(v) for k, v in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, np.ndarray):
        shape = b"".join(map(_opcodes, value.shape)) + b"\x86"
        kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        kind += 2 * _opcodes(-1) + b"K\x00tb"
        empty = (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        )
        return (
            empty + b"\x87R(K\x01" + shape + kind + b"\x89"
            + _opcodes(value.tobytes()) + b"tb"
        )  # fmt: skip
    return b"J" + struct.pack("<i", value)


def cifar(root: Path, version: str) -> Path:
    """A folder with one version: `10-py`, `10-bin`, `100-py` or `100-bin`.

    The 20 training images lie in five batches, or in one. Of 100 classes, each image's
    coarse label is 19.
    """
    kind, _, form = version.partition("-")
    folders = {"10-py": "cifar-10-batches-py", "10-bin": "cifar-10-batches-bin"}
    folders |= {"100-py": "cifar-100-python", "100-bin": "cifar-100-binary"}
    at = root / folders[version]
    at.mkdir(parents=True)
    for split in COUNTS:
        pixels, labels = images(split)
        planes = pixels.transpose(0, 3, 1, 2).reshape(len(labels), -1)
        files = [split] if kind == "100" else ["test_batch"]
        if (kind, split) == ("10", "train"):
            files = [f"data_batch_{number}" for number in range(1, 6)]
        parts = np.array_split(np.arange(len(labels)), len(files))
        for file, rows in zip(files, parts, strict=True):
            write = _batch if form == "py" else _binary
            content = write(planes[rows], labels[rows].tolist(), kind)
            (at / f"{file}{'.bin' * (form == 'bin')}").write_bytes(content)
    names = [name.encode() for name in NAMES]
    if form == "py":
        key = b"label_names" if kind == "10" else b"fine_label_names"
        meta = pickled({b"num_vis": 3072, key: names})
        (at / ("batches.meta" if kind == "10" else "meta")).write_bytes(meta)
    else:
        file = "batches.meta.txt" if kind == "10" else "fine_label_names.txt"
        (at / file).write_bytes(b"\n".join(names) + b"\n\n")
    return at


def _batch(planes: np.ndarray, labels: list[int], kind: str) -> bytes:
    fields = {b"batch_label": b"one", b"data": planes}
    if kind == "10":
        return pickled(fields | {b"labels": labels})
    coarse = [19] * len(labels)
    return pickled(fields | {b"coarse_labels": coarse, b"fine_labels": labels})


def _binary(planes: np.ndarray, labels: list[int], kind: str) -> bytes:
    coarse = b"\x13" * (kind == "100")
    rows = zip(planes, labels, strict=True)
    return b"".join(coarse + bytes([label]) + row.tobytes() for row, label in rows)


def archive(folder: Path) -> Path:
    """The folder as a .tar.gz beside it, as it is downloaded."""
    path = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
    return path
