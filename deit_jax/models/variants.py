"""The table of models, under timm's names, and the function that builds one."""

import difflib

import jax.numpy as jnp

from deit_jax.errors import InputError
from deit_jax.models.vit import VisionTransformer

# Tiny, small and base: DeiT, table 1. Nano is ours, for the demo on 32 px digits, and
# micro, for studies at 32 px on a few CPU cores.
SIZES = {
    "nano": {"width": 96, "depth": 4, "num_heads": 3},
    "micro": {"width": 128, "depth": 6, "num_heads": 4},
    "tiny": {"width": 192, "depth": 12, "num_heads": 3},
    "small": {"width": 384, "depth": 12, "num_heads": 6},
    "base": {"width": 768, "depth": 12, "num_heads": 12},
}
# (patch side, image side) in pixels.
PAPER_GRIDS = ((16, 224), (16, 384), (4, 32))
GRIDS = dict.fromkeys(SIZES, PAPER_GRIDS) | {"nano": ((8, 32),), "micro": ((4, 32),)}

# `vit_*` and `deit_*` are one architecture under the two names that people look for.
VARIANTS: dict[str, dict] = {
    f"{family}_{size}{suffix}_patch{patch}_{side}": {
        "image_size": side,
        "patch_size": patch,
        "distilled": suffix == "_distilled",
        **shape,
    }
    for size, shape in SIZES.items()
    for family, suffix in (("vit", ""), ("deit", ""), ("deit", "_distilled"))
    for patch, side in GRIDS[size]
}

# A model card may claim any size, and shapes alone can overflow.
LARGEST_GRID = 1024  # patches a side

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# `auto` is for a config: `recipe` decides by the devices.
ATTENTIONS = ("auto", "xla", "cudnn", "pallas")


def create(
    variant: str,
    *,
    num_classes: int,
    image_size: int | None = None,
    drop_path: float = 0.0,
    dropout: float = 0.0,
    position_std: float = 0.02,
    dtype: str = "float32",
    remat: bool = False,
    attention: str = "xla",
    tpu_layout: bool = False,
) -> VisionTransformer:
    """Build a model of the table `VARIANTS`; its parameters come from `model.init`.

    `image_size` is the side in pixels, by default the one in the variant's name;
    `drop_path` and `dropout` are rates in [0, 1); `position_std` is the initial
    standard deviation of the position embeddings; `dtype` is that of the products;
    with `remat` the backward pass computes the blocks again; `attention` is one of
    `ATTENTIONS`, see `vit.Attention`; `tpu_layout` see `vit.Block`.

    Raises InputError for an unknown variant, dtype or attention, a rate out of range,
    or an image size that the patch does not divide or that has more than `LARGEST_GRID`
    patches a side.
    """
    side = resolve_image_size(variant, image_size)
    shape = VARIANTS[variant] | {"image_size": side}
    for name, rate in (("drop_path", drop_path), ("dropout", dropout)):
        if not 0 <= rate < 1:
            raise InputError(f"{name} is {rate}; it must be at least 0 and below 1")
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; choose {' or '.join(DTYPES)}")
    if attention not in ATTENTIONS[1:]:
        choices = " or ".join(ATTENTIONS[1:])
        raise InputError(f"unknown attention {attention!r}; choose {choices}")
    return VisionTransformer(
        num_classes=num_classes,
        drop_path=drop_path,
        dropout=dropout,
        position_std=position_std,
        dtype=DTYPES[dtype],
        remat=remat,
        attention=attention,
        tpu_layout=tpu_layout,
        **shape,
    )


def resolve_image_size(variant: str, image_size: int | None = None) -> int:
    """The side in pixels that a variant sees: `image_size`, or that in its name.

    Raises:
      InputError: The variant is unknown, or the patch does not divide the size.
    """
    if variant not in VARIANTS:
        raise InputError(_unknown(variant))
    patch_size = VARIANTS[variant]["patch_size"]
    side = VARIANTS[variant]["image_size"] if image_size is None else image_size
    if side < 1 or side % patch_size:
        raise InputError(
            f"image size {side} is not a positive multiple of the patch size "
            f"{patch_size} of {variant}; choose one that is, or a variant with "
            "another patch size"
        )
    if side > LARGEST_GRID * patch_size:
        raise InputError(
            f"image size {side} is more than {LARGEST_GRID} patches of "
            f"{patch_size} pixels a side"
        )
    return side


def _unknown(variant: str) -> str:
    message = f"unknown model variant {variant!r}"
    if close := difflib.get_close_matches(variant, VARIANTS):
        message += f"; did you mean {' or '.join(close)}?"
    models_by_grid: dict[str, list[str]] = {}
    for name in VARIANTS:
        model, _, grid = name.partition("_patch")
        models_by_grid.setdefault(grid, []).append(model)
    choices = [
        f"  {'|'.join(models)}  with  _patch{grid}"
        for grid, models in models_by_grid.items()
    ]
    return "\n".join([message, "There are:", *choices])
