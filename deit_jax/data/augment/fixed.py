"""Integers for real numbers: draws, probabilities and blends in fixed point."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, UInt8, UInt32

# Factors of blends are multiples of 1 / FACTOR: few enough bits that Pillow's float32
# computes the same products without rounding, so that blends equal Pillow's.
FACTOR_BITS = 10
FACTOR = 1 << FACTOR_BITS
# Quantiles in a table of a distribution.
QUANTILE_BITS = 10
QUANTILES = 1 << QUANTILE_BITS


def below(bits: UInt32[Array, "..."], n) -> Int32[Array, "..."]:
    """A uniform draw of 0 .. n - 1 from 32 random bits, for n up to 32,768."""
    return ((bits >> 16).astype(jnp.int32) * n) >> 16


def chance(bits: UInt32[Array, "..."], probability: float) -> Bool[Array, "..."]:
    """True with the given probability, to the nearest 1 / 65,536."""
    return (bits >> 16).astype(jnp.int32) < round(probability * 2**16)


def quantile(bits: UInt32[Array, "..."], table: np.ndarray) -> Int32[Array, "..."]:
    """A draw from the distribution whose `QUANTILES` equally likely values these are.

    A table of several columns [QUANTILES, n] gives a row.
    """
    return jnp.asarray(table, jnp.int32)[(bits >> 32 - QUANTILE_BITS).astype(jnp.int32)]


def midpoints() -> np.ndarray:
    """Where in 0 .. 1 a distribution's inverse is taken for `quantile`."""
    return (np.arange(QUANTILES) + 0.5) / QUANTILES


def blend(
    degenerate: Int32[Array, "..."], image: Int32[Array, "..."], factor
) -> Int32[Array, "..."]:
    """degenerate + factor / FACTOR (image - degenerate), as Pillow's `Image.blend`.

    Truncated, and clipped to 0 .. 255. Shapes are equal or broadcast.
    """
    mixed = (degenerate << FACTOR_BITS) + factor * (image - degenerate)
    # Towards zero, but what is below it is clipped anyway.
    return jnp.clip(mixed >> FACTOR_BITS, 0, 255)


def luma(image: UInt8[Array, "h w 3"]) -> UInt8[Array, "h w"]:
    """Pillow's conversion to mode L (ITU-R 601)."""
    r, g, b = (image[..., c].astype(jnp.int32) for c in range(3))
    return ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16).astype(jnp.uint8)


def mean_luma(image: UInt8[Array, "h w 3"]) -> Int32[Array, ""]:
    """The mean of `luma` rounded half up, as `ImageEnhance.Contrast` takes it."""
    grey = luma(image)
    return (2 * grey.sum(dtype=jnp.int32) + grey.size) // (2 * grey.size)
