"""Shapes, names and number of a model's parameters."""

import jax
import jax.numpy as jnp


def abstract_params(model, side: int | None = None) -> dict:
    """Shapes and types of a model's parameters, without computing any.

    Args:
      side: Of its images in pixels; None is `model.image_size`.
    """
    side = side or model.image_size
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def parameter_names(params) -> list[str]:
    """`blocks_0/attn/qkv/kernel`, ..., in the order of `jax.tree.leaves`."""
    paths, _ = zip(*jax.tree.leaves_with_path(params), strict=True)
    return [jax.tree_util.keystr(p, simple=True, separator="/") for p in paths]


def count_parameters(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
