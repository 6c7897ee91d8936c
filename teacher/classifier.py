"""The teacher: a torchvision network that is stored, checked and asked for logits."""

import contextlib
import dataclasses
import io
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from deit_jax import files
from deit_jax.distillation.teacher import Answers
from deit_jax.errors import InputError
from deit_jax.weights import tensor_files, torchvision
from teacher import network

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclasses.dataclass(eq=False)
class Classifier(torchvision.Network):
    """A torchvision network with float32 parameters, and how to use it on images."""

    model: nn.Module

    @property
    def num_classes(self) -> int:
        return network.find_head(self.model)[1].out_features

    @property
    def num_features(self) -> int:
        """f of `Answers`."""
        return network.find_head(self.model)[1].in_features

    @property
    def sha256(self) -> str:
        """`tensor_files.sha256` of the state dict."""
        state_dict = self.model.state_dict().items()
        return tensor_files.sha256({name: x.cpu().numpy() for name, x in state_dict})


def save(path: str | os.PathLike, classifier: Classifier, **extra) -> None:
    """Writes one file of tensors and plain values, `extra` among them."""
    state_dict = {n: x.cpu() for n, x in classifier.model.state_dict().items()}
    replace_file(path, classifier.known() | {"model": state_dict} | extra)


def replace_file(path: str | os.PathLike, content: dict) -> None:
    """torch.save, all or nothing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    files.replace_file(path, buffer.getbuffer())


def load(path: str | os.PathLike, **given) -> Classifier:
    """Reads what `save` wrote, or a state dict of a torchvision network.

    Arguments and errors are those of `deit_jax.weights.torchvision.open_file`.
    """
    return build(torchvision.open_file(path, **given))


def build(found: torchvision.Described) -> Classifier:
    """Reads a file that is described into its network; raises InputError as `load`."""
    model = network.build(
        found.arch, None, stem=found.stem, image_size=found.image_size
    )
    network.load_weights(model, found)
    return Classifier(model, **found.known())


def choose_device(name: str | None = None) -> torch.device:
    """The named device, or the first GPU, or the CPU."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device={name} cannot be used here: {error}") from error
    return device


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What convolutions and matrix products compute in.

    `auto` is bfloat16 where the processor has instructions for it, else float16 on a
    GPU and float32 on a CPU. Parameters are float32 in every case.
    """
    if precision not in PRECISIONS:
        raise InputError(
            f"--precision={precision}: expected one of {', '.join(PRECISIONS)}."
        )
    if precision != "auto":
        return getattr(torch, precision)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    features = getattr(torch.cpu, "get_capabilities", dict)()
    native = features.get("avx512_bf16") or features.get("amx_bf16")
    return torch.bfloat16 if native and device.type == "cpu" else torch.float32


def deterministic() -> None:
    """Autotuning picks kernels by the clock: two exports could differ in rounding."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def preprocess(
    images: np.ndarray,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
) -> torch.Tensor:
    """Resizes and normalises uint8 [B, H, W, 3] to float32 [B, 3, S, S].

    Bilinear with `align_corners=False`; antialiased where an image shrinks (Pillow's
    bilinear), which is no different where it grows.
    """
    x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
    if x.shape[2:] != (image_size, image_size):
        x = functional.interpolate(
            x,
            size=(image_size, image_size),
            mode="bilinear",
            align_corners=False,
            antialias=max(x.shape[2:]) > image_size,
        )
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (mean, std))
    x = (x / 255 - mean) / std
    return x.contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def explain_out_of_memory():
    """Turns a GPU that runs out of memory into an InputError; a decorator too."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        what, _, _ = str(error).partition(". GPU")  # what follows is for developers
        raise InputError(
            f"the memory of the GPU ran out ({what}). Lower --batch_size, or end other "
            "programs that use it."
        ) from error


class TorchBackend:
    """torch as what computes a `Classifier`'s logits.

    Arguments: see `choose_dtype` and `choose_device`.
    """

    name = "torch"

    def __init__(self, precision: str = "float32", device: str | None = None):
        self.device = choose_device(device)
        self.dtype = choose_dtype(precision, self.device)
        self.precision = str(self.dtype).removeprefix("torch.")

    def forward(self, classifier: Classifier, images: np.ndarray) -> torch.Tensor:
        """Logits float32 [B, C], on the device, of uint8 images [B, H, W, 3]."""
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=mixed):
            x = preprocess(
                images,
                classifier.image_size,
                classifier.mean,
                classifier.std,
                self.device,
            )
            return classifier.model(x).float()

    @explain_out_of_memory()
    def answers(
        self, classifier: Classifier, images: np.ndarray, *, features: bool = False
    ) -> Answers:
        """Answers float32 [B, ...] to uint8 images [B, H, W, 3]."""
        classifier.model.to(self.device, memory_format=torch.channels_last).eval()
        read = []
        _, head = network.find_head(classifier.model)
        hook = head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        with hook, torch.inference_mode():
            logits = self.forward(classifier, images)
        pooled = read[0].float().cpu().numpy() if features else None
        return Answers(logits.cpu().numpy(), pooled)
