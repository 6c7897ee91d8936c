"""Files of torch weights: read without running code, and written whole."""

import os
from pathlib import Path

import torch
from torch import nn

from deit_jax.errors import InputError


def load_file(path: Path) -> dict:
    """torch.load of tensors and plain values only; anything else is an InputError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}.") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(
            f"{path} is damaged or is no file of weights ({type(error).__name__}). "
            "Only tensors and plain values are loaded, since a pickle can hold code: "
            "store a network by torch.save(model.state_dict(), FILE)."
        ) from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict.")
    return content


def read(path: Path) -> tuple[dict, dict]:
    """What a file says beside its weights (nothing if it is bare), and the weights."""
    content = load_file(path)
    if "arch" in content:
        if missing := sorted({"model", "stem", "image_size"} - content.keys()):
            raise InputError(f"{path} is no teacher: it lacks {', '.join(missing)}.")
        state = content["model"]
    else:
        content, state = {}, content
    if not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        keys = ", ".join(list(state)[:5])
        raise InputError(
            f"{path} is neither a teacher.pt nor a state dict of tensors: it has the "
            f"keys {keys}. Store the state dict alone."
        )
    return content, state


def load_state(model: nn.Module, state: dict, what: str) -> None:
    expected = model.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in state]
    wrong += [f"{name} is not part of it" for name in state if name not in expected]
    wrong += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if wrong:
        raise InputError(
            f"cannot load {what}: {'; '.join(wrong[:3])}"
            f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}. "
            "Check --arch, --stem and --image_size."
        )
    model.load_state_dict(state)


def replace_file(path: Path, content: dict) -> None:
    """torch.save to a file that is either the old one or the new one, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
