"""timm's names and layouts, which the official DeiT files share, and its conventions.

timm's models: https://github.com/huggingface/pytorch-image-models, `VisionTransformer`
and `VisionTransformerDistilled`. In both programs `pos_embed` starts with the class
token and, where there is one, the distillation token.
"""

import re
from collections.abc import Mapping

import numpy as np
from flax import traverse_util

from deit_jax.models.model_card import ModelCard
from deit_jax.models.variants import VARIANTS

# The tensors whose shapes say which variant a state dict belongs to.
ROLES = {
    "patches": "patch_embed.proj.weight",
    "positions": "pos_embed",
    "distillation token": "dist_token",
    "head": "head.weight",
    "blocks": "blocks.",
}


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


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Mean and standard deviation by family: the `pretrained_cfg` of timm's `deit_*` (those
# of the DeiT authors) and `vit_*` (AugReg, Steiner et al. 2021, arXiv 2106.10270).
MEAN_STD = {"deit": IMAGENET, "vit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}
# timm's `crop_pct` by side in pixels. timm has no models for 32 px.
CROP_RATIO = {224: 0.9, 384: 1.0, 32: 1.0}

# The variants that are models of timm. Others are made from these by arguments.
NAMES = frozenset(
    f"{model}_patch16_224"
    for size in ("tiny", "small", "base")
    for model in (f"vit_{size}", f"deit_{size}", f"deit_{size}_distilled")
) | {
    f"{model}_patch16_384"
    for model in (
        "vit_tiny",
        "vit_small",
        "vit_base",
        "deit_base",
        "deit_base_distilled",
    )
}
# timm's arguments, and ours.
ARGUMENTS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "num_heads",
}


def config(card: ModelCard) -> dict:
    """The `config.json` with which `timm.create_model("local-dir:DIR")` has the model.

    Where timm has no model of that name it is the nearest, with arguments.
    """
    sizes = VARIANTS[card.variant] | {"image_size": card.image_size}
    name = card.variant
    if name not in NAMES:
        model = name.partition("_patch")[0].replace("nano", "tiny")
        name = f"{model}_patch16_224"
    arguments = {
        theirs: sizes[ours]
        for theirs, ours in ARGUMENTS.items()
        if sizes[ours] != VARIANTS[name][ours]
    }
    return {
        "architecture": name,
        "num_classes": card.num_classes,
        "num_features": sizes["width"],
        "global_pool": "token",
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
