"""A teacher that runs in JAX: a network, its weights, and how it wants its images."""

import contextlib
import dataclasses
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32, UInt8

from deit_jax.distillation import classes
from deit_jax.errors import InputError

# The last linear layers of `convnets` and of `VisionTransformer`.
HEADS = ("fc", "head", "head_dist")


class Answers(NamedTuple):
    """What a teacher says of images: logits [b, C], and maybe pooled features [b, f].

    The features are what its last linear layer reads.
    """

    logits: Any
    features: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A trained classifier.

    Attributes:
      spec: What it was opened as, for messages.
      module: A Linen module; of normalised images float32 [b, S, S, 3] it gives logits
        [b, C], or a dict of them, one a head.
      params: Its parameters, nested dicts of float32 arrays. They are no constants:
        `answers` takes them as an argument.
      arch: torchvision's name of the architecture, or a variant of
        `deit_jax.models.variants`.
      stem: `standard`, or `cifar` (see `deit_jax.models.resnet`).
      image_size: Side in pixels of what the network sees.
      mean, std: Of the RGB channels, in 0 .. 1.
      crop_ratio: Of the `deit_jax.data.crops.centre_view` of images that are not all
        squares of one size.
      num_classes: C.
      class_names: In the order of the logits; None where nothing says them.
      sha256: Of the weights (`deit_jax.weights.tensor_files.sha256`), the same whatever
        file they come from and whatever computes with them.
      dtype: What the network computes in, `float32` or `bfloat16`.
      columns: For each class of the data the column of the network's logits; None
        where they have the same order. See `match_classes`.
    """

    spec: str
    module: Any
    params: dict
    arch: str
    stem: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_ratio: float
    num_classes: int
    class_names: tuple[str, ...] | None
    sha256: str
    dtype: str = "float32"
    columns: tuple[int, ...] | None = None

    @cached_property  # it traces the network
    def num_features(self) -> int:
        """f of `Answers`."""
        image = jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), np.uint8)
        found = jax.eval_shape(
            partial(answers, self, features=True), self.params, image
        )
        return found.features.shape[-1]


def describe_one(teacher) -> dict:
    """What a `Teacher`, or a `Classifier` of torch, answers from."""
    return {
        "arch": teacher.arch,
        "stem": teacher.stem,
        "weights_sha256": teacher.sha256,
        "image_size": teacher.image_size,
        "mean": list(teacher.mean),
        "std": list(teacher.std),
    }


def describe(each: Sequence[dict], tau: float, **shared) -> dict:
    """The `teacher` of manifests and summaries: one, or several averaged at `tau`."""
    if len(each) == 1:
        return each[0] | shared
    names = " + ".join(about["arch"] for about in each)
    return {"arch": names, "tau": tau, "teachers": each} | shared


def match_classes(teacher: Teacher, source) -> tuple[Teacher, str]:
    """The teacher with its logits in the order of the classes of `source`, by name.

    Args:
      source: See `deit_jax.data.sources`.

    Returns:
      The teacher, and a sentence about it (`classes.match`).

    Raises:
      InputError: It has other classes, or without names another number of them.
    """
    columns, words = classes.match(teacher, source)
    if columns == list(range(teacher.num_classes)):
        return dataclasses.replace(teacher, columns=None), words
    return dataclasses.replace(teacher, columns=tuple(columns)), words


def answers(
    teacher: Teacher,
    params,
    images: UInt8[Array, "b h w 3"],
    *,
    features: bool = False,
) -> Answers:
    """A teacher's float32 answers to a student's images: a pure function of `images`.

    They are resized to the teacher's size (`preprocess`). Of several heads the mean of
    the logits, with which DeiT predicts, and of what the heads read.

    Args:
      params: `teacher.params`, or a copy of them on the devices.
    """
    x = preprocess(images, teacher.image_size, teacher.mean, teacher.std)
    # Accelerators round the factors of float32 products unless told otherwise.
    precise = (
        jax.default_matmul_precision("float32")
        if teacher.dtype == "float32"
        else contextlib.nullcontext()
    )
    read = []

    def record(call, args, kwargs, context):
        if context.module.path[-1:] and context.module.path[-1] in HEADS:
            read.append(args[0])
        return call(*args, **kwargs)

    with precise, nn.intercept_methods(record):
        logits = teacher.module.apply({"params": params}, x)
    if isinstance(logits, dict):
        logits = sum(logits.values()) / len(logits)
    logits = logits.astype(jnp.float32)
    if teacher.columns is not None:
        logits = logits[:, np.array(teacher.columns)]
    pooled = (sum(read) / len(read)).astype(jnp.float32) if features else None
    return Answers(logits, pooled)


def check_number(kind: str, number: int) -> None:
    """Refuses the features of several teachers, which have no mean."""
    if kind == "features" and number > 1:
        raise InputError(
            f"distillation.kind='features' with {number} teachers: their features have "
            "no order in common, so that they cannot be averaged. Give one teacher."
        )


def preprocess(
    images: UInt8[Array, "b h w 3"],
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Float32[Array, "b s s 3"]:
    """Resizes and normalises.

    Bilinear with pixels' centres at halves (torch's `align_corners=False`); antialiased
    where an image shrinks, which is no different where it grows.
    """
    b, height, width, channels = images.shape
    x = images.astype(jnp.float32)
    if (height, width) != (size, size):
        x = jax.image.resize(x, (b, size, size, channels), "bilinear", antialias=True)
    mean, std = (jnp.asarray(v, jnp.float32)[None, None, None] for v in (mean, std))
    return (x / 255 - mean) / std


def average(logits: Sequence[Float[Array, "b c"]], tau: float) -> Float32[Array, "b c"]:
    """Logits whose softmax at `tau` is the mean of the teachers' softmax at `tau`.

    Args:
      logits: One array a teacher; those of a single one are given back as they are.
      tau: Temperature of the loss.
    """
    if len(logits) == 1:
        return logits[0].astype(jnp.float32)
    stacked = jnp.stack(logits).astype(jnp.float32)
    log_probabilities = jax.nn.log_softmax(stacked / tau)
    total = jax.nn.logsumexp(log_probabilities, axis=0)
    return tau * (total - jnp.log(float(len(logits))))
