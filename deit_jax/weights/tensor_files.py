"""Files of weights as NumPy tensors that are read one by one, and writing them.

A file of weights comes from anywhere. Nothing in it is executed, and no tensor is
brought into memory before its reader has looked at its shape.
"""

import argparse
import dataclasses
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from deit_jax.errors import InputError

TORCH_ENDINGS = (".pth", ".pt", ".bin")
ENDINGS = (".safetensors", *TORCH_ENDINGS)
# Where training scripts put the state dict: DeiT's and timm's, the raw one first.
NESTED = ("model", "state_dict", "model_ema", "state_dict_ema")
FLOATS = {"F64", "F32", "F16", "BF16"}  # safetensors' names of types


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file: its shape, and `read()`, its values as a float32 array."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def read_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a file of weights by name, without a prefix `module.`.

    Args:
      path: `.safetensors`; or `.pth`, `.pt` or `.bin`, which need torch: a state dict,
        or a training checkpoint of DeiT or timm that holds one. Of a raw one and its
        moving average the raw one is taken.

    Raises:
      InputError: There is no such file, it is damaged, it is a pickle that holds more
        than tensors and plain values, it holds no state dict, or one with tensors
        that are no floating-point numbers.
    """
    path = Path(path)
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}. Expected a file of weights.")
    if path.suffix.lower() not in ENDINGS:
        raise InputError(
            f"{path}: expected a file of weights that ends in {', '.join(ENDINGS)}."
        )
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty. Download or save it again.")
    if path.suffix.lower() == ".safetensors":
        tensors = _read_safetensors(path)
    else:
        tensors = from_state_dict(_state_dict(_load_torch(path), path), path)
    if tensors and all(name.startswith("module.") for name in tensors):
        # Of torch's DistributedDataParallel.
        tensors = {name.removeprefix("module."): t for name, t in tensors.items()}
    if not tensors:
        raise InputError(f"{path} holds no tensors.")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        # The library checks that the header and the file fit to each other.
        file = safetensors.safe_open(path, framework="np")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}. Download it again.") from error
    types = {name: part.get_dtype() for name, part in slices.items()}
    _refuse_types(path, {n: kind for n, kind in types.items() if kind not in FLOATS})

    def reader(name):
        return lambda: np.array(file.get_tensor(name), np.float32)

    return {
        name: Tensor(tuple(part.get_shape()), reader(name))
        for name, part in slices.items()
    }


def _refuse_types(where, wrong: Mapping[str, str]) -> None:
    if wrong:
        lines = [f"  {name}: {what}" for name, what in list(wrong.items())[:10]]
        more = f"\n  ... and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise InputError(
            f"{where} holds entries that are no floating-point tensors:\n"
            + "\n".join(lines)
            + more
        )


def _load_torch(path: Path):
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f'reading {path} needs torch: pip install -e ".[teacher]", or give the '
            "weights as .safetensors, which does not."
        ) from error
    try:
        # Training checkpoints of DeiT hold their arguments as a Namespace.
        safe = torch.serialization.safe_globals([argparse.Namespace])
        with safe, warnings.catch_warnings():
            # Of unusual pickles; what matters of them is looked at below.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        code = re.search(r"GLOBAL (\S+)", str(error))
        raise InputError(
            f"{path} is damaged or is no file of weights"
            + (f": it refers to {code[1]}" if code else f" ({type(error).__name__})")
            + ". Only tensors and plain values are loaded, since a pickle can run "
            "code: store a model by torch.save(model.state_dict(), FILE)."
        ) from error


def _state_dict(content, path: Path) -> dict:
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict.")
    for key in NESTED:
        if isinstance(content.get(key), dict):
            return content[key]
    return content


def from_state_dict(state_dict: Mapping, where) -> dict[str, Tensor]:
    """The tensors of a torch state dict, by name.

    Args:
      where: Where it comes from, for messages.

    Raises:
      InputError: An entry is no dense floating-point tensor with memory of its own.
    """
    import torch

    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

    def problem(value) -> str | None:
        if not isinstance(value, torch.Tensor):
            return type(value).__name__
        if value.dtype not in floats:
            return str(value.dtype)
        if value.layout is not torch.strided or value.is_nested:
            return "not dense"
        if value.device.type != "cpu":
            return f"on device {value.device.type}"
        # An expanded tensor could be of any size in a file of a few bytes.
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            return f"{tuple(value.shape)}, larger than its memory"
        return None

    for name in state_dict:
        if not isinstance(name, str):
            kind = type(name).__name__
            raise InputError(f"{where} names a tensor by a {kind}, expected a string.")
    problems = {name: problem(value) for name, value in state_dict.items()}
    _refuse_types(where, {name: what for name, what in problems.items() if what})

    def reader(value):
        return lambda: np.array(value.detach().float().numpy())

    return {
        name: Tensor(tuple(value.shape), reader(value))
        for name, value in state_dict.items()
    }


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray]
) -> None:
    """Writes tensors that torch, timm and transformers read.

    A kill leaves the old file or the new, never a half.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    # The library takes the memory as it lies, so that views have to be copied.
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    # transformers refuses a file that does not say so.
    partial.write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    os.replace(partial, path)
