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

from deit_jax.errors import InputError
from deit_jax.models import convnets
from deit_jax.models.params import abstract_params
from deit_jax.weights import one_model, preprocessing, tensor_files, timm
from deit_jax.weights.load import read_config

TEACHER = "teacher.pt"  # in the run directory of teacher.finetune
CONFIG = "config.json"
CROP_RATIO = 224 / 256  # torchvision's evaluation
EPSILON = 1e-5  # of torch's BatchNorm
COUNTER = "num_batches_tracked"  # of torch's BatchNorm; it takes no part in the logits
SIDE = 32  # pixels; the parameters of a convolutional network do not depend on it


@dataclasses.dataclass(eq=False, kw_only=True)
class Network:
    """What is known of a trained classifier.

    Attributes:
      arch: torchvision's name.
      stem: `standard`, or `cifar`.
      image_size: Side in pixels of what the network sees.
      mean, std: Of the RGB channels, in 0 .. 1.
      crop_ratio: Of the `deit_jax.data.crops.centre_view` of images that are not all
        squares of one size.
      class_names: In the order of the logits; None where nothing says them.
      top1: Accuracy in 0 .. 1 on `top1_split`; None where it was not measured.
      top1_split: e.g. `test`.
    """

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
        return f"{self.arch} of --stem={self.stem} and --image_size={self.image_size}"

    def known(self) -> dict:
        """These attributes."""
        return {x.name: getattr(self, x.name) for x in dataclasses.fields(Network)}


@dataclasses.dataclass(eq=False)
class Described(Network):
    """A file of weights that is not yet read into its network."""

    file: tensor_files.Weights


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
        if not given, its mean and standard deviation are ImageNet's. Where a
        `teacher.pt` says them, they may only repeat it.

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
    return of_timm(path, file, read_config(config), given)


def _of_teacher(path, file: tensor_files.Weights, given: Mapping) -> Described:
    content = file.content
    for name, value in given.items():
        if value is not None and value != content[name]:
            raise InputError(
                f"{path} has {name}={content[name]}, not --{name}={value}. "
                f"Leave --{name} out."
            )
    names = {field.name for field in dataclasses.fields(Network)}
    return Described(file, **{n: content[n] for n in names & content.keys()})


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
    if "architecture" not in config:  # of something else that lies in the same folder
        config = {}
    about = (config.get("pretrained_cfg") or {}) | config
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
        {
            "mean": about.get("mean", timm.IMAGENET[0]),
            "std": about.get("std", timm.IMAGENET[1]),
            "crop_ratio": about.get("crop_pct", CROP_RATIO),
        },
        str(path),
    )
    names = about.get("label_names")
    return Described(
        dataclasses.replace(file, tensors=_torchvision_names(file.tensors)),
        arch=arch,
        stem=given["stem"] or "standard",
        image_size=image_size,
        **prepared,
        class_names=tuple(names) if isinstance(names, list) else None,
    )


# timm's names of the layers of a RegNet, and torchvision's.
REGNET = {
    "stem.conv.": "stem.0.",
    "stem.bn.": "stem.1.",
    "head.fc.": "fc.",
    ".conv1.conv.": ".f.a.0.",
    ".conv1.bn.": ".f.a.1.",
    ".conv2.conv.": ".f.b.0.",
    ".conv2.bn.": ".f.b.1.",
    ".conv3.conv.": ".f.c.0.",
    ".conv3.bn.": ".f.c.1.",
    ".se.": ".f.se.",
    ".downsample.conv.": ".proj.0.",
    ".downsample.bn.": ".proj.1.",
}


def _torchvision_names(tensors: Mapping) -> dict:
    """The tensors under torchvision's names, where they are a RegNet of timm."""
    if "s1.b1.conv1.conv.weight" not in tensors:
        return dict(tensors)
    renamed = {}
    for name, tensor in tensors.items():
        for theirs, ours in REGNET.items():
            name = name.replace(theirs, ours)
        parts = re.fullmatch(r"s(\d)\.b(\d+)\.(.*)", name)
        if parts:
            stage, block = int(parts[1]), int(parts[2]) - 1
            name = f"trunk_output.block{stage}.block{stage}-{block}.{parts[3]}"
        renamed[name] = tensor
    return renamed


def choose(found: Described, expected: Mapping) -> tensor_files.Weights:
    """The tensors of the network in its file; a note on raw and averaged is printed.

    BatchNorm's counters are a part of the hash, as in torch; old files have none.

    Args:
      expected: Arrays of such a network, by name.

    Raises:
      InputError: The file has no such network.
    """
    first = ", ".join(list(expected)[:3])
    weights = one_model.choose(
        found.file, expected.__contains__, f"{found.words}: no {first}, ..."
    )
    if weights.note:
        print(f"note: {weights.where}: {weights.note}", file=sys.stderr)
    counters = {n: np.zeros((), np.int64) for n in expected if n.endswith(COUNTER)}
    return dataclasses.replace(weights, tensors=counters | weights.tensors)


def read(found: Described, dtype: str) -> tuple[object, dict, str]:
    """The network of a file in JAX, to compute in `dtype`.

    Returns:
      The module, its parameters (float32 NumPy arrays), and the SHA-256 of the weights.

    Raises:
      InputError: The architecture does not run in JAX, or the file holds another.
    """
    options = {"stem": found.stem, "dtype": dtype}
    module = convnets.create(found.arch, num_classes=1000, **options)
    weights = choose(found, _state_dict(abstract_params(module, SIDE)))
    if "fc.weight" in weights.tensors:
        classes = weights.tensors["fc.weight"].shape[0]
        module = convnets.create(found.arch, num_classes=classes, **options)
    abstract = abstract_params(module, SIDE)
    one_model.check(weights, _state_dict(abstract), found.words)
    return (
        module,
        _fold(weights.tensors, abstract),
        tensor_files.sha256(weights.tensors),
    )


def norm_of(layer: str) -> str | None:
    """The name of the BatchNorm that follows a convolution; None for a head or SE."""
    if layer.endswith(".0"):
        return layer[:-1] + "1"
    name = re.sub(r"conv(\d)$", r"bn\1", layer)
    return None if name == layer else name


def _state_dict(abstract: Mapping) -> dict[str, np.ndarray]:
    """torch's arrays for these parameters: zeros, without their memory."""
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
