"""A small hostile file cannot make a reader take a lot of memory.

The readers run in a process of their own, whose address space is limited, so that a
defect is an error here and not the end of the machine. Growth is that of the resident
memory at its peak (Linux's VmHWM), over what the process held before.
"""

import io
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

# Beyond what a case needs for itself; a bomb that goes off takes 300 MB or more.
BOUND_MIB = 64
LIMIT_BYTES = 6 * 2**30
HUGE = 2**29  # bytes that a bomb unpacks to

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is told by Linux"
)


def sparse(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, size)


def deflated(head: bytes, size: int) -> bytes:
    """zlib's form of `head` and `size` zeros; the zeros are packed in one go."""
    packer = zlib.compressobj(1)
    chunk = bytes(2**20)
    packed = [packer.compress(head)]
    packed += [packer.compress(chunk) for _ in range(size // len(chunk))]
    return b"".join([*packed, packer.flush()])


def png(width: int, height: int) -> bytes:
    def chunk(kind, content):
        sum_ = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + sum_

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    data = deflated(b"", 2**20)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def stamped(form: str, place: int, layout: str, *numbers: int, **options) -> bytes:
    """A small picture whose header claims other sides."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, form, **options)
    content = bytearray(file.getvalue())
    struct.pack_into(layout, content, place, *numbers)
    return bytes(content)


def tiff(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "TIFF")
    content = bytearray(file.getvalue())
    (directory,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, directory)
    for at in range(directory + 2, directory + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", content, at)
        if tag in (256, 257):
            side = width if tag == 256 else height
            struct.pack_into("<HII", content, at + 2, 4, 1, side)
    return bytes(content)


def webp(side: int) -> bytes:
    """Lossless: 14 bits for each side less one."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "WEBP", lossless=True)
    content = bytearray(file.getvalue())
    at = content.index(b"\x2f", 20)
    (bits,) = struct.unpack_from("<I", content, at + 1)
    sides = (side - 1) | (side - 1) << 14
    struct.pack_into("<I", content, at + 1, bits & ~(2**28 - 1) | sides)
    return bytes(content)


def jpeg(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    at = file.getvalue().index(b"\xff\xc0")
    return stamped("JPEG", at + 5, ">HH", side, side)


PICTURES = {
    "png": png(60_000, 60_000),
    "wide.png": png(2**31 - 1, 1),
    "gif": stamped("GIF", 6, "<HH", 65_535, 65_535),
    "bmp": stamped("BMP", 18, "<ii", 60_000, 60_000),
    "tif": tiff(60_000, 60_000),
    "wide.tif": tiff(2**31, 2**31),
    "webp": webp(16_383),
    "jpg": jpeg(65_500),
    "ppm": b"P6 60000 60000 255\n" + bytes(99),
}


def npy(shape: str, values: bytes = bytes(8), kind: str = "|u1") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(117) + "\n"
    size = struct.pack("<H", len(header))
    return b"\x93NUMPY\x01\x00" + size + header.encode() + values


def two_directories(small: bytes, huge: bytes) -> bytes:
    """A zip in which Python finds the members of one and torch those of another."""

    def cut(archive):
        count, size, offset = struct.unpack("<HII", archive[-12:-2])
        return archive[:offset], bytearray(archive[offset : offset + size]), count

    (head, own, count), (bomb, theirs, _) = cut(small), cut(huge)
    first = len(bomb) + len(theirs)
    shift, at = first + len(head) - len(bomb), 0
    while at < len(own):
        name, extra, comment = struct.unpack_from("<HHH", own, at + 28)
        (offset,) = struct.unpack_from("<I", own, at + 42)
        struct.pack_into("<i", own, at + 42, offset + first - shift)
        at += 46 + name + extra + comment
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(own), len(bomb), 0)
    return bomb + bytes(theirs) + head + bytes(own) + b"PK\x05\x06" + end


def torch_zip(method: int, more: int = 0) -> bytes:
    """A state dict as torch saves it, its pickle followed by `more` zeros."""
    import torch

    whole, file = io.BytesIO(), io.BytesIO()
    torch.save({"head.weight": torch.ones(3, 2)}, whole)
    with (
        zipfile.ZipFile(whole) as old,
        zipfile.ZipFile(file, "w", method, True, 1) as new,
    ):
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                content += bytes(more)
            new.writestr(zipfile.ZipInfo(name), content, method)
    return file.getvalue()


def legacy_torch(elements: int) -> bytes:
    """What torch saved before it took zips, of a storage that is not there."""
    import torch

    file = io.BytesIO()
    tensor = {"head.weight": torch.ones(7777)}
    torch.save(tensor, file, _use_new_zipfile_serialization=False)
    small, huge = (b"M" + struct.pack("<H", 7777), b"\x8a\x06")
    return file.getvalue().replace(small, huge + elements.to_bytes(6, "little"))


def write_cache(directory: Path, **files: bytes) -> None:
    """A teacher cache whose checksums fit to `files`, written over its own."""
    import hostile
    import test_fuzz

    test_fuzz.write_cache(directory, "same")
    for name, content in files.items():
        (directory / name.replace("_", ".")).write_bytes(content)
    hostile.Damage("manifest.json", "rehash").apply(directory)


def write_checkpoint(directory: Path, **changed) -> None:
    """A checkpoint in which one array says of itself what it is not."""
    import run_directories
    import tensorstore

    run_directories.make(directory, "vit_nano_patch8_32")
    base = f"file://{directory}/checkpoints/3/state/"
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    about = json.loads(store["params.head.bias/.zarray"])
    store["params.head.bias/.zarray"] = json.dumps(about | changed)


def write_links(directory: Path) -> None:
    """Thirty levels, each with two links to the next: a billion paths to a picture."""
    for level in range(30):
        folder = directory / str(level)
        folder.mkdir(parents=True)
        for name in ("a", "b"):
            (folder / name).symlink_to(directory / str(level + 1))
    (directory / "30").mkdir()
    Image.new("RGB", (8, 8)).save(directory / "30" / "a.png")


def write_deep(directory: Path) -> None:
    """More folders in each other than Python's stack has room for."""
    directory.mkdir()
    Image.new("RGB", (8, 8)).save(directory / "a.png")
    here = os.getcwd()
    try:
        os.chdir(directory)
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)


def write_bytes(content):
    def write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content() if callable(content) else content)

    return write


def card(**fields) -> bytes:
    import dataclasses

    from deit_jax.models.model_card import ModelCard

    whole = ModelCard(
        "vit_nano_patch8_32", 32, ("a",), (0.5,) * 3, (0.5,) * 3, crop_ratio=1.0
    )
    return json.dumps(dataclasses.asdict(whole) | fields).encode()


def zip_of(**arrays: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, True, 1) as archive:
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def cases() -> dict:
    """By name: what writes it to a path, and what reads it from there."""
    from deit_jax.data.sources import folder, image_files
    from deit_jax.distillation import teacher_logits, teacher_parts
    from deit_jax.evaluate import _dataset_of
    from deit_jax.models import model_card
    from deit_jax.training import checkpoint, summary, writers
    from deit_jax.weights import files
    from deit_jax.weights.load import load

    stored, packed = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED

    def load_params(path):
        return checkpoint.load_params(path, model_card.read(path).create_model())

    def examples(path):
        return teacher_logits.open_cache(path, tau=3.0).examples()

    def logits(path):
        return teacher_logits.open_cache(path, tau=3.0)

    def in_folder(name, write):
        return lambda path: write(path / name)

    found = {
        f"picture.{name}": (write_bytes(content), image_files.read)
        for name, content in PICTURES.items()
    }
    return found | {
        "sparse.png": (lambda path: sparse(path, 2**40), image_files.read),
        "device.png": (lambda path: path.symlink_to("/dev/zero"), image_files.read),
        "pipe.png": (os.mkfifo, image_files.read),
        "links": (write_links, lambda path: image_files.find([path])),
        "deep": (write_deep, lambda path: image_files.find([path])),
        "folder": (
            in_folder("train", write_links),
            lambda path: folder.open_folder(str(path), "train"),
        ),
        "examples-packed": (
            lambda path: write_cache(
                path, examples_npz=zip_of(image=npy(f"({HUGE},)", bytes(HUGE)))
            ),
            examples,
        ),
        "examples-claimed": (
            lambda path: write_cache(path, examples_npz=zip_of(image=npy("(2**40,)"))),
            examples,
        ),
        "examples-claimed-in-numbers": (
            lambda path: write_cache(
                path, examples_npz=zip_of(image=npy(f"({2**33},)"))
            ),
            examples,
        ),
        "values": (
            lambda path: write_cache(path, values_npy=npy(f"({2**40}, {2**40})")),
            logits,
        ),
        "manifest": (
            in_folder("manifest.json", lambda path: sparse(path, 2**40)),
            logits,
        ),
        "parts": (
            lambda path: (path / "shard-00-of-99999999999").mkdir(parents=True),
            teacher_parts.join,
        ),
        "card": (
            in_folder("model.json", write_bytes(card(image_size=8 * 10**9))),
            load_params,
        ),
        "card-of-a-checkpoint": (
            lambda path: [
                write_checkpoint(path),
                (path / "model.json").write_bytes(card(image_size=8192)),
            ],
            load_params,
        ),
        "checkpoint-shape": (
            lambda path: write_checkpoint(path, shape=[2**40]),
            load_params,
        ),
        "checkpoint-chunks": (
            lambda path: write_checkpoint(path, chunks=[2**31], compressor=None),
            load_params,
        ),
        "config": (
            in_folder("config.json", lambda path: sparse(path, 2**40)),
            _dataset_of,
        ),
        "summary": (
            in_folder("summary.json", lambda path: sparse(path, 2**40)),
            summary.read,
        ),
        "metrics": (
            in_folder("metrics.jsonl", lambda path: sparse(path, 2**40)),
            writers.read,
        ),
        "header.safetensors": (
            write_bytes(struct.pack("<Q", 2**60) + b"{}"),
            files.read_tensors,
        ),
        "claimed.safetensors": (
            write_bytes(
                struct.pack("<Q", 2**34) + b'{"a":{"dtype":"F32","shape":[99999999999]'
            ),
            files.read_tensors,
        ),
        "packed.pth": (
            write_bytes(lambda: torch_zip(packed, HUGE)),
            files.read_tensors,
        ),
        "directories.pth": (
            write_bytes(
                lambda: two_directories(torch_zip(stored), torch_zip(packed, HUGE))
            ),
            files.read_tensors,
        ),
        "legacy.pth": (write_bytes(lambda: legacy_torch(2**42)), files.read_tensors),
        "weights": (
            lambda path: [
                write_bytes(lambda: torch_zip(stored))(path / "pytorch_model.bin"),
                sparse(path / "config.json", 2**40),
            ],
            load,
        ),
    }


def status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def measure(root: Path) -> None:
    """Reads every case of `root` twice, and prints of the second time what it took."""
    import torch  # noqa: F401

    from deit_jax.errors import InputError

    readers = cases()
    limit = status("VmSize") + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for name, (_, read) in readers.items():
        for _ in range(2):  # libraries are loaded, and functions compiled, by the first
            Path("/proc/self/clear_refs").write_text("5")
            before, said = status("VmRSS"), None
            try:
                read(root / name)
            except InputError as error:
                said = str(error)
        growth = (status("VmHWM") - before) / 2**20
        print(json.dumps({"name": name, "MiB": growth, "said": said}), flush=True)


# The test.

# What can be read, in little memory.
READ = ("links", "deep", "folder")
NAMES = [f"picture.{name}" for name in PICTURES]
NAMES += ["sparse.png", "device.png", "pipe.png", "links", "deep", "folder"]
NAMES += [
    "examples-packed",
    "examples-claimed",
    "examples-claimed-in-numbers",
    "values",
]
NAMES += ["manifest", "parts", "card", "card-of-a-checkpoint", "checkpoint-shape"]
NAMES += ["checkpoint-chunks", "config", "summary", "metrics", "header.safetensors"]
NAMES += [
    "claimed.safetensors",
    "packed.pth",
    "directories.pth",
    "legacy.pth",
    "weights",
]


@pytest.fixture(scope="module")
def measured():
    pytest.importorskip("torch")
    # Not in pytest's folder, which Python's rmtree cleans: it goes down by recursion.
    root = Path(tempfile.mkdtemp())
    try:
        for name, (write, _) in cases().items():
            write(root / name)
        done = subprocess.run(
            [sys.executable, __file__, str(root)],
            capture_output=True,
            text=True,
            timeout=900,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
        )
    finally:
        subprocess.run(["rm", "-rf", root], check=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = map(json.loads, done.stdout.splitlines())
    return {row["name"]: row for row in rows}


def test_every_case_is_measured(measured):
    assert list(measured) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_bomb_takes_little_memory(measured, name):
    row = measured[name]
    assert row["MiB"] < BOUND_MIB, row
    assert (row["said"] is None) == (name in READ)
    assert "MemoryError" not in str(row["said"])


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
