"""Parameters of one model as the start of another: classes, resolution, distillation.

Pure functions on parameters; nothing is computed on a device but the resizing.
"""

import jax
import numpy as np

from deit_jax.errors import InputError
from deit_jax.models import position
from deit_jax.models.variants import VARIANTS
from deit_jax.models.vit import VisionTransformer

# Parameters that classes, image size and distillation token have a part in.
NOT_TRUNK = ("pos_embed", "dist_token", "head", "head_dist")
# What two models must share for the blocks of the one to fit into the other. Shapes
# would not tell of the number of heads.
TRUNK = ("width", "depth", "num_heads", "patch_size")


def adapt(
    params: dict,
    fresh: dict,
    *,
    source: VisionTransformer,
    target: VisionTransformer,
    keep_heads: bool,
    position_resize: str = "bicubic",
) -> tuple[dict, list[str]]:
    """Makes the parameters of `source` those of `target`.

    Args:
      params: Of `source`.
      fresh: Of `target`, initialised; new heads are taken from here.
      keep_heads: Whether the classes are the same, in the same order.
      position_resize: A method of `position.resize`, where the grids differ.

    Returns:
      Parameters shaped like `fresh`, and what was changed: one sentence a change, none
      where the models are the same. What did not change is `params`' own arrays.

    Raises:
      InputError: The models differ in more than classes, image size and distillation
        token; the message names the variants that would fit.
    """
    _check_trunk(source, target)
    adapted = {name: value for name, value in params.items() if name not in NOT_TRUNK}
    changes = []

    tokens, patches = np.split(
        np.asarray(params["pos_embed"]), [1 + source.distilled], axis=1
    )
    if target.distilled and source.distilled:
        adapted["dist_token"] = params["dist_token"]
    elif target.distilled:
        # A second class token, which the trained blocks can read at once; a fresh one
        # is strange to them. Digits, 3 epochs, one seed: the distillation head is right
        # in 96.6 % with a copy, 93.0 % with a fresh token and head. The price: in so
        # short a time the two hardly part (cosine of what the heads read 0.9999, not
        # 0.85).
        adapted["dist_token"] = np.copy(params["cls_token"])
        tokens = np.repeat(tokens, 2, axis=1)
        changes.append(
            "a distillation token is added, a copy of the class token and its position"
        )
    elif source.distilled:
        tokens = tokens[:, :1]
        changes.append("the distillation token, its position and its head are dropped")

    old, new = (model.image_size // model.patch_size for model in (source, target))
    adapted["pos_embed"] = position.resize(
        np.concatenate([tokens, patches], axis=1),
        new,
        prefix=1 + target.distilled,
        method=position_resize,
    )
    if old != new:
        changes.append(
            f"position embeddings are resized from {old} x {old} to {new} x {new} "
            f"patches ({position_resize})"
        )

    adapted["head"] = (params if keep_heads else fresh)["head"]
    if target.distilled:
        if not keep_heads:
            adapted["head_dist"] = fresh["head_dist"]
        elif source.distilled:
            adapted["head_dist"] = params["head_dist"]
        else:  # to its token it answers as the class head would
            adapted["head_dist"] = jax.tree.map(np.copy, params["head"])
            changes.append("the distillation head is a copy of the class head")
    if not keep_heads:
        heads = "heads are" if target.distilled else "head is"
        same_count = source.num_classes == target.num_classes
        changes.append(
            f"the {heads} new: {target.num_classes} "
            + ("other classes" if same_count else f"classes, not {source.num_classes}")
        )
    return adapted, changes


def _check_trunk(source: VisionTransformer, target: VisionTransformer) -> None:
    differ = [name for name in TRUNK if getattr(source, name) != getattr(target, name)]
    if not differ:
        return
    fitting = [
        (abs(shape["image_size"] - target.image_size), name)
        for name, shape in VARIANTS.items()
        if all(shape[field] == getattr(source, field) for field in TRUNK)
        and shape["distilled"] == target.distilled
    ]
    nearest = min(fitting)[0]
    names = [name for distance, name in fitting if distance == nearest]
    raise InputError(
        "the weights are those of a model with "
        + ", ".join(f"{name} {getattr(source, name)}" for name in differ)
        + "; this run's has "
        + ", ".join(f"{name} {getattr(target, name)}" for name in differ)
        + ". Only classes, image size and distillation token may differ: take "
        f"--config.model.variant={' or '.join(names)}."
    )
