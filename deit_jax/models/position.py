"""Position embeddings for another grid of patches (Touvron et al. 2020, section 3)."""

import math

import jax
import numpy as np

from deit_jax.errors import InputError

METHODS = ("bicubic", "bicubic_antialias")
# Of the cubic kernel in torch's bicubic without antialiasing. With antialiasing torch
# takes -0.5, as Pillow and `jax.image` do.
CUBIC_A = -0.75


def resize(
    pos_embed: np.ndarray, side: int, *, prefix: int, method: str = "bicubic"
) -> np.ndarray:
    """Resizes the rows of the patches to a grid of `side` x `side`.

    Args:
      pos_embed: [1, prefix + n, D]; the last n rows are those of a square grid.
      prefix: Rows of tokens before those of the patches, which stay as they are.
      method: `bicubic`, as facebookresearch/deit does it: torch's
        `interpolate(mode="bicubic", align_corners=False)`. `bicubic_antialias`, as
        timm's `resample_abs_pos_embed`: the same with `antialias=True`. They differ in
        the kernel, so upwards too.

    Returns:
      float32 [1, prefix + side * side, D]; of the same grid, the values unchanged.

    Raises:
      InputError: The patches make no square grid, or the method is unknown.
    """
    if method not in METHODS:
        raise InputError(
            f"unknown transfer.position_resize={method!r}. Known: {', '.join(METHODS)}."
        )
    pos_embed = np.asarray(pos_embed, np.float32)
    tokens, patches = pos_embed[:, :prefix], pos_embed[:, prefix:]
    count, width = patches.shape[1:]
    old = math.isqrt(count)
    if old == 0 or old * old != count:
        raise InputError(
            f"the position embeddings are those of {count} patches, which is no square "
            "grid. Only square images can be resized to others."
        )
    if old == side:
        return pos_embed
    grid = patches.reshape(old, old, width)
    if method == "bicubic":
        weights = bicubic_weights(old, side)
        grid = np.einsum("ip,jq,pqd->ijd", weights, weights, grid, optimize=True)
    else:
        grid = jax.image.resize(grid, (side, side, width), "cubic", antialias=True)
    grid = np.asarray(grid, np.float32).reshape(1, side * side, width)
    return np.concatenate([tokens, grid], axis=1)


def bicubic_weights(old: int, new: int) -> np.ndarray:
    """Share of every old sample in every new one, along one axis: float64 [new, old].

    Keys 1981, with a = `CUBIC_A`; beyond the edge the outermost sample is repeated.
    """
    # Centres of the new samples, in the coordinates of the old.
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centres).astype(int) - 1
    weights = np.zeros((new, old))
    for tap in range(4):
        share = _cubic(np.abs(centres - (first + tap)))
        column = np.clip(first + tap, 0, old - 1)
        weights[np.arange(new), column] += share  # one column a row: no collision
    return weights


def _cubic(x: np.ndarray) -> np.ndarray:
    """The kernel at distances x >= 0."""
    a = CUBIC_A
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
