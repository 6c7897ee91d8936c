"""Files of torchvision's classifiers: what they hold, and their tensors in JAX.

What a file of tensors does not say (the architecture, the size of its images) stands in
a `teacher.pt` of teacher.finetune, in a `config.json` of timm beside the file, or is
given.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import traverse_util

from deit_jax import files
from deit_jax.errors import InputError
from deit_jax.models import convnets
from deit_jax.models.params import abstract_params
from deit_jax.weights import one_model, preprocessing, tensor_files, timm

TEACHER = "teacher.pt"  # in the run directory of teacher.finetune
CONFIG = "config.json"
CROP_RATIO = 224 / 256  # torchvision's evaluation
EPSILON = 1e-5  # of torch's BatchNorm
COUNTER = "num_batches_tracked"  # of torch's BatchNorm; it takes no part in the logits
SIDE = 32  # pixels; the parameters of a convolutional network do not depend on it


@dataclasses.dataclass(frozen=True, eq=False)
class Described:
    """A file of weights that is not yet read, and all that is known of its network.

    Attributes:
      file: Its tensors.
      arch: torchvision's name.
      stem: `standard`, or `cifar`.
      image_size: Side in pixels of what the network sees.
      mean, std: Of the RGB channels, in 0 .. 1.
      crop_ratio: Of `deit_jax.data.crops.centre_view`.
      class_names: In the order of the logits; None where nothing says them.
      top1, top1_split: What teacher.finetune has measured; None elsewhere.
    """

    file: tensor_files.Weights
    arch: str
    stem: str
    image_size: int
    mean: tuple[float, ...] = timm.IMAGENET[0]
    std: tuple[float, ...] = timm.IMAGENET[1]
    crop_ratio: float = CROP_RATIO
    class_names: tuple[str, ...] | None = None
    top1: float | None = None
    top1_split: str | None = None

    @property
    def words(self) -> str:
        """The network for messages, by the flags that a user can change."""
        return describe(self.arch, self.stem, self.image_size)


def describe(arch: str, stem: str, image_size: int) -> str:
    """A network for messages, by the flags that a user can change."""
    return f"{arch} of --stem={stem} and --image_size={image_size}"


def is_teacher(content: Mapping) -> bool:
    """Whether a file of weights is a `teacher.pt`, which says what it is."""
    return {"arch", "stem", "image_size"} <= content.keys()


def open_file(
    path: str | os.PathLike,
    *,
    arch: str | None = None,
    stem: str | None = None,
    image_size: int | None = None,
) -> Described:
    """Finds out what a file of weights is.

    Args:
      path: A run directory of teacher.finetune, or what `tensor_files.open_file` reads.
      arch, stem, image_size: What a bare state dict does not say: `arch` and
        `image_size` are needed for one without a `config.json`, its stem is `standard`
        if not given. Where a `teacher.pt` says them, they may only repeat it. A bare
        state dict of any float type is taken, with ImageNet's mean and standard
        deviation.

    Raises:
      InputError: There is no such file, it is damaged, or says too little.
    """
    unfinished = Path(path, "checkpoint.pt").exists()
    if unfinished and not Path(path, TEACHER).exists():
        raise InputError(
            f"the teacher in {path} is not trained to its end. Repeat the "
            "teacher.finetune command that began it: it goes on from there."
        )
    file = tensor_files.open_file(path, TEACHER)
    given = {"arch": arch, "stem": stem, "image_size": image_size}
    if is_teacher(file.content):
        return _of_teacher(path, file, given)
    config = Path(path, CONFIG) if Path(path).is_dir() else Path(path).parent / CONFIG
    return of_timm(path, file, _read_config(config), given)


def _of_teacher(path, file: tensor_files.Weights, given: Mapping) -> Described:
    content = file.content
    for name, value in given.items():
        if value is not None and value != content[name]:
            raise InputError(
                f"{path} has {name}={content[name]}, not --{name}={value}. "
                f"Leave --{name} out."
            )
    names = {field.name for field in dataclasses.fields(Described)} & content.keys()
    return Described(file=file, **{name: content[name] for name in names - {"file"}})


def of_timm(
    path: str | os.PathLike,
    file: tensor_files.Weights,
    config: Mapping,
    given: Mapping,
) -> Described:
    """Describes a state dict by a `config.json` of timm (or {}), and what is `given`.

    Raises:
      InputError: The architecture or the size is not known, or what is said is wrong.
    """
    about = config.get("pretrained_cfg") or config
    size = about.get("input_size") or [None]
    arch = given["arch"]
    if arch is None and "architecture" in config:
        arch = convnets.torchvision_name(str(config["architecture"]))
    image_size = given["image_size"] or size[-1]
    if arch is None or type(image_size) is not int:
        raise InputError(
            f"{path} is a bare state dict: say what it was trained as, with --arch (a "
            "torchvision name), --image_size (pixels) and, where it has one, "
            "--stem=cifar; or in a config.json of timm beside it, "
            '{"architecture": "resnet50", "pretrained_cfg": {"input_size": [3, 224, '
            "224]}}."
        )
    prepared = preprocessing.check(
        preprocessing.Preprocessing(
            about.get("mean", timm.IMAGENET[0]),
            about.get("std", timm.IMAGENET[1]),
            about.get("crop_pct", CROP_RATIO),
        ),
        str(path),
    )
    names = config.get("label_names") or about.get("label_names")
    return Described(
        file=dataclasses.replace(file, tensors=_torchvision_names(file.tensors)),
        arch=arch,
        stem=given["stem"] or "standard",
        image_size=image_size,
        mean=prepared.mean,
        std=prepared.std,
        crop_ratio=prepared.crop_ratio,
        class_names=tuple(names) if isinstance(names, list) else None,
    )


def _read_config(path: Path) -> dict:
    """A `config.json` of timm; {} where there is none, or one of something else."""
    if not path.is_file():
        return {}
    try:
        content = files.read_json(path)
        files.check(content, {})
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}. Fix or remove it.") from error
    return content if "architecture" in content else {}


# timm's names of the layers of a RegNet, and torchvision's.
REGNET = (
    (r"^stem\.conv\.", "stem.0."),
    (r"^stem\.bn\.", "stem.1."),
    (r"^head\.fc\.", "fc."),
    (r"\.conv1\.conv\.", ".f.a.0."),
    (r"\.conv1\.bn\.", ".f.a.1."),
    (r"\.conv2\.conv\.", ".f.b.0."),
    (r"\.conv2\.bn\.", ".f.b.1."),
    (r"\.conv3\.conv\.", ".f.c.0."),
    (r"\.conv3\.bn\.", ".f.c.1."),
    (r"\.se\.", ".f.se."),
    (r"\.downsample\.conv\.", ".proj.0."),
    (r"\.downsample\.bn\.", ".proj.1."),
)


def _torchvision_names(tensors: Mapping) -> dict:
    """The tensors under torchvision's names, where they are a RegNet of timm."""
    if "s1.b1.conv1.conv.weight" not in tensors:
        return dict(tensors)
    renamed = {}
    for name, tensor in tensors.items():
        for theirs, ours in REGNET:
            name = re.sub(theirs, ours, name)
        parts = re.fullmatch(r"s(\d)\.b(\d+)\.(.*)", name)
        if parts:
            stage, block = int(parts[1]), int(parts[2]) - 1
            name = f"trunk_output.block{stage}.block{stage}-{block}.{parts[3]}"
        renamed[name] = tensor
    return renamed


def read(found: Described, dtype: str) -> tuple[object, dict, str]:
    """The network of a file in JAX.

    Args:
      dtype: What it computes in.

    Returns:
      The module, its parameters (float32 NumPy arrays), and the SHA-256 of the weights.

    Raises:
      InputError: The architecture does not run in JAX, or the file holds another.
    """
    arch, stem = found.arch, found.stem
    thousand = convnets.create(arch, num_classes=1000, stem=stem, dtype=dtype)
    expected = _state_dict(abstract_params(thousand, SIDE))
    first = ", ".join(list(expected)[:3])
    weights = one_model.choose(
        found.file, expected.__contains__, f"{found.words}: no {first}, ..."
    )
    head = weights.tensors.get("fc.weight")
    classes = head.shape[0] if head is not None and len(head.shape) == 2 else 1000
    module = convnets.create(arch, num_classes=classes, stem=stem, dtype=dtype)
    abstract = abstract_params(module, SIDE)
    expected = _state_dict(abstract)
    one_model.check(
        weights,
        {
            name: array
            for name, array in expected.items()
            if name in weights.tensors or not name.endswith(COUNTER)
        },
        found.words,
    )
    if weights.note:
        print(f"note: {weights.where}: {weights.note}", file=sys.stderr)
    # BatchNorm's counters are a part of the hash, as in torch; old files have none.
    state_dict = {
        name: weights.tensors[name].read() if name in weights.tensors else zeros
        for name, zeros in expected.items()
    }
    return module, _fold(state_dict, abstract), tensor_files.sha256(state_dict)


def norm_of(layer: str) -> str | None:
    """The name of the BatchNorm that follows a convolution; None for a head or SE."""
    if layer.endswith(".0"):
        return layer[:-1] + "1"
    name = re.sub(r"conv(\d)$", r"bn\1", layer)
    return None if name == layer else name


def _state_dict(abstract: Mapping) -> dict[str, np.ndarray]:
    """torch's names and shapes for these parameters: zeros, without their memory."""
    shapes = {}
    for (*path, kind), leaf in traverse_util.flatten_dict(abstract).items():
        layer = ".".join(path)
        norm = norm_of(layer)
        if kind == "kernel":
            *window, inputs, outputs = leaf.shape
            shapes[f"{layer}.weight"] = (outputs, inputs, *window)
        elif norm is None:
            shapes[f"{layer}.bias"] = leaf.shape
        else:
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{norm}.{name}"] = leaf.shape
            shapes[f"{norm}.{COUNTER}"] = ()
    return {
        name: np.broadcast_to(
            np.zeros((), np.int64 if name.endswith(COUNTER) else np.float32), shape
        )
        for name, shape in shapes.items()
    }


def _fold(state_dict: Mapping[str, np.ndarray], abstract: Mapping) -> dict:
    """The parameters, with each BatchNorm in the convolution before it."""
    params = {}
    for *path, kind in traverse_util.flatten_dict(abstract):
        if kind == "bias":
            continue
        layer = ".".join(path)
        weight = state_dict[f"{layer}.weight"]
        # [out, in, height, width] of a convolution, [out, in] of a linear layer.
        kernel = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        norm = norm_of(layer)
        if norm is None:
            bias = state_dict[f"{layer}.bias"]
        else:
            scale, shift, mean, variance = (
                state_dict[f"{norm}.{name}"].astype(np.float64)
                for name in ("weight", "bias", "running_mean", "running_var")
            )
            scale = scale / np.sqrt(variance + EPSILON)
            kernel = (kernel * scale).astype(np.float32)
            bias = (shift - mean * scale).astype(np.float32)
        params[*path, "kernel"] = np.ascontiguousarray(kernel)
        params[*path, "bias"] = bias
    return traverse_util.unflatten_dict(params)
