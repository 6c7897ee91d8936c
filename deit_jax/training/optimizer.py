"""Optax's optimizers with one weight-decay mask, layer decay and clipping."""

import functools

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from deit_jax.distillation.features import PROJECTOR
from deit_jax.errors import InputError

NAMES = ("adam", "adamw", "sgd", "lamb", "lion", "muon")
# The paper's recipe decays matrices only (timm's `no_weight_decay` and 1-d rule).
NO_DECAY = ("bias", "scale", "gamma", "cls_token", "dist_token", "pos_embed")
# Root mean square of muon's updates, about that of Adam's, so that they share learning
# rate and weight decay (Liu et al. 2025, arXiv 2502.16982, section 2.2).
MUON_RMS = 0.2


def resolve_learning_rate(
    learning_rate: float, *, batch_size: int, reference_batch_size: int
) -> float:
    """lr * batch_size / reference, which is DeiT's 512 (section 6), or 0 for lr."""
    reference = reference_batch_size
    return learning_rate * batch_size / reference if reference else learning_rate


def decay_mask(params) -> dict:
    """True where weight decay applies: to kernels, and to no vector or position."""

    def decayed(path, _) -> bool:
        return path[-1].key not in NO_DECAY

    return jax.tree_util.tree_map_with_path(decayed, params)


def layer_scales(params, layer_decay: float) -> dict:
    """Factor on the learning rate of every parameter, after BEiT (arXiv 2106.08254).

    Layer 0 is the patch projection, the tokens and the positions; block i, from 0, is
    layer i + 1, and the last one shares its layer with the final norm, as in timm's
    `param_groups_layer_decay`; the heads, the norm of the mean that one reads and the
    projector of `distillation.features` are the last layer, depth + 1.

    Returns:
      layer_decay ** (layers from the heads), shaped like `params`.
    """
    depth = sum(name.startswith("blocks_") for name in params)

    def scale(path, _) -> float:
        name = path[0].key
        if name.startswith("blocks_"):
            layer = int(name.removeprefix("blocks_")) + 1
        elif name.startswith(("head", "fc_norm", PROJECTOR)):
            layer = depth + 1
        else:
            layer = depth if name == "norm" else 0
        return layer_decay ** (depth + 1 - layer)

    return jax.tree_util.tree_map_with_path(scale, params)


def _scale_layers(layer_decay: float, updates, _):
    return jax.tree.map(jnp.multiply, updates, layer_scales(updates, layer_decay))


def muon_labels(params) -> dict:
    """`muon` for the matrices of the blocks, `adam` for all else.

    Heads and patch projection are Adam's, as Muon's author has it for the first and
    the last layer (Jordan et al. 2024, kellerjordan.github.io/posts/muon).
    """

    def label(path, x) -> str:
        inner = path[0].key.startswith("blocks_") and x.ndim == 2
        return "muon" if inner else "adam"

    return jax.tree_util.tree_map_with_path(label, params)


def check_trained(name: str, trained) -> None:
    """Refuses muon where none of the trained parameters are matrices of blocks."""
    if name == "muon" and "muon" not in jax.tree.leaves(muon_labels(trained)):
        raise InputError(
            "optimizer.name='muon' is for the matrices of the blocks, and "
            "optimizer.trainable leaves none of them: take "
            "--config.optimizer.name=adamw."
        )


def create(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    momentum: float = 0.9,
    clip_norm: float = 0.0,
    layer_decay: float = 1.0,
) -> optax.GradientTransformation:
    """Creates the gradient transformation of a run.

    Args:
      name: One of `NAMES`: `adam` (betas b1, b2), `adamw` (the same with decoupled
        decay, multiplied by the learning rate as in torch), `sgd` (Nesterov momentum,
        L2 decay), `lamb` (adamw with a trust ratio for each matrix, You et al. 2020,
        arXiv 1904.00962), `lion` (Chen et al. 2023, arXiv 2302.06675) or `muon`
        (`momentum`; adamw for what is not in `muon_labels`).
      weight_decay: Applied under `decay_mask`. Refused for plain Adam.
      clip_norm: Bound on the global norm of the gradient; 0 for none.
      layer_decay: Of `layer_scales`, which multiply the learning rate, and with it the
        weight decay; 1 for none.
    """
    if name == "adam" and weight_decay:
        raise InputError(
            f"optimizer.weight_decay={weight_decay} has no meaning for adam: take "
            "--config.optimizer.name=adamw, or a decay of 0."
        )
    decay = {"weight_decay": weight_decay, "mask": decay_mask}
    steps = _steps(name, learning_rate, {"b1": b1, "b2": b2}, momentum, decay)
    if clip_norm:
        steps.insert(0, optax.clip_by_global_norm(clip_norm))
    if layer_decay < 1:
        # Last: the updates hold learning rate and weight decay by then.
        steps.append(optax.stateless(functools.partial(_scale_layers, layer_decay)))
    return optax.chain(*steps)


def _steps(
    name: str, rate: optax.ScalarOrSchedule, betas: dict, momentum: float, decay: dict
) -> list[optax.GradientTransformation]:
    match name:
        case "adam":
            return [optax.adam(rate, **betas)]
        case "adamw":
            return [optax.adamw(rate, **betas, **decay)]
        case "sgd":
            nesterov = optax.sgd(rate, momentum=momentum, nesterov=momentum > 0)
            return [optax.add_decayed_weights(**decay), nesterov]
        case "lamb":
            # `optax.lamb`, but that what has no weight decay has no trust ratio, as in
            # NVIDIA's FusedLAMB (DeiT III's) and timm: a bias that starts at 0 would
            # hardly move.
            return [
                optax.scale_by_adam(**betas, eps=1e-6),
                optax.add_decayed_weights(**decay),
                optax.masked(optax.scale_by_trust_ratio(), decay_mask),
                optax.scale_by_learning_rate(rate),
            ]
        case "lion":
            return [optax.lion(rate, **betas, **decay)]
        case "muon":
            muon = optax.contrib.muon(
                rate,
                beta=momentum,
                weight_decay=decay["weight_decay"],
                consistent_rms=MUON_RMS,
            )
            adamw = optax.adamw(rate, **betas, **decay)
            return [optax.partition({"muon": muon, "adam": adamw}, muon_labels)]
    raise ValueError(f"unknown optimizer {name!r}; known: {NAMES}")
