"""Opens teachers that run in JAX: run directories, and files of weights."""

import dataclasses
import os
import sys
from pathlib import Path

from deit_jax.distillation.teacher import Teacher
from deit_jax.errors import InputError
from deit_jax.models import convnets, model_card
from deit_jax.models.variants import DTYPES, VARIANTS
from deit_jax.training import saved_params
from deit_jax.weights import download, tensor_files, timm, torchvision
from deit_jax.weights import load as weights

EXPECTED = (
    "a run directory (runs/...), a file of weights (.safetensors, .pt), timm:NAME or "
    "hf:ID"
)
# A tensor of every ViT and DeiT of timm, and of transformers.
PATCHES = "patch_embed.proj.weight", "patch_embeddings.projection.weight"


def open_teacher(
    spec: str | os.PathLike,
    *,
    arch: str | None = None,
    stem: str | None = None,
    image_size: int | None = None,
    dtype: str = "float32",
) -> Teacher:
    """Reads a teacher that runs in JAX.

    Args:
      spec: A run directory of this package, whose raw parameters of the newest
        checkpoint are taken; a run directory of teacher.finetune; a file or directory
        with the weights of a network of `convnets.ARCHITECTURES` under torchvision's
        or timm's names, or with a ViT or DeiT (`weights.load.load`); `timm:NAME` or
        `hf:ID`, which are downloaded. torch is imported for files of torch and for
        `timm:` only.
      arch, stem, image_size: What a bare state dict of torchvision does not say, see
        `weights.torchvision.open_file`.
      dtype: What it is to compute in, `float32` or `bfloat16`.

    Raises:
      InputError: There is no such teacher, it is damaged, or it does not run in JAX.
    """
    return in_jax(find(spec, arch=arch, stem=stem, image_size=image_size), dtype)


def find(
    spec: str | os.PathLike,
    *,
    arch: str | None = None,
    stem: str | None = None,
    image_size: int | None = None,
) -> Teacher | torchvision.Described:
    """A teacher that JAX alone can run (in float32), or a file for JAX or torch.

    Args:
      spec: As of `open_teacher`, but that a file may hold any network of torchvision.
    """
    spec = os.fspath(spec)
    given = {"arch": arch, "stem": stem, "image_size": image_size}
    kind, _, name = spec.partition(":")
    if kind == "timm" and convnets.torchvision_name(name) in convnets.ARCHITECTURES:
        tensors, config = download.timm_model(name)
        # Of ImageNet's 1000 classes it has descriptions, where data sets have synsets.
        config = {k: v for k, v in config.items() if k != "label_names"}
        file = tensor_files.Weights(spec, tensors)
        return torchvision.of_timm(spec, file, config, given)
    if kind == "timm" or arch in VARIANTS:
        return _of_vit(spec, spec, arch)
    place = spec
    if kind == "hf":
        place = download.hugging_face_directory(
            name, (weights.CONFIG, weights.PREPROCESSOR)
        )
    elif not Path(spec).exists() and "://" not in spec:
        raise InputError(f"there is no teacher {spec}. Expected {EXPECTED}.")
    elif model_card.is_run(spec):
        return _of_run(spec, given)
    if arch is None and _is_vit(place):
        return _of_vit(spec, place, None)
    return torchvision.open_file(place, **given)


def in_jax(found: Teacher | torchvision.Described, dtype: str) -> Teacher:
    """What `find` has found, to compute in `dtype`; raises InputError as `find`."""
    if isinstance(found, Teacher):
        module = found.module.clone(dtype=DTYPES[dtype])
        return dataclasses.replace(found, module=module, dtype=dtype)
    module, params, sha256 = torchvision.read(found, dtype)
    return Teacher(
        spec=found.file.where,
        module=module,
        params=params,
        num_classes=module.num_classes,
        sha256=sha256,
        dtype=dtype,
        **{
            name: getattr(found, name)
            for name in ("arch", "stem", "image_size", "mean", "std", "crop_ratio")
        },
        class_names=found.class_names,
    )


def _is_vit(place: str | os.PathLike) -> bool:
    file = tensor_files.open_file(place, torchvision.TEACHER)
    return any(name.endswith(PATCHES) for name in file.tensors)


def _of_vit(spec: str, place: str | os.PathLike, variant: str | None) -> Teacher:
    loaded = weights.load(place, variant=variant)
    for note in loaded.notes:
        print(f"note: {spec}: {note}", file=sys.stderr)
    teacher = _of_card(spec, loaded.card, loaded.params)
    numbers = tuple(map(str, range(teacher.num_classes)))
    if teacher.class_names == numbers:  # nothing says their names
        return dataclasses.replace(teacher, class_names=None)
    return teacher


def _of_run(spec: str, given: dict) -> Teacher:
    card = model_card.read(spec)
    stated = {"arch": card.variant, "stem": None, "image_size": card.image_size}
    for name, value in given.items():
        if value is not None and value != stated[name]:
            raise InputError(
                f"{spec} is a run directory, which says what it is "
                f"({card.variant}, {card.image_size} px). Leave --{name} out."
            )
    params, _ = saved_params.load_params(spec, card.create_model())
    return _of_card(spec, card, params)


def _of_card(spec: str, card: model_card.ModelCard, params: dict) -> Teacher:
    return Teacher(
        spec=spec,
        module=dataclasses.replace(card, dtype="float32").create_model(),
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
    )
