"""Adapts the parameters of one model to another: classes, image size, tokens.

Pure functions on parameters; only the resizing runs on a device.
"""

from collections.abc import Sequence

import jax
import numpy as np

from deit_jax.errors import InputError
from deit_jax.models import position
from deit_jax.models.variants import VARIANTS
from deit_jax.models.vit import VisionTransformer

# Parameters that depend on classes, image size, tokens or pooling.
NOT_TRUNK = {"pos_embed", "cls_token", "dist_token", "head", "head_dist"}
NOT_TRUNK |= {"norm", "fc_norm"}
# What two models must share for the blocks of one to fit into the other. Shapes do not
# show the number of heads.
TRUNK = ("width", "depth", "num_heads", "patch_size")


def adapt(
    params: dict,
    fresh: dict,
    *,
    source: VisionTransformer,
    target: VisionTransformer,
    classes: Sequence[int | None],
    position_resize: str = "bicubic",
) -> tuple[dict, list[str]]:
    """Turns the parameters of `source` into parameters of `target`.

    Args:
      params: Parameters of `source`.
      fresh: Initial parameters of `target`; new rows of the heads come from here.
      classes: For each class of `target` the same class of `source`, None if it has
        none.
      position_resize: A method of `position.resize`, where the grids differ.

    Returns:
      Parameters shaped like `fresh`, and one sentence for each change but the classes',
      none where the models are the same. Unchanged arrays are those of `params`.

    Raises:
      InputError: The models differ in more than classes, image size, tokens, pooling
        and LayerScale; the message names the variants that would fit.
    """
    _check_trunk(source, target)
    adapted = {name: value for name, value in params.items() if name not in NOT_TRUNK}
    adapted[target.last_norm] = params[source.last_norm]
    tokens, changes = _adapt_tokens(params, source, target)
    adapted |= tokens
    changes += _adapt_scales(adapted, source, target)
    if source.pool != target.pool:
        reads = ["the class token", "the mean of the patches"]
        reads = reads[::-1] if target.pool == "mean" else reads
        changes.append(f"the class head reads {reads[0]}, not {reads[1]}")
    before, side = (model.image_size // model.patch_size for model in (source, target))
    adapted["pos_embed"] = position.resize(
        adapted["pos_embed"],
        side,
        prefix=target.token_positions,
        method=position_resize,
    )
    if side != before:
        changes.append(
            f"position embeddings are resized from {before} x {before} to {side} x "
            f"{side} patches ({position_resize})"
        )
    adapted["head"] = match_classes(params["head"], fresh["head"], classes)
    if target.distilled:
        theirs = params["head_dist" if source.distilled else "head"]
        adapted["head_dist"] = match_classes(theirs, fresh["head_dist"], classes)
        if not source.distilled and any(c is not None for c in classes):
            # To a copy of the class token it answers as the class head does.
            changes.append("the distillation head is a copy of the class head")
    return adapted, changes


def _adapt_tokens(params: dict, source, target) -> tuple[dict, list[str]]:
    """The tokens of `target` and their positions, in `pos_embed`; and changes."""
    changes = []
    rows, patches = np.split(
        np.asarray(params["pos_embed"]), [source.token_positions], axis=1
    )
    adapted = {"cls_token": params["cls_token"]}
    if target.distilled and source.distilled:
        adapted["dist_token"] = params["dist_token"]
    elif target.distilled:
        # A second class token, which the trained blocks can read at once; a fresh one
        # is strange to them. Digits, 3 epochs, one seed: the distillation head is right
        # in 96.6 % with a copy, 93.0 % with a fresh token and head. The price: in so
        # short a time the two hardly part (cosine of what the heads read 0.9999, not
        # 0.85).
        adapted["dist_token"] = np.copy(params["cls_token"])
        rows = np.repeat(rows, 2, axis=1)
        changes.append(
            "a distillation token is added, a copy of the class token"
            + (" and its position" if source.token_positions else "")
        )
    elif source.distilled:
        rows = rows[:, :1]
        position = ", its position" if source.token_positions else ""
        changes.append(f"the distillation token{position} and its head are dropped")
    if source.token_positions and not target.token_positions:
        for name, row in zip(
            list(adapted), np.split(rows, rows.shape[1], axis=1), strict=True
        ):
            adapted[name] = adapted[name] + row
        rows = rows[:, :0]
        changes.append("positions of the tokens are added to the tokens themselves")
    elif target.token_positions and not source.token_positions:
        # The sum is what it was.
        rows = np.zeros_like(patches[:, : target.token_positions])
        changes.append("positions of the tokens start with 0, as they had none")
    adapted["pos_embed"] = np.concatenate([rows, patches], axis=1)
    return adapted, changes


# The dense layers behind which LayerScale stands, by its name.
SCALED = {"ls1": ("attn", "proj"), "ls2": ("mlp", "fc2")}


def _adapt_scales(adapted: dict, source, target) -> list[str]:
    """Folds LayerScale into the blocks in `adapted`, or adds it; says which."""
    if (source.init_values is None) == (target.init_values is None):
        return []
    for name in [name for name in adapted if name.startswith("blocks_")]:
        block = dict(adapted[name])
        for scale, (part, layer) in SCALED.items():
            dense = block[part][layer]
            if target.init_values is not None:
                block[scale] = {"gamma": np.ones_like(dense["bias"])}
                continue
            gamma = np.asarray(block.pop(scale)["gamma"])
            scaled = {field: value * gamma for field, value in dense.items()}
            block[part] = block[part] | {layer: scaled}
        adapted[name] = block
    if target.init_values is None:
        return ["LayerScale is folded into the layers before it"]
    return ["LayerScale starts with 1, since the blocks have learnt without it"]


def match_classes(head: dict, fresh: dict, classes: Sequence[int | None]) -> dict:
    """A head whose class c is class `classes[c]` of `head`, or of `fresh` for None.

    Args:
      head: kernel [D, C] and bias [C].
      fresh: kernel [D, len(classes)] and bias [len(classes)].
    """
    if list(classes) == list(range(head["bias"].shape[0])):
        return jax.tree.map(np.copy, head)
    known = [c for c, theirs in enumerate(classes) if theirs is not None]
    result = jax.tree.map(np.array, fresh)
    for name, values in head.items():
        result[name][..., known] = np.asarray(values)[..., [classes[c] for c in known]]
    return result


def _check_trunk(source: VisionTransformer, target: VisionTransformer) -> None:
    differ = [name for name in TRUNK if getattr(source, name) != getattr(target, name)]
    if not differ:
        return
    fitting = [
        (abs(shape["image_size"] - target.image_size), name)
        for name, shape in VARIANTS.items()
        if all(shape[field] == getattr(source, field) for field in TRUNK)
        and shape["distilled"] == target.distilled
        and shape["no_embed_class"] == target.no_embed_class
    ]
    nearest = min(fitting)[0]
    names = [name for distance, name in fitting if distance == nearest]
    raise InputError(
        "the weights are those of a model with "
        + ", ".join(f"{name} {getattr(source, name)}" for name in differ)
        + "; this run's has "
        + ", ".join(f"{name} {getattr(target, name)}" for name in differ)
        + ". Only classes, image size, tokens, pooling and LayerScale may differ: take "
        f"--config.model.variant={' or '.join(names)}."
    )
