"""Operations on the colours of an image, as Pillow computes them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Integer, UInt8, UInt32

from deit_jax.data.augment.fixed import blend, luma, mean_luma

BLUR_PASSES = 3
BLUR_BITS = 24

# Tables [3, 256] of what each level of each channel becomes. ------------------------


def look_up(
    image: UInt8[Array, "h w 3"], table: Integer[Array, "3 256"]
) -> UInt8[Array, "h w 3"]:
    """Replaces each level by that of its channel's table."""
    levels = image.astype(jnp.int32) + 256 * jnp.arange(3)[None, None]
    return table.reshape(-1).astype(jnp.uint8)[levels]


def _every_level() -> Int32[Array, "3 256"]:
    return jnp.tile(jnp.arange(256, dtype=jnp.int32), (3, 1))


def autocontrast(image: UInt8[Array, "h w 3"]) -> Int32[Array, "3 256"]:
    """Each channel stretched to 0 .. 255 (`ImageOps.autocontrast`).

    Pillow computes in float64, where a whole number can come out just below itself: of
    its levels 1 in 230 is one lower, and of its highest ones (which should be 255) 1 in
    7.
    """
    low = image.min((0, 1)).astype(jnp.int32)[:, None]
    high = image.max((0, 1)).astype(jnp.int32)[:, None]
    levels = _every_level()
    stretched = (levels - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched.clip(0, 255), levels)


def equalize(image: UInt8[Array, "h w 3"]) -> Int32[Array, "3 256"]:
    """Each channel's levels spread evenly (`ImageOps.equalize`)."""
    counts = histogram(image)
    levels = _every_level()
    highest = jnp.where(counts > 0, levels, 0).max(1, keepdims=True)
    last = jnp.take_along_axis(counts, highest, axis=1)
    step = (image.shape[0] * image.shape[1] - last) // 255
    before = jnp.cumsum(counts, axis=1) - counts
    spread = (step // 2 + before) // jnp.maximum(step, 1)
    # An image of one level has a step of 0 too.
    return jnp.where(step > 0, spread.clip(0, 255), levels)


def histogram(image: UInt8[Array, "h w 3"]) -> Int32[Array, "3 256"]:
    """How often each level occurs in each channel."""
    return jax.lax.platform_dependent(
        image, cpu=_count, cuda=_count, default=_count_by_product
    )


def _count(image):
    """One by one: a tenth of the time of the product on a CPU."""
    levels = image.astype(jnp.int32) + 256 * jnp.arange(3)[None, None]
    counts = jnp.zeros(3 * 256, jnp.int32)
    return counts.at[levels.reshape(-1)].add(1).reshape(3, 256)


def _count_by_product(image):
    """By a matrix product of the one-hot upper and lower four bits.

    The sums are whole numbers below 2^24, exact in float32 in whatever order.
    """
    flat = image.reshape(-1, 3).T
    high, low = (
        jax.nn.one_hot(half, 16, axis=1, dtype=jnp.float32)
        for half in (flat >> 4, flat & 15)
    )
    counts = jnp.einsum("cip,cjp->cij", high, low, precision="highest")
    return counts.astype(jnp.int32).reshape(3, 256)


def invert() -> Int32[Array, "3 256"]:
    """`ImageOps.invert`."""
    return 255 - _every_level()


def posterize(bits) -> Int32[Array, "3 256"]:
    """Keeps the `bits` highest bits, 0 .. 8 (`ImageOps.posterize`).

    0 bits are black, as in Pillow 12; Pillow 13 refuses them.
    """
    return _every_level() & ~((1 << (8 - bits)) - 1)


def solarize(threshold) -> Int32[Array, "3 256"]:
    """Inverts levels from `threshold` on, 0 .. 256 (`ImageOps.solarize`)."""
    levels = _every_level()
    return jnp.where(levels < threshold, levels, 255 - levels)


def solarize_add(addition) -> Int32[Array, "3 256"]:
    """Adds to levels below 128 (timm's `solarize_add`)."""
    levels = _every_level()
    return jnp.where(levels < 128, (levels + addition).clip(0, 255), levels)


def brightness(factor) -> Int32[Array, "3 256"]:
    """Factors are in units of 1 / 1,024 (`ImageEnhance.Brightness`)."""
    levels = _every_level()
    return blend(jnp.zeros_like(levels), levels, factor)


def contrast(image: UInt8[Array, "h w 3"], factor) -> Int32[Array, "3 256"]:
    """Factors are in units of 1 / 1,024 (`ImageEnhance.Contrast`)."""
    levels = _every_level()
    return blend(jnp.broadcast_to(mean_luma(image), levels.shape), levels, factor)


# What does not work level by level. -------------------------------------------------


def greyscale(image: UInt8[Array, "h w 3"]) -> UInt8[Array, "h w 3"]:
    """Mode L in all three channels."""
    return jnp.broadcast_to(luma(image)[..., None], image.shape)


def saturation(image: UInt8[Array, "h w 3"], factor) -> UInt8[Array, "h w 3"]:
    """Factors are in units of 1 / 1,024 (`ImageEnhance.Color`)."""
    grey = greyscale(image).astype(jnp.int32)
    return blend(grey, image.astype(jnp.int32), factor).astype(jnp.uint8)


def sharpness(image: UInt8[Array, "h w 3"], factor) -> UInt8[Array, "h w 3"]:
    """Factors are in units of 1 / 1,024 (`ImageEnhance.Sharpness`)."""
    levels = image.astype(jnp.int32)
    rows = levels[:-2] + levels[1:-1] + levels[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * levels[1:-1, 1:-1]
    # `ImageFilter.SMOOTH`: box / 13, rounded; Pillow leaves the border as it is.
    smooth = image.at[1:-1, 1:-1].set(((2 * box + 13) // 26).astype(jnp.uint8))
    return blend(smooth.astype(jnp.int32), levels, factor).astype(jnp.uint8)


def shift_hue(image: UInt8[Array, "h w 3"], shift) -> UInt8[Array, "h w 3"]:
    """Adds `shift` (int32, -255 .. 255) to H of Pillow's HSV, modulo 256.

    As torchvision's `adjust_hue` of a Pillow image by `shift / 255`, pixel by pixel.
    """
    r, g, b = (image[..., c].astype(jnp.int32) for c in range(3))
    v = jnp.maximum(jnp.maximum(r, g), b)
    chroma = v - jnp.minimum(jnp.minimum(r, g), b)
    safe = jnp.maximum(chroma, 1)
    # H in units of chroma: 0 .. 6 chroma around the circle.
    h = jnp.where(
        v == r, g - b, jnp.where(v == g, 2 * chroma + b - r, 4 * chroma + r - g)
    )
    h = jnp.where(h < 0, h + 6 * chroma, h)
    h, remainder = 255 * h // (6 * safe), 255 * h % (6 * safe)
    h = h - ((remainder == 0) & jnp.asarray(_hues_just_below())[h])
    h = jnp.where(chroma > 0, h, 0)
    s = 255 * chroma // jnp.maximum(v, 1)

    h6 = 6 * ((h + shift) & 255)
    sector, part = h6 // 255, h6 % 255
    square = 255 * 255
    p = (2 * v * (255 - s) + 255) // (2 * 255)
    q = (2 * v * (square - s * part) + square) // (2 * square)
    t = (2 * v * (square - s * (255 - part)) + square) // (2 * square)

    def choose(*by_sector):
        return jnp.select([sector % 6 == n for n in range(6)], by_sector)

    shifted = jnp.stack(
        [choose(v, q, p, p, t, v), choose(t, v, v, q, p, p), choose(p, p, t, v, v, q)],
        axis=-1,
    )
    return shifted.astype(jnp.uint8)


@functools.cache
def _hues_just_below() -> np.ndarray:
    """Which whole levels of H come out below themselves in Pillow: bool [255].

    It computes H in float32 and truncates it. That differs from the exact quotient only
    where the latter is whole, and the rounding errors depend on nothing but its value.
    """
    single, double = np.float32, np.float64
    sector, part = np.divmod(6 * np.arange(255), 255)
    rising = sector % 2 == 1  # the channel between the two others, along the sector
    part = np.where(rising, part, 255 - part).astype(single) / single(255)
    sixths = np.where(rising, sector + part.astype(double), sector + 1 - part)
    sixths = np.where(sector == 5, sixths - 6, sixths).astype(single)
    circle = np.fmod(sixths.astype(double) / 6 + 1, 1).astype(single)
    return (circle.astype(double) * 255).astype(int) < np.arange(255)


def blur_weights(radius: float) -> tuple[int, int, int]:
    """Weights of a pixel, its neighbours and theirs, in 2^-24, of one pass of `blur`.

    As Pillow's `ImageFilter.GaussianBlur` approximates it by extended box filters
    (Gwosdek et al. 2011).

    Args:
      radius: Standard deviation in pixels, up to 2.
    """
    # In float32 where Pillow does: its rounding decides about ties of a pixel.
    radius = np.float32(radius)
    variance = radius * radius / np.float32(BLUR_PASSES)
    length = np.float32(math.sqrt(12 * float(variance) + 1))
    whole = math.floor((float(length) - 1) / 2)
    if whole > 1:
        raise ValueError(f"{radius=!s}: a pass of blur has five taps, enough up to 2")
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part /= 6 * (variance - np.float32((whole + 1) ** 2))
    box = whole + part
    whole = int(box)
    inner = int(np.float32(1 << BLUR_BITS) / (box * 2 + 1))
    outer = ((1 << BLUR_BITS) - (2 * whole + 1) * inner) // 2
    return (inner, outer, 0) if whole == 0 else (inner, inner, outer)


def blur(
    image: UInt8[Array, "h w 3"], weights: UInt32[Array, "3"]
) -> UInt8[Array, "h w 3"]:
    """`ImageFilter.GaussianBlur`: three box filters a direction, edges repeated."""
    for axis in (1, 0):
        for _ in range(BLUR_PASSES):
            image = _box_filter(image, weights, axis)
    return image


def _box_filter(image, weights, axis):
    size = image.shape[axis]
    padding = [(2, 2) if n == axis else (0, 0) for n in range(3)]
    padded = jnp.pad(image, padding, mode="edge").astype(jnp.uint32)
    taps = [jax.lax.slice_in_dim(padded, n, n + size, axis=axis) for n in range(5)]
    total = (
        taps[2] * weights[0]
        + (taps[1] + taps[3]) * weights[1]
        + (taps[0] + taps[4]) * weights[2]
    )
    return (total + (1 << BLUR_BITS - 1) >> BLUR_BITS).astype(jnp.uint8)
