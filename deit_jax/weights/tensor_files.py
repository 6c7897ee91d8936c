"""Files of weights as NumPy tensors that are read one by one, and writing them.

Students and teachers read their files here. A file of weights comes from anywhere: its
content says what it is, not its ending. Nothing in it is executed, and no tensor of
safetensors or torch is converted before its reader has looked at its shape.
"""

import argparse
import dataclasses
import hashlib
import os
import pathlib
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from deit_jax import files
from deit_jax.errors import InputError

# Of a directory, in this order. An index names the files of a model in several parts.
INDEX = ".index.json"
WHOLE = ("model.safetensors", "pytorch_model.bin")
FILES = tuple(name + ending for name in WHOLE for ending in ("", INDEX))
PART = re.compile(r"-\d{5}-of-(\d{5})\.")  # of a file's name
FLOATS = ("float64", "float32", "float16", "bfloat16")
SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
DEEPEST = 8  # dicts in one another


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file.

    Attributes:
      shape: Its sides.
      dtype: NumPy's name of its type; or what makes it unreadable.
      read: Returns its values; all floating-point types become float32.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a file holds, or one model of it.

    Attributes:
      where: The file, and the place of the model in it, for messages.
      tensors: By name; a dict in a dict is a prefix: `state_dict.model.head.weight`.
      content: The whole dict of a file of torch; empty for others.
      note: Which of raw and averaged weights were chosen, where there is an average.
    """

    where: str
    tensors: dict[str, Tensor]
    content: dict = dataclasses.field(default_factory=dict)
    note: str | None = None


def find(path: str | os.PathLike, *names: str) -> Path:
    """The file that holds or lists the weights: `path`, or one in this directory.

    Args:
      names: What to look for in a directory before `FILES`.

    Raises:
      InputError: `path` is an address, does not exist, is one part of several, or is a
        directory without such a file.
    """
    if "://" in str(path):
        raise InputError(f"{path} is an address. Download it, and give the file.")
    path = Path(path)
    if path.is_dir():
        return _find_in(path, names)
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}. Expected a file or directory of weights.")
    if part := PART.search(path.name):
        raise InputError(
            f"{path} is one of {int(part[1])} parts of a model. Give their directory."
        )
    return path


def _find_in(directory: Path, names: tuple[str, ...]) -> Path:
    for name in (*names, *FILES):
        if (directory / name).is_file():
            return directory / name
    there = sorted(path.name for path in directory.iterdir() if path.is_file())
    if parts := [name for name in there if PART.search(name)]:
        raise InputError(
            f"{directory} has parts of a model ({', '.join(parts[:3])}), but not "
            f"{PART.sub('.', parts[0])}{INDEX}, which lists them. Download it too."
        )
    raise InputError(
        f"{directory} has no {' or '.join((*names, *WHOLE))}, nor an index of parts. "
        + (
            f"Give a file of weights: it has {', '.join(there[:10])}."
            if there
            else "Expected a directory as timm and transformers save it, or a file."
        )
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
    start = _start(path)
    if _is_safetensors(start) or not start.lstrip().startswith(b"{"):
        return _open_one(path)
    try:
        index = files.read_json(path)
        files.check(index, {"weight_map": {...: str}})
    except ValueError as error:
        raise InputError(f"{path} is no index of weights: {error}.") from error
    parts = index["weight_map"]
    if missing := {p for p in parts.values() if not (path.parent / p).is_file()}:
        count = sum(part in missing for part in parts.values())
        raise InputError(
            f"{path} lists {', '.join(sorted(missing))}, which {path.parent} does not "
            f"have: {count:,} of {len(parts):,} tensors are missing. Download it too."
        )
    tensors = {}
    for part in sorted(set(parts.values())):
        tensors |= _open_one(path.parent / part).tensors
    return Weights(str(path), tensors)


def _start(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(512)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def _is_safetensors(start: bytes) -> bool:
    """Its header follows eight bytes of length, which can look like anything."""
    return start[4:9] == b"\0\0\0\0{"


def _open_one(path: Path) -> Weights:
    start = _start(path)
    if _is_safetensors(start):
        return _open_safetensors(path)
    if start.startswith(b"\x80"):
        return _open_torch(path)
    if start.startswith(b"PK\3\4"):
        return _open_zip(path)
    raise InputError(f"{path} {_describe(start)}")


def _describe(start: bytes) -> str:
    """What a file is that holds no weights, from how it begins."""
    if not start:
        return "is empty. Download or save it again."
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself. Run `git lfs pull`."
    if re.match(rb"\s*<(!doctype|html|\?xml|!--)", start, re.IGNORECASE):
        return (
            "is a web page, not weights: its download met an error or a login. "
            "Download it again."
        )
    return (
        f"is no file of weights: it begins with {start[:16]!r}. Expected safetensors, "
        "npz, or what torch.save writes."
    )


def _open_safetensors(path: Path) -> Weights:
    try:
        # The library checks that the header and the file fit to each other.
        file = safetensors.safe_open(path, framework="np")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}. Download it again.") from error

    def reader(name, dtype):
        return lambda: np.array(
            file.get_tensor(name), np.float32 if dtype in FLOATS else None
        )

    tensors = {}
    for name, part in slices.items():
        dtype = part.get_dtype()
        dtype = SAFETENSORS.get(dtype, dtype.replace("I", "int"))
        tensors[name] = Tensor(tuple(part.get_shape()), dtype, reader(name, dtype))
    return Weights(str(path), tensors)


def _open_zip(path: Path) -> Weights:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        arrays = {}
        if all(name.endswith(".npy") for name in names):
            with np.load(path) as file:  # no pickles
                arrays = dict(file)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise InputError(
            f"{path} is damaged ({error}). Download or save it again."
        ) from error
    if arrays:
        return Weights(str(path), {n: _from_array(x) for n, x in arrays.items()})
    if any(name.endswith("constants.pkl") for name in names):
        raise InputError(
            f"{path} is a TorchScript program, not weights. Save those of it: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW)."
        )
    if any(name.endswith("data.pkl") for name in names):
        return _open_torch(path)
    raise InputError(
        f"{path} is an archive of {', '.join(names[:3]) or 'nothing'} ... Unpack it, "
        "and give the file of weights."
    )


def _from_array(array: np.ndarray) -> Tensor:
    dtype = array.dtype.name
    kind = np.float32 if dtype in FLOATS else None
    return Tensor(array.shape, dtype, lambda: np.array(array, kind))


def _open_torch(path: Path) -> Weights:
    content = load_torch(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict.")
    tensors = from_torch(content)
    if not tensors:
        keys = ", ".join(map(str, list(content)[:5])) or "nothing at all"
        raise InputError(f"{path} holds no tensors of a model, but {keys}.")
    return Weights(str(path), tensors, dict(content))


def load_torch(path: str | os.PathLike):
    """`torch.load` of tensors and plain values.

    Raises:
      InputError: torch is missing, or the file is damaged or refers to other code.
    """
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


def from_torch(state_dict: Mapping) -> dict[str, Tensor]:
    """The tensors of a dict of torch, in dicts in it too, but of no optimizer."""
    return {name: _from_tensor(x) for name, x in _flat(state_dict, "", DEEPEST)}


def _flat(content: Mapping, prefix: str, depth: int) -> Iterator[tuple]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            if depth and "optim" not in str(key).lower():
                yield from _flat(value, f"{prefix}{key}.", depth - 1)
        elif hasattr(value, "untyped_storage"):
            yield f"{prefix}{key}", value


def _from_tensor(value) -> Tensor:
    dtype = str(value.dtype).removeprefix("torch.")
    if str(value.layout) != "torch.strided" or value.is_nested:
        dtype = "not dense"
    elif value.device.type != "cpu":
        dtype = f"on device {value.device.type}"
    # An expanded tensor could be of any size in a file of a few bytes.
    elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
        dtype = "larger than its memory"

    def read():
        tensor = value.detach()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        return np.array(tensor.numpy())

    return Tensor(tuple(value.shape), dtype, read)


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
    """Writes tensors that torch, timm and transformers read.

    A kill leaves the old file or the new, never a half.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    # The library takes the memory as it lies, so that views have to be copied.
    tensors = {n: np.asarray(value, order="C") for n, value in tensors.items()}
    # transformers refuses a file that does not say so.
    partial.write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    os.replace(partial, path)
