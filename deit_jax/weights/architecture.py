"""Which variant a state dict of timm belongs to, from the shapes in it."""

import math
import re
from collections.abc import Mapping

from deit_jax.errors import InputError
from deit_jax.models.variants import SIZES, VARIANTS


def infer(tensors: Mapping, where: str) -> tuple[list[str], int]:
    """Finds the variant of arrays under timm's names; `where` they are is for messages.

    Returns:
      The names of `models/variants.py` that fit, of the nearest image size, and the
      image size in pixels a side.

    Raises:
      InputError: A tensor that tells is missing or has another rank, there is no head,
        the patches make no square, or no variant has these sizes.
    """
    if "head.weight" not in tensors:
        raise InputError(
            f"{where} has no head.weight (classifier.weight in transformers), the "
            "layer that makes the logits. Give a model with a classifier."
        )
    width, _, patch_size, _ = _shape(tensors, "patch_embed.proj.weight", 4, where)
    count = _shape(tensors, "pos_embed", 3, where)[1]
    blocks = [re.match(r"blocks\.(\d+)\.", name) for name in tensors]
    sizes = {
        "width": width,
        "depth": max((int(block[1]) + 1 for block in blocks if block), default=0),
        "patch_size": patch_size,
        "distilled": "dist_token" in tensors,
    }
    layer_scale = "blocks.0.ls1.gamma" in tensors
    found = [
        name
        for name, variant in VARIANTS.items()
        if sizes.items() <= variant.items()
        and (variant["init_values"] is not None) == layer_scale
    ]
    if not found:
        words = "{width} wide, {depth} deep, patches of {patch_size} px".format(**sizes)
        for part, there in {
            "distillation token": sizes["distilled"],
            "LayerScale": layer_scale,
        }.items():
            words += f", {'with' if there else 'without'} {part}"
        known = (f"{x['width']} and {x['depth']} ({n})" for n, x in SIZES.items())
        raise InputError(
            f"{where} holds a model that is not in this package: {words}. Its models "
            f"are as wide and deep as {', '.join(known)}."
        )

    tokens = 1 + sizes["distilled"]
    # DeiT III has positions of the patches only, but where timm cannot leave the others
    # out: `timm.with_token_positions`.
    if layer_scale and not _is_square(count - tokens):
        tokens = 0
    if not _is_square(count - tokens):
        raise InputError(
            f"{where}: pos_embed has {count:,} entries. Expected "
            f"{f'{tokens} and ' if tokens else ''}the patches of a square image."
        )
    image_size = math.isqrt(count - tokens) * patch_size
    distance = {name: abs(VARIANTS[name]["image_size"] - image_size) for name in found}
    nearest = min(distance.values())
    return [name for name in found if distance[name] == nearest], image_size


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def _shape(tensors: Mapping, name: str, rank: int, where: str) -> tuple[int, ...]:
    """The shape of a tensor, of which the rank is as expected."""
    found = tensors[name].shape if name in tensors else None
    if found is None or len(found) != rank:
        raise InputError(
            f"{where} is no ViT or DeiT of timm or transformers: {name} is "
            f"{found or 'missing'}, expected {rank} sides."
        )
    return found
