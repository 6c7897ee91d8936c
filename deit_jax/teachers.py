"""Opens teachers that run in JAX: run directories, and files of weights."""

import dataclasses
import os
from pathlib import Path

from deit_jax.distillation.teacher import Teacher
from deit_jax.errors import InputError
from deit_jax.models import model_card
from deit_jax.training import saved_params
from deit_jax.weights import tensor_files, timm


def open_teacher(
    spec: str | os.PathLike,
    *,
    arch: str | None = None,
    stem: str | None = None,
    image_size: int | None = None,
    dtype: str = "float32",
) -> Teacher:
    """Reads a teacher.

    Args:
      spec: A run directory of this package, whose raw parameters of the newest
        checkpoint are taken.
      arch, stem, image_size: What a bare state dict of torchvision does not say.
      dtype: What it is to compute in, `float32` or `bfloat16`.

    Raises:
      InputError: There is no such teacher, it is damaged, or it does not run in JAX.
    """
    if (Path(spec) / model_card.MODEL).exists():
        return _of_run(spec, dtype)
    raise InputError(f"{spec} is no run directory.")


def _of_run(spec: str | os.PathLike, dtype: str) -> Teacher:
    card = model_card.read(spec)
    params, _ = saved_params.load_params(spec, card.create_model())
    return _of_card(spec, dataclasses.replace(card, dtype=dtype), params)


def _of_card(spec, card: model_card.ModelCard, params: dict) -> Teacher:
    return Teacher(
        spec=str(spec),
        module=card.create_model(),
        params=params,
        arch=card.variant,
        stem="standard",
        image_size=card.image_size,
        mean=card.mean,
        std=card.std,
        crop_ratio=card.crop_ratio,
        num_classes=card.num_classes,
        class_names=card.class_names,
        sha256=tensor_files.sha256(timm.from_flax(params)),
        dtype=card.dtype,
    )
