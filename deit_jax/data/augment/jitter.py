"""Colour jitter: torchvision's `ColorJitter`, and the choice of 3-Augment."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8

from deit_jax.data.augment import colour
from deit_jax.data.augment.fixed import FACTOR, below, midpoints, quantile

# Of DeiT III's code.
BLUR_RADII = (0.1, 2.0)
SOLARIZE_THRESHOLD = 128


def color_jitter(
    key: Key[Array, ""],
    image: UInt8[Array, "h w 3"],
    strengths: tuple[float, float, float, float],
) -> UInt8[Array, "h w 3"]:
    """Changes brightness, contrast, saturation and hue, in random order.

    Args:
      strengths: Of the four, as in torchvision's `ColorJitter`: the factors of the
        first three are uniform in max(0, 1 - x) .. 1 + x, the hue is turned by -x .. x
        of the circle. 0 leaves one out.
    """
    names = ("brightness", "contrast", "saturation", "hue")
    active = [n for n, strength in enumerate(strengths) if strength]
    if not active:
        return image
    bits = jax.random.bits(key, (len(names) + 1,))
    factors = [
        quantile(bits[n], factor_table(names[n], strengths[n])) for n in range(4)
    ]

    branches = [
        lambda x: colour.look_up(x, colour.brightness(factors[0])),
        lambda x: colour.look_up(x, colour.contrast(x, factors[1])),
        lambda x: colour.saturation(x, factors[2]),
        lambda x: colour.shift_hue(x, factors[3]),
    ]
    branches = [branches[n] for n in active]
    orders = np.array(list(itertools.permutations(range(len(active)))), np.int32)
    order = jnp.asarray(orders)[below(bits[4], len(orders))]
    for position in range(len(active)):
        image = jax.lax.switch(order[position], branches, image)
    return image


def factor_table(name: str, strength: float) -> np.ndarray:
    """Quantiles of a factor in 1 / FACTOR, or of the shift of the hue in 1 / 255."""
    if name == "hue":
        turn = strength * (2 * midpoints() - 1)
        return (turn * 255).astype(np.int32)  # towards zero, as torchvision does
    low, high = max(0.0, 1 - strength), 1 + strength
    return np.round((low + (high - low) * midpoints()) * FACTOR).astype(np.int32)


def three_augment(
    key: Key[Array, ""], image: UInt8[Array, "h w 3"]
) -> UInt8[Array, "h w 3"]:
    """Grey, solarized or blurred, one of the three (Touvron et al. 2022, section 3)."""
    bits = jax.random.bits(key, (2,))
    weights = quantile(bits[1], _blur_table()).astype(jnp.uint32)
    return jax.lax.switch(
        below(bits[0], 3),
        [
            colour.greyscale,
            lambda x: colour.look_up(x, colour.solarize(SOLARIZE_THRESHOLD)),
            lambda x: colour.blur(x, weights),
        ],
        image,
    )


def _blur_table() -> np.ndarray:
    """`colour.blur_weights` of radii uniform in `BLUR_RADII`: int64 [QUANTILES, 3]."""
    low, high = BLUR_RADII
    radii = low + (high - low) * midpoints()
    return np.array([colour.blur_weights(radius) for radius in radii.tolist()])
