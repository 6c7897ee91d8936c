"""Files of weights as NumPy arrays, and writing them.

Students and teachers read their files here. The content of a file says what it is, not
its ending, and nothing in it is executed.
"""

import argparse
import dataclasses
import hashlib
import os
import pathlib
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from deit_jax import files
from deit_jax.errors import InputError

# Of a directory, in this order. An index names the files of a model in several parts.
INDEX = ".index.json"
WHOLE = ("model.safetensors", "pytorch_model.bin")
FILES = tuple(name + ending for name in WHOLE for ending in ("", INDEX))
FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a file holds, or one model of it.

    Attributes:
      where: The file, and the place of the model in it, for messages.
      tensors: Arrays by name, those of any floating-point type as float32; a dict in a
        dict is a prefix: `state_dict.model.head.weight`.
      content: The whole dict of a file of torch; empty for others.
      note: Which of raw and averaged weights were chosen, where there is an average.
    """

    where: str
    tensors: dict[str, np.ndarray]
    content: dict = dataclasses.field(default_factory=dict)
    note: str | None = None


def find(path: str | os.PathLike, *names: str) -> Path:
    """The file that holds or lists the weights: `path`, or one in this directory.

    In a directory it is one of `names`, or else of `FILES`. Raises InputError where
    there is none, and for an address.
    """
    if "://" in str(path):
        raise InputError(f"{path} is an address. Download it, and give the file.")
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        what = "is no file" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}. Expected a file or directory of weights.")
    for name in (*names, *FILES):
        if (path / name).is_file():
            return path / name
    there = sorted(file.name for file in path.iterdir())[:10]
    raise InputError(
        f"{path} has no {' or '.join((*names, *WHOLE))}, nor an index of parts "
        f"(*{INDEX}). Give a file of weights: it has {', '.join(there) or 'none'}."
    )


def open_file(path: str | os.PathLike, *names: str) -> Weights:
    """All tensors of a file of weights, or of the files that its index lists.

    Args:
      path: safetensors, npz, what torch.save writes (which needs torch), an index of
        transformers, or a directory with one of `FILES`.
      names: See `find`.

    Raises:
      InputError: See `find`; or the file is damaged, of another kind, or a pickle with
        more in it than tensors and plain values; or a part is missing.
    """
    path = find(path, *names)
    try:
        with open(path, "rb") as file:
            start = file.read(512)
        return _open(path, start)
    except InputError:
        raise
    except (safetensors.SafetensorError, zipfile.BadZipFile, OSError, ValueError) as e:
        raise InputError(f"{path} is damaged: {e}. Download or save it again.") from e


def _open(path: Path, start: bytes) -> Weights:
    # Its header follows eight bytes of length, which can look like anything.
    if start[4:9] == b"\0\0\0\0{":
        return Weights(str(path), arrays(safetensors.numpy.load_file(path)))
    if start.lstrip().startswith(b"{"):
        return _open_index(path)
    if start.startswith(b"PK\3\4") and _is_npz(path):
        with np.load(path) as file:  # no pickles
            return Weights(str(path), arrays(file))
    if start.startswith((b"\x80", b"PK\3\4")):
        return _open_torch(path)
    if start.startswith(b"version https://git-lfs"):
        what = "is a pointer of Git LFS, not the file itself: run `git lfs pull`"
    elif re.match(rb"\s*<", start):
        what = "is a web page: its download met an error or a login"
    else:
        what = f"is no file of weights: it begins with {start[:16]!r}"
    raise InputError(
        f"{path} {what}. Expected safetensors, npz, or what torch.save writes."
    )


def _open_torch(path: Path) -> Weights:
    content = load_torch(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict.")
    tensors = arrays(content)
    if not tensors:
        keys = ", ".join(map(str, list(content)[:5])) or "nothing at all"
        raise InputError(f"{path} holds no tensors of a model, but {keys}.")
    return Weights(str(path), tensors, dict(content))


def _open_index(path: Path) -> Weights:
    index = files.read_json(path)
    files.check(index, {"weight_map": {...: str}})
    parts = index["weight_map"]
    if missing := {p for p in parts.values() if not (path.parent / p).is_file()}:
        count = sum(part in missing for part in parts.values())
        raise InputError(
            f"{path} lists {', '.join(sorted(missing))}, which {path.parent} does not "
            f"have: {count:,} of {len(parts):,} tensors are missing. Download it too."
        )
    tensors = {}
    for part in sorted(set(parts.values())):
        tensors |= open_file(path.parent / part).tensors
    return Weights(str(path), tensors)


def _is_npz(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return all(name.endswith(".npy") for name in archive.namelist())


def load_torch(path: str | os.PathLike):
    """`torch.load` of tensors and plain values; refuses what refers to other code."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"reading {path} needs torch: pip install torch. Or give the "
            "weights as .safetensors, which does not."
        ) from error
    scalar = np.float64(0).__reduce__()[0]
    # What training scripts store beside weights: arguments, and NumPy's numbers.
    safe = [
        argparse.Namespace,
        pathlib.PosixPath,
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),  # of NumPy 1
        np.dtype,
        *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")),
    ]
    try:
        with torch.serialization.safe_globals(safe), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles
            with open(path, "rb") as file:  # of a path torch believes the ending
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        code = re.search(r"(?:GLOBAL|Unsupported class|function) (\S+)", str(error))
        if code is None:
            raise InputError(
                f"{path} is damaged, or torch.save did not write it "
                f"({type(error).__name__}). Download or save it again."
            ) from error
        raise InputError(
            f"{path} holds more than tensors and plain values: {code[1]}, which is not "
            "loaded, since a pickle can run code. Where you trust it, save the tensors "
            "alone: torch.save(model.state_dict(), FILE), or of a checkpoint "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)."
        ) from error


def arrays(content: Mapping) -> dict[str, np.ndarray]:
    """The tensors and arrays of a dict, in dicts in it too, but of no optimizer."""
    return {name: _array(tensor) for name, tensor in _flat(content, "")}


def _flat(content: Mapping, prefix: str) -> Iterator[tuple]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            if "optim" not in str(key).lower():
                yield from _flat(value, f"{prefix}{key}.")
        elif hasattr(value, "untyped_storage") or isinstance(value, np.ndarray):
            yield f"{prefix}{key}", value


def _array(tensor) -> np.ndarray:
    if isinstance(tensor, np.ndarray):
        return tensor.astype(np.float32) if tensor.dtype.name in FLOATS else tensor
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def sha256(tensors: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 (hex) of weights: name, type, shape and bytes in name order.

    It belongs to the weights as the program uses them, not to a file: the same
    weights in a `teacher.pt` and in a bare state dict have the same hash.
    """
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(f"{name}:{array.dtype.str}{array.shape}:".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray]
) -> None:
    """Writes tensors that torch, timm and transformers read, all or nothing."""
    # The library takes the memory as it lies, so that views have to be copied.
    tensors = {n: np.asarray(value, order="C") for n, value in tensors.items()}
    # transformers refuses a file that does not say so.
    files.replace_file(path, safetensors.numpy.save(tensors, {"format": "pt"}))
