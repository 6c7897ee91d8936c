"""Random erasing (Zhong et al. 2017), as DeiT takes it from timm."""

import functools
import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, Key, UInt8, UInt32

from deit_jax.data.augment.colour import look_up
from deit_jax.data.augment.fixed import below, chance, midpoints, quantile

MODES = ("pixel", "constant")
MAX_ASPECT = 50  # either way: all that int32 holds at 1,024 px
ATTEMPTS = 10  # of timm, before an image is left as it is
WORDS = 1 + 4 * ATTEMPTS
ROOT_BITS = 14
NOISE_LEVELS = 256


def random_erasing(
    key: Key[Array, ""],
    image: UInt8[Array, "h w 3"],
    *,
    probability: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
    mode: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> UInt8[Array, "h w 3"]:
    """Replaces a random rectangle of some images.

    Deviation from DeiT, which erases after normalisation: the noise is rounded and
    clipped to a level of a pixel.

    Args:
      probability: That an image is touched.
      area: Bounds of the rectangle's share of the image; uniform between them.
      aspect: Bounds of its height / width, within 1 / MAX_ASPECT .. MAX_ASPECT;
        log-uniform between them.
      mode: `pixel` fills with normal noise of the data set's mean and std, `constant`
        with its mean (zero, once normalised).
      mean, std: Of the channels, in 0 .. 1.
    """
    place, noise = jax.random.split(key)
    bits = jax.random.bits(place, (WORDS,))
    height, width, _ = image.shape

    def erased(image):
        top, left, h, w = rectangle(bits[1:], height, width, area, aspect)
        mask = _inside(top, left, h, w, height, width)
        return jnp.where(
            mask[..., None], _filling(noise, mode, mean, std, image), image
        )

    return jax.lax.cond(chance(bits[0], probability), erased, lambda x: x, image)


def rectangle(
    bits: UInt32[Array, " n"],
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Int32[Array, "4"]:
    """(top, left, height, width) of the first attempt that fits; all 0 if none does."""
    bits = bits.reshape(4, ATTEMPTS)
    # sqrt(share of the area) and (sqrt(aspect), 1 / sqrt(aspect)).
    share = quantile(bits[0], _roots_of_share(*area))
    roots = quantile(bits[1], _roots_of_aspect(*aspect))
    # The rectangle's area is a share of height * width: with the sides' own root.
    side = (math.isqrt(height * width << 10) + 1) // 2  # 4 bits after the point
    half = 1 << ROOT_BITS + 3
    scaled = (share[:, None] * roots) >> ROOT_BITS
    h, w = ((scaled[:, n] * side + half) >> ROOT_BITS + 4 for n in range(2))
    fits = (h < height) & (w < width)
    top, left = below(bits[2], height - h + 1), below(bits[3], width - w + 1)
    found = jnp.stack([top, left, h, w], axis=1)[jnp.argmax(fits)]
    return jnp.where(fits.any(), found, 0)


@functools.cache
def _roots_of_share(low: float, high: float) -> np.ndarray:
    shares = low + (high - low) * midpoints()
    return np.round(np.sqrt(shares) * 2**ROOT_BITS).astype(np.int32)


@functools.cache
def _roots_of_aspect(low: float, high: float) -> np.ndarray:
    logs = [math.log(low), math.log(high)]
    roots = [math.exp((logs[0] + (logs[1] - logs[0]) * p) / 2) for p in midpoints()]
    return np.round([[r * 2**ROOT_BITS, 2**ROOT_BITS / r] for r in roots]).astype(
        np.int32
    )


def _inside(top, left, h, w, height: int, width: int) -> Bool[Array, "h w"]:
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)


def _filling(key, mode: str, mean, std, image) -> UInt8[Array, "h w 3"]:
    if mode == "constant":
        return jnp.asarray(mean_colour(mean), jnp.uint8)[None, None]
    # One of 256 levels of each channel for each byte of 32 random bits.
    bits = jax.random.bits(key, image.shape[:2])[..., None]
    chosen = bits >> 8 * jnp.arange(3, dtype=jnp.uint32)[None, None]
    return look_up(chosen.astype(jnp.uint8), jnp.asarray(noise_table(mean, std)))


def mean_colour(mean: tuple[float, ...]) -> tuple[int, int, int]:
    """RGB in 0 .. 255 of a mean in 0 .. 1."""
    return tuple(min(255, round(255 * m)) for m in mean)


def noise_table(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Equally likely levels of normal noise, uint8 [3, NOISE_LEVELS]."""
    points = (np.arange(NOISE_LEVELS) + 0.5) / NOISE_LEVELS
    normal = np.array([NormalDist().inv_cdf(p) for p in points])
    levels = [255 * (m + s * normal) for m, s in zip(mean, std, strict=True)]
    return np.round(levels).clip(0, 255).astype(np.uint8)
