"""The table of models, under timm's names, and the function that builds one."""

import difflib

import jax.numpy as jnp

from deit_jax.errors import InputError
from deit_jax.models.vit import VisionTransformer

# Tiny, small and base: DeiT, table 1; medium: the code of DeiT III; large and huge:
# ViT, table 1. Nano is ours, for the demo on 32 px digits, and micro, for studies at
# 32 px on a few CPU cores.
SIZES = {
    "nano": {"width": 96, "depth": 4, "num_heads": 3},
    "micro": {"width": 128, "depth": 6, "num_heads": 4},
    "tiny": {"width": 192, "depth": 12, "num_heads": 3},
    "small": {"width": 384, "depth": 12, "num_heads": 6},
    "medium": {"width": 512, "depth": 12, "num_heads": 8},
    "base": {"width": 768, "depth": 12, "num_heads": 12},
    "large": {"width": 1024, "depth": 24, "num_heads": 16},
    "huge": {"width": 1280, "depth": 32, "num_heads": 16},
}
# (patch side, image side) in pixels: 32 of CIFAR, 64 of Tiny-ImageNet.
PAPER_GRIDS = ((16, 224), (16, 384))
OTHER_GRIDS = ((32, 224), (32, 384), (8, 224), (8, 64), (4, 32), (2, 32))
GRIDS = dict.fromkeys(SIZES, PAPER_GRIDS + OTHER_GRIDS) | {
    "nano": ((8, 32), (4, 32)),
    "micro": ((4, 32),),
    "medium": PAPER_GRIDS,
    "large": PAPER_GRIDS,
    "huge": ((14, 224),),
}
# What the families differ in. `vit_*` and `deit_*` are one architecture under the two
# names that people look for. DeiT III has no distillation token: `deit3_*_distilled_*`
# are ours, DeiT III with the token of DeiT. `init_values` is that of its authors' code.
VIT = {"init_values": None, "no_embed_class": False, "constant_drop_path": False}
DEIT3 = {"init_values": 1e-4, "no_embed_class": True, "constant_drop_path": True}
FAMILIES = {
    "vit_{}": VIT,
    "deit_{}": VIT,
    "deit_{}_distilled": VIT,
    "deit3_{}": DEIT3,
    "deit3_{}_distilled": DEIT3,
}

VARIANTS: dict[str, dict] = {
    f"{family.format(size)}_patch{patch}_{side}": {
        "image_size": side,
        "patch_size": patch,
        "distilled": family.endswith("_distilled"),
        **shape,
        **differences,
    }
    for size, shape in SIZES.items()
    for family, differences in FAMILIES.items()
    for patch, side in GRIDS[size]
}

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# `auto` is for a config: `recipe` decides by the devices.
ATTENTIONS = ("auto", "xla", "cudnn", "pallas")
POOLS = ("token", "mean")


def create(
    variant: str,
    *,
    num_classes: int,
    image_size: int | None = None,
    drop_path: float = 0.0,
    dropout: float = 0.0,
    position_std: float = 0.02,
    init_values: float | None = None,
    pool: str = "token",
    dtype: str = "float32",
    remat: bool = False,
    attention: str = "xla",
    tpu_layout: bool = False,
) -> VisionTransformer:
    """Build a model of the table `VARIANTS`; its parameters come from `model.init`.

    `image_size` is the side in pixels, by default the one in the variant's name;
    `drop_path` and `dropout` are rates in [0, 1); `init_values` is that of LayerScale,
    by default its authors' 1e-4. The others are those of `VisionTransformer`.

    Raises InputError for an unknown variant, dtype, attention or pool, a rate out of
    range, `init_values` for a variant without LayerScale, or an image size that the
    patch does not divide.
    """
    side = resolve_image_size(variant, image_size)
    shape = VARIANTS[variant] | {"image_size": side}
    for name, rate in (("drop_path", drop_path), ("dropout", dropout)):
        if not 0 <= rate < 1:
            raise InputError(f"{name} is {rate}; it must be at least 0 and below 1")
    known = {
        "dtype": (dtype, tuple(DTYPES)),
        "attention": (attention, ATTENTIONS[1:]),
        "pool": (pool, POOLS),
    }
    for name, (value, choices) in known.items():
        if value not in choices:
            raise InputError(f"unknown {name} {value!r}; choose {' or '.join(choices)}")
    if init_values is not None and shape["init_values"] is None:
        raise InputError(
            f"init_values={init_values:g} is that of LayerScale, which {variant} does "
            "not have: leave it out, or take a variant of deit3_*"
        )
    if init_values is not None:
        shape["init_values"] = init_values
    return VisionTransformer(
        num_classes=num_classes,
        drop_path=drop_path,
        dropout=dropout,
        position_std=position_std,
        pool=pool,
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
    return side


def _unknown(variant: str) -> str:
    message = f"unknown model variant {variant!r}"
    if close := difflib.get_close_matches(variant, VARIANTS):
        return f"{message}; did you mean {' or '.join(close)}?"
    lines = [
        f"  {size}: {', '.join(f'_patch{patch}_{side}' for patch, side in grids)}"
        for size, grids in GRIDS.items()
    ]
    families = ", ".join(family.format("SIZE") for family in FAMILIES)
    return "\n".join([f"{message}. There are {families}, with", *lines])
