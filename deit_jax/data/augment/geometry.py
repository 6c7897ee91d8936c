"""Crops, flips and warps of images that have the model's size already."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, Key, UInt8

from deit_jax.errors import InputError

INTERPOLATIONS = ("bicubic", "bilinear")
# As many bits as int32 holds, see `warp` for what that bounds.
COORDINATE_BITS = 20  # of a matrix
FRACTION_BITS = 14  # of a position between two pixels
WEIGHT_BITS = 14
ROW_BITS = 8  # kept of the sum over a row
MAX_SIDE = 512  # px


def pad_and_crop(
    key: Key[Array, ""], image: UInt8[Array, "h w 3"], padding: int, mode: str
) -> UInt8[Array, "h w 3"]:
    """Pads `padding` pixels on each side and crops the size back at random.

    As torchvision's RandomCrop(size, padding, padding_mode=mode); every one of the
    (2 padding + 1)^2 positions is equally likely.

    Args:
      mode: `constant` pads with black, `reflect` mirrors at the outermost pixels.
    """
    corner = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode)
    return jax.lax.dynamic_slice(padded, (corner[0], corner[1], 0), image.shape)


def horizontal_flip(
    key: Key[Array, ""], image: UInt8[Array, "h w 3"]
) -> UInt8[Array, "h w 3"]:
    """Mirrors every second image, left to right."""
    mirrored = (jax.random.bits(key) & 1).astype(bool)
    return jax.lax.cond(mirrored, lambda x: x[:, ::-1], lambda x: x, image)


EDGE = 3  # pixels that a tap can lie outside of the image


def warp(
    image: UInt8[Array, "h w 3"],
    matrix: Int32[Array, "6"],
    *,
    fill: tuple[int, int, int],
    interpolation: str,
) -> UInt8[Array, "h w 3"]:
    """The affine map of Pillow's `Image.transform(size, AFFINE, matrix)`.

    The centre (x + 1/2, y + 1/2) of each output pixel is looked up at (a (x + 1/2) +
    b (y + 1/2) + c, d (x + 1/2) + e (y + 1/2) + f) of the input. Pillow computes in
    float64; here positions have 21 bits after the point, the weights 14 and the sums
    over a row 8, which moves one pixel in 100 or fewer by one level (more where many
    exact results are whole numbers, which both truncate to themselves or one below).

    Args:
      image: Up to `MAX_SIDE` a side.
      matrix: (a, b, c, d, e, f) in units of 2^-20. Positions must lie within -1,024 ..
        1,024 px, which int32 holds: all of RandAugment's do, up to `MAX_SIDE`.
      fill: RGB of what lies outside of the image.
      interpolation: `bicubic` (Pillow's, a = -1) or `bilinear`.

    Raises:
      InputError: The image is larger.
    """
    height, width, _ = image.shape
    if max(height, width) > MAX_SIDE:
        raise InputError(
            f"RandAugment takes images of up to {MAX_SIDE} px a side, not {width} x "
            f"{height}: switch it off with augment.randaugment=''."
        )
    x2 = 2 * jnp.arange(width, dtype=jnp.int32)[None, :] + 1  # in half pixels
    y2 = 2 * jnp.arange(height, dtype=jnp.int32)[:, None] + 1
    a, b, c, d, e, f = (matrix[i] for i in range(6))
    shift = COORDINATE_BITS + 1
    xs = a * x2 + b * y2 + 2 * c
    ys = d * x2 + e * y2 + 2 * f
    inside = (xs >= 0) & (xs < width << shift) & (ys >= 0) & (ys < height << shift)

    r, g, b = (image[..., channel].astype(jnp.int32) for channel in range(3))
    packed = r | g << 8 | b << 16  # one look-up a tap, not three
    # With its edges repeated, so that the taps of a pixel lie at fixed distances.
    packed = jnp.pad(packed, EDGE, mode="edge").reshape(-1)
    sums = jax.lax.platform_dependent(
        packed,
        _taps(ys.reshape(-1), height, interpolation),
        _taps(xs.reshape(-1), width, interpolation),
        cpu=functools.partial(_row_by_row, width=width + 2 * EDGE),
        default=functools.partial(_at_once, width=width + 2 * EDGE),
    )
    levels = [t.reshape(height, width) >> WEIGHT_BITS + ROW_BITS for t in sums]
    warped = jnp.stack(levels, axis=-1).clip(0, 255)
    background = jnp.asarray(fill, jnp.int32)[None, None]
    return jnp.where(inside[..., None], warped, background).astype(jnp.uint8)


def _at_once(packed, rows: list, columns: list, *, width: int) -> tuple:
    """The weighted sums over all taps, of each channel."""
    total = (jnp.zeros_like(rows[0][0]),) * 3
    for row, weight in rows:
        total = _add_row(total, row, weight, packed, columns, width)
    return total


def _row_by_row(packed, rows: list, columns: list, *, width: int) -> tuple:
    """As `_at_once`, faster on a CPU: what a row looks up lies in memory.

    Rows without weight, all but one where pixels move along x only, cost nothing.
    """

    def add(total, tap):
        weighs = (tap[1] != 0).any()
        added = functools.partial(_add_row, packed=packed, columns=columns, width=width)
        return jax.lax.cond(weighs, added, lambda total, *_: total, total, *tap), None

    total = (jnp.zeros_like(rows[0][0]),) * 3
    taps = tuple(map(jnp.stack, zip(*rows, strict=True)))
    return jax.lax.scan(add, total, taps)[0]


def _add_row(total: tuple, row, weight, packed, columns: list, width: int) -> tuple:
    line = [0, 0, 0]
    for column, weight_x in columns:
        pixel = packed[row * width + column]
        for channel in range(3):
            line[channel] += weight_x * (pixel >> 8 * channel & 255)
    half = 1 << WEIGHT_BITS - ROW_BITS - 1
    kept = [part + half >> WEIGHT_BITS - ROW_BITS for part in line]
    return tuple(t + weight * k for t, k in zip(total, kept, strict=True))


def _taps(position: Int32[Array, "h w"], size: int, interpolation: str) -> list:
    """(index, weight) of each neighbour along one axis; positions in 2^-21 pixels.

    The index counts from `EDGE` pixels before the image. Where all taps of a pixel lie
    beyond the same edge it does not matter how far.
    """
    position = position - (1 << COORDINATE_BITS)  # from centres to corners
    shift = COORDINATE_BITS + 1
    first = (position >> shift).clip(1 - EDGE, size) + EDGE
    t = (position >> shift - FRACTION_BITS) & (1 << FRACTION_BITS) - 1
    one = 1 << WEIGHT_BITS
    t1 = t << WEIGHT_BITS - FRACTION_BITS
    if interpolation == "bilinear":
        weights = {0: one - t1, 1: t1}
    else:
        t2 = t * t >> 2 * FRACTION_BITS - WEIGHT_BITS
        t3 = t2 * t >> FRACTION_BITS
        weights = {-1: 2 * t2 - t1 - t3, 1: t1 + t2 - t3, 2: t3 - t2}
        weights[0] = one - sum(weights.values())
    return [(first + n, w) for n, w in weights.items()]


def rotation(degrees: float) -> tuple[int, int]:
    """(cos, sin) in units of 2^-20, of Pillow's `Image.rotate(degrees)`."""
    angle = -math.radians(degrees)
    one = 1 << COORDINATE_BITS
    return round(math.cos(angle) * one), round(math.sin(angle) * one)


def rotation_matrix(cos, sin, height: int, width: int) -> Int32[Array, "6"]:
    """The coefficients of `warp`, about the centre of the image."""
    one = 1 << COORDINATE_BITS
    c = (one * width - cos * width - sin * height) >> 1
    f = (one * height + sin * width - cos * height) >> 1
    return jnp.stack([cos, sin, c, -sin, cos, f])
