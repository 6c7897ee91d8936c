"""The teacher: a torchvision network that is stored, checked and asked for logits."""

import contextlib
import dataclasses
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from deit_jax.distillation.teacher import Answers
from deit_jax.errors import InputError
from deit_jax.weights import tensor_files, timm, torchvision
from deit_jax.weights.torchvision import CROP_RATIO
from teacher import network

IMAGENET_MEAN, IMAGENET_STD = timm.IMAGENET
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclasses.dataclass(eq=False)
class Classifier:
    """A network and all that is needed to use it on uint8 images.

    Attributes:
      model: The torchvision network, float32 parameters.
      arch: torchvision's name of it.
      stem: `standard`, or `cifar` (`replace_stem`).
      image_size: Side in pixels of what the network sees.
      mean, std: Of the RGB channels, in 0 .. 1.
      crop_ratio: Of the `deit_jax.data.crops.centre_view` of images that are not all
        squares of one size.
      class_names: In the order of the logits; None where a file does not say.
      top1: Accuracy in 0 .. 1 on `top1_split`; None where it was not measured.
      top1_split: e.g. `test`.
    """

    model: nn.Module
    arch: str
    stem: str
    image_size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_ratio: float = CROP_RATIO
    class_names: tuple[str, ...] | None = None
    top1: float | None = None
    top1_split: str | None = None

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
    """Writes one file of tensors and plain values, all or nothing.

    Args:
      extra: More plain values and tensors to store in it.
    """
    content = {
        field.name: getattr(classifier, field.name)
        for field in dataclasses.fields(classifier)
    }
    content["model"] = {
        name: tensor.cpu() for name, tensor in classifier.model.state_dict().items()
    }
    replace_file(Path(path), content | extra)


def replace_file(path: Path, content: dict) -> None:
    """torch.save to a file that is either the old one or the new one, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(path: str | os.PathLike, **given) -> Classifier:
    """Reads what `save` wrote, or a state dict of a torchvision network.

    Args:
      path, given: As of `deit_jax.weights.torchvision.open_file`.

    Raises:
      InputError: There is no such file, it is damaged, holds more than tensors and
        plain values, or does not fit the network.
    """
    return build(torchvision.open_file(path, **given))


def build(found: torchvision.Described) -> Classifier:
    """Reads a file that is described into its network; raises InputError as `load`."""
    model = network.build(
        found.arch, None, stem=found.stem, image_size=found.image_size
    )
    network.load_weights(model, found.file, found.words)
    network.check_image_size(model, found.arch, found.image_size)
    stored = {
        field.name: getattr(found, field.name)
        for field in dataclasses.fields(Classifier)
        if field.name != "model"
    }
    return Classifier(model=model, **stored)


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


def autocast(device: torch.device, dtype: torch.dtype):
    """Mixed precision, or nothing at all for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


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


def answers(
    classifier: Classifier,
    images: np.ndarray,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Answers:
    """Answers float32 [B, ...] to uint8 images [B, H, W, 3]."""
    classifier.model.to(device, memory_format=torch.channels_last).eval()
    read = []
    _, head = network.find_head(classifier.model)
    hook = head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with hook, torch.inference_mode(), autocast(device, dtype):
        x = preprocess(
            images, classifier.image_size, classifier.mean, classifier.std, device
        )
        found = classifier.model(x), read[0]
        return Answers(*(x.float().cpu().numpy() for x in found))


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


@dataclasses.dataclass(frozen=True)
class TorchBackend:
    """torch as what computes a `Classifier`'s logits.

    Args:
      precision: See `choose_dtype`.
      device: See `choose_device`.

    Raises:
      InputError: One of them cannot work here.
    """

    precision: str = "float32"
    device: str | None = None
    name = "torch"

    def __post_init__(self):
        place = choose_device(self.device)
        dtype = str(choose_dtype(self.precision, place)).removeprefix("torch.")
        object.__setattr__(self, "precision", dtype)
        object.__setattr__(self, "device", str(place))

    @explain_out_of_memory()
    def answers(self, classifier: Classifier, images: np.ndarray) -> Answers:
        """Answers float32 [B, ...] to uint8 images [B, H, W, 3]."""
        device, dtype = torch.device(self.device), getattr(torch, self.precision)
        return answers(classifier, images, device=device, dtype=dtype)
