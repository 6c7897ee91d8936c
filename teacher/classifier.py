"""The teacher: a torchvision network that is stored, checked and asked for logits."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from deit_jax.data.crops import CROP_RATIO, centre_view
from deit_jax.distillation import classes
from deit_jax.errors import InputError
from deit_jax.weights import tensor_files
from teacher import network
from teacher.blocks import consecutive, read_blocks

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
TEACHER = "teacher.pt"  # in the run directory of teacher.finetune


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


def load(
    path: str | os.PathLike,
    *,
    arch: str | None = None,
    stem: str | None = None,
    image_size: int | None = None,
) -> Classifier:
    """Reads what `save` wrote, or a state dict of a torchvision network.

    Args:
      path: A run directory of teacher.finetune, or what `tensor_files.open_file` reads.
      arch, stem, image_size: What a bare state dict does not say: `arch` and
        `image_size` are needed for one, its stem is `standard` if not given. Where the
        file says them, they may only repeat it. A bare state dict of any float type is
        taken, with ImageNet's mean and standard deviation.

    Raises:
      InputError: There is no such file, it is damaged, holds more than tensors and
        plain values, or does not fit the network.
    """
    unfinished = Path(path, "checkpoint.pt").exists()
    if unfinished and not Path(path, TEACHER).exists():
        raise InputError(
            f"the teacher in {path} is not trained to its end. Repeat the "
            "teacher.finetune command that began it: it goes on from there."
        )
    file = tensor_files.open_file(path, TEACHER)
    content = file.content
    given = {"arch": arch, "stem": stem, "image_size": image_size}
    if network.is_teacher(content):
        for name, value in given.items():
            if value is not None and value != content[name]:
                raise InputError(
                    f"{path} has {name}={content[name]}, not --{name}={value}. "
                    f"Leave --{name} out."
                )
        stored = {
            field.name: content[field.name]
            for field in dataclasses.fields(Classifier)
            if field.name in content and field.name != "model"
        }
    else:
        if arch is None or image_size is None:
            raise InputError(
                f"{path} is a bare state dict: say what it was trained as, with --arch "
                "(a torchvision name), --image_size (pixels) and, where it has one, "
                "--stem=cifar."
            )
        stored = given | {"stem": stem or "standard"}
    kind = {name: stored[name] for name in given}
    model = network.build(num_classes=None, **kind)
    network.load_weights(model, file, network.describe(**kind))
    network.check_image_size(model, stored["arch"], stored["image_size"])
    return Classifier(model=model, **stored)


def weights_sha256(model: nn.Module) -> str:
    """`tensor_files.sha256` of the state dict."""
    state_dict = model.state_dict().items()
    return tensor_files.sha256({name: x.cpu().numpy() for name, x in state_dict})


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


def logits(
    classifier: Classifier,
    images: np.ndarray,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> np.ndarray:
    """Logits float32 [B, C] of uint8 images [B, H, W, 3]."""
    classifier.model.to(device, memory_format=torch.channels_last).eval()
    with torch.inference_mode(), autocast(device, dtype):
        x = preprocess(
            images, classifier.image_size, classifier.mean, classifier.std, device
        )
        return classifier.model(x).float().cpu().numpy()


def read_plain(
    classifier: Classifier, source, blocks: Iterable[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`read_blocks` of images without augmentation: whole, or their centre view."""

    def view(image, _):
        return centre_view(image, classifier.image_size, classifier.crop_ratio)

    return read_blocks(source, blocks, view)


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


def evaluate(
    classifier: Classifier,
    source,
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[float, np.ndarray]:
    """Top-1 accuracy in 0 .. 1 over all of `source`, and its labels' counts [C]."""
    columns, _ = classes.match(classifier, source)
    correct, counts = 0, np.zeros(source.num_classes, np.int64)
    blocks = consecutive(0, len(source), batch_size)
    for images, labels in read_plain(classifier, source, blocks):
        answers = logits(classifier, images, device=device, dtype=dtype)
        correct += int((answers[:, columns].argmax(-1) == labels).sum())
        counts += np.bincount(labels, minlength=source.num_classes)
    return correct / len(source), counts


def check_strength(top1: float, counts: np.ndarray, split: str) -> None:
    """Refuses a teacher near chance, which points at a wrong file or preprocessing.

    Chance is the share of the most frequent class: what one constant answer gets. A
    teacher has to come a tenth of the way from there to 1, and more than three
    standard errors of chance above it.

    Args:
      top1: Measured accuracy in 0 .. 1.
      counts: Images of each class in the split, int [C].
    """
    chance = counts.max() / counts.sum()
    error = np.sqrt(chance * (1 - chance) / counts.sum())
    needed = min(max(chance + 0.1 * (1 - chance), chance + 3 * error), 1.0)
    if top1 < needed:
        raise InputError(
            f"the teacher is near chance: top-1 {top1:.1%} on {split}, where one "
            f"constant answer gets {chance:.1%} and {needed:.1%} is the least. "
            "Check --arch, --image_size, --stem and the order of the classes, train it "
            "longer, or pass --allow_weak_teacher."
        )
