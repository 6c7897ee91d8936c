"""Which variant a state dict belongs to, from the shapes in it."""

import dataclasses
import math
from collections.abc import Mapping

from deit_jax.errors import InputError
from deit_jax.models.variants import GRIDS, LARGEST_GRID, SIZES, VARIANTS

LARGEST = 2**20  # classes; a file that claims more is not believed


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What the shapes say.

    Attributes:
      variants: The names of `models/variants.py` that fit, of the nearest image size.
      image_size: Pixels a side.
      num_classes: Of the class head.
      pool: One of `variants.POOLS`.
      words: The same for messages.
    """

    variants: tuple[str, ...]
    image_size: int
    num_classes: int
    pool: str
    words: str


def infer(
    shapes: Mapping[str, tuple[int, ...]], roles: Mapping[str, str], *, where: str
) -> Architecture:
    """Finds the variant.

    Args:
      shapes: Of the tensors, by name.
      roles: `timm.ROLES` or `hugging_face.roles`.
      where: The file, for messages.

    Raises:
      InputError: A tensor that tells is missing or has another rank, there is no head,
        the patches make no square, or no variant has these sizes.
    """
    if roles["head"] not in shapes or not all(shapes[roles["head"]]):
        raise InputError(
            f"{where} has no {roles['head']}, the layer that makes the logits: it is a "
            "model without classes (timm's num_classes=0, a bare model of "
            "transformers) or a part of one. Give one with a classifier."
        )
    patches = _shape(shapes, roles["patches"], "width, 3, patch, patch", where)
    width, _, patch_size, _ = patches
    positions = _shape(shapes, roles["positions"], f"1, tokens, {width}", where)
    head = _shape(shapes, roles["head"], f"classes, {width}", where)
    num_classes, num_positions = head[0], positions[1]
    distilled = roles["distillation token"] in shapes
    layer_scale = roles.get("layer scale") in shapes
    pool = "mean" if roles.get("norm of the mean") in shapes else "token"
    depth = _depth(shapes, roles["blocks"], where)
    words = (
        f"{width} wide, {depth} deep, patches of {patch_size} px, "
        f"{'with' if distilled else 'without'} a distillation token, "
        f"{'with' if layer_scale else 'without'} LayerScale"
    )

    found = _variants(
        width, depth, patch_size, distilled, layer_scale, words=words, where=where
    )
    tokens = 0 if VARIANTS[found[0]]["no_embed_class"] else 1 + distilled
    grid = math.isqrt(max(num_positions - tokens, 0))
    if grid * grid != num_positions - tokens or not 0 < grid <= LARGEST_GRID:
        raise InputError(
            f"{where}: {roles['positions']} has {num_positions:,} entries. Expected "
            f"{f'{tokens} and ' if tokens else ''}the patches of a square image."
        )
    if num_classes > LARGEST:
        raise InputError(
            f"{where}: {roles['head']} is for {num_classes:,} classes, more than "
            f"{LARGEST:,}."
        )
    image_size = grid * patch_size
    distance = {name: abs(VARIANTS[name]["image_size"] - image_size) for name in found}
    nearest = min(distance.values())
    return Architecture(
        tuple(name for name in found if distance[name] == nearest),
        image_size,
        num_classes,
        pool,
        f"{words}, {image_size} px",
    )


def _depth(shapes, start: str, where: str) -> int:
    """The number of blocks; refuses gaps between them."""
    names = [n[len(start) :].split(".")[0] for n in shapes if n.startswith(start)]
    there = {int(name) for name in names if name.isdigit()}
    depth = max(there, default=-1) + 1
    if len(there) < depth:
        missing = ", ".join(f"{start}{i}" for i in sorted({*range(depth)} - there))
        raise InputError(
            f"{where} has {len(there)} of {depth} blocks: {missing} missing. Download "
            "all of it."
        )
    return depth


def _variants(
    width, depth, patch_size, distilled, layer_scale, *, words: str, where: str
) -> list[str]:
    """The variants of these sizes."""
    found = [
        name
        for name, sizes in VARIANTS.items()
        if (sizes["width"], sizes["depth"], sizes["patch_size"], sizes["distilled"])
        == (width, depth, patch_size, distilled)
        and (sizes["init_values"] is not None) == layer_scale
    ]
    if not found:
        there = "\n".join(
            f"  {size}: {sizes['width']} wide, {sizes['depth']} deep, patches of "
            + " or ".join(
                f"{patch} px" for patch in sorted({p for p, _ in GRIDS[size]})
            )
            for size, sizes in SIZES.items()
        )
        part = "".join(
            f" Of a {size} model {sizes['depth'] - depth} blocks are missing."
            for size, sizes in SIZES.items()
            if sizes["width"] == width and sizes["depth"] > depth
        )
        raise InputError(
            f"{where} holds a model that is not in this package: {words}.{part} There "
            "are, "
            f"with and without the token and LayerScale:\n{there}"
        )
    return found


def _shape(shapes, name: str, meaning: str, where: str) -> tuple[int, ...]:
    """The shape of a tensor, of which the rank and the last side are as expected."""
    found = shapes.get(name)
    sides = meaning.split(", ")
    if (
        found is None
        or len(found) != len(sides)
        or (sides[-1].isdigit() and found[-1] != int(sides[-1]))
    ):
        raise InputError(
            f"{where} is no ViT or DeiT of timm or transformers: {name} is "
            f"{found or 'missing'}, expected [{meaning}]."
        )
    return found
