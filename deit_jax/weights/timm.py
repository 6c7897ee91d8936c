"""timm's names and layouts, which the official DeiT files share, and its conventions.

timm's models: https://github.com/huggingface/pytorch-image-models, `VisionTransformer`
and `VisionTransformerDistilled`. In both programs `pos_embed` starts with the class
token and, where there is one, the distillation token.
"""

import re
from collections.abc import Mapping

import numpy as np
from flax import traverse_util

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
