"""timm's names and layouts, which the official DeiT files share, and its conventions.

timm's models: https://github.com/huggingface/pytorch-image-models, `VisionTransformer`
and `VisionTransformerDistilled`. In both programs `pos_embed` starts with the class
token and, where there is one, the distillation token; in DeiT III it has patches only.
The two cannot go together in timm, so that a DeiT III with the token is there a DeiT
with LayerScale, whose tokens have positions of 0: `with_token_positions`.
"""

import re
from collections.abc import Mapping

import numpy as np
from flax import traverse_util

from deit_jax.models.model_card import ModelCard
from deit_jax.models.variants import VARIANTS


def published_name(name: str) -> str:
    """timm's name of a tensor that may have that of the authors of DeiT III."""
    return re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)


def to_flax(state_dict: Mapping[str, np.ndarray]) -> dict:
    """The parameters of `VisionTransformer`, a nested dict of contiguous arrays."""
    flat = {}
    for name, value in state_dict.items():
        path = name.replace("blocks.", "blocks_").split(".")
        if path[-1] == "weight":
            path[-1] = "scale" if value.ndim == 1 else "kernel"
            # A linear layer's [out, in], or the patch convolution's [out, in, p, p].
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        flat[tuple(path)] = np.ascontiguousarray(value)
    return traverse_util.unflatten_dict(flat)


def from_flax(params: Mapping) -> dict[str, np.ndarray]:
    """The inverse of `to_flax`, in views: nothing is copied."""
    state_dict = {}
    for name, value in traverse_util.flatten_dict(params, sep=".").items():
        if name.endswith("kernel"):
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        name = re.sub(r"^blocks_(\d+)", r"blocks.\1", name)
        name = re.sub(r"(kernel|scale)$", "weight", name)
        state_dict[name] = value
    return state_dict


def with_token_positions(state_dict: Mapping) -> dict[str, np.ndarray]:
    """The same model, with a position of 0 for each of both tokens."""
    patches = state_dict["pos_embed"]
    rows = np.zeros_like(patches, shape=(1, 2, patches.shape[-1]))
    return {**state_dict, "pos_embed": np.concatenate([rows, patches], axis=1)}


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Mean and standard deviation by family: the `pretrained_cfg` of timm's `deit_*` and
# `deit3_*` (those of the DeiT authors) and `vit_*` (AugReg, Steiner et al. 2021, arXiv
# 2106.10270).
MEAN_STD = {
    "deit": IMAGENET,
    "deit3": IMAGENET,
    "vit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
# timm's `crop_pct` by side in pixels. timm has no models for 32 and 64 px.
CROP_RATIO = {224: 0.9, 384: 1.0, 32: 1.0, 64: 1.0}

# The variants that are models of timm. Others are made from these by arguments.
TIMMS = {
    "vit_tiny": "16_224 16_384",
    "vit_small": "16_224 16_384 32_224 32_384 8_224",
    "vit_base": "16_224 16_384 32_224 32_384 8_224",
    "vit_large": "16_224 16_384",
    "vit_huge": "14_224",
    "deit_tiny": "16_224",
    "deit_small": "16_224",
    "deit_base": "16_224 16_384",
    "deit_tiny_distilled": "16_224",
    "deit_small_distilled": "16_224",
    "deit_base_distilled": "16_224 16_384",
    "deit3_small": "16_224 16_384",
    "deit3_medium": "16_224",
    "deit3_base": "16_224 16_384",
    "deit3_large": "16_224 16_384",
    "deit3_huge": "14_224",
}
NAMES = frozenset(
    f"{model}_patch{grid}" for model, grids in TIMMS.items() for grid in grids.split()
)
# timm's arguments, and ours.
ARGUMENTS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "num_heads",
    "init_values": "init_values",
}


def config(card: ModelCard) -> dict:
    """The `config.json` with which `timm.create_model("local-dir:DIR")` has the model.

    Where timm has no model of that name it is the nearest, with arguments.
    """
    sizes = VARIANTS[card.variant] | {"image_size": card.image_size}
    name = _nearest(card.variant)
    arguments = {
        theirs: sizes[ours]
        for theirs, ours in ARGUMENTS.items()
        if sizes[ours] != VARIANTS[name][ours]
    }
    pool = {"token": "token", "mean": "avg"}[card.pool]
    if pool != "token":
        arguments["global_pool"] = pool
    return {
        "architecture": name,
        "num_classes": card.num_classes,
        "num_features": sizes["width"],
        "global_pool": pool,
        "label_names": list(card.class_names),
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, card.image_size, card.image_size],
            "fixed_input_size": True,
            "mean": list(card.mean),
            "std": list(card.std),
            "crop_pct": card.crop_ratio,
            "crop_mode": "center",
            "interpolation": "bicubic",
            "num_classes": card.num_classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if sizes["distilled"] else "head",
        },
    }


def _nearest(variant: str) -> str:
    """The variant itself, or one of timm's that arguments make into it."""
    if variant in NAMES:
        return variant
    if VARIANTS[variant]["distilled"]:  # of deit3_* too, see `with_token_positions`
        return "deit_base_distilled_patch16_224"
    return f"{variant.partition('_')[0]}_base_patch16_224"
