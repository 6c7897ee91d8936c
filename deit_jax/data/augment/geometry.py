"""Crops, flips and warps of images that have the model's size already."""

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
    packed = jnp.pad(packed, EDGE, mode="edge")
    rows = _taps(ys.reshape(-1), height, interpolation)
    columns = _taps(xs.reshape(-1), width, interpolation)
    sums = jax.lax.platform_dependent(
        packed,
        rows,
        columns,
        cpu=_row_by_row,
        tpu=_row_by_row,
        default=_by_window,
    )
    levels = [t.reshape(height, width) >> WEIGHT_BITS + ROW_BITS for t in sums]
    warped = jnp.stack(levels, axis=-1).clip(0, 255)
    background = jnp.asarray(fill, jnp.int32)[None, None]
    return jnp.where(inside[..., None], warped, background).astype(jnp.uint8)


def _by_window(packed: Int32[Array, "h w"], rows: tuple, columns: tuple) -> list:
    """The weighted sums over all taps, of each channel: three int32 [n].

    The taps of a pixel are one look-up, which XLA fuses with the sums on GPUs. `packed`
    has its three channels in 8 bits each; `rows` and `columns` are those of `_taps`.
    """
    (top, row_weights), (left, column_weights) = rows, columns
    taps = len(row_weights)
    row_weights, column_weights = row_weights.T, column_weights.T[:, None]
    dimensions = jax.lax.GatherDimensionNumbers(
        offset_dims=(1, 2), collapsed_slice_dims=(), start_index_map=(0, 1)
    )
    corners = jnp.stack([top, left], axis=-1)
    windows = jax.lax.gather(
        packed, corners, dimensions, (taps, taps), mode="promise_in_bounds"
    )
    sums = []
    for channel in range(3):
        levels = column_weights * _levels(windows, channel)
        line = _kept(levels.sum(-1, dtype=jnp.int32))
        sums.append((row_weights * line).sum(-1, dtype=jnp.int32))
    return sums


def _row_by_row(packed, rows: tuple, columns: tuple) -> list:
    """As `_by_window`, faster on a CPU: what a row looks up lies in memory.

    Rows without weight, all but one where pixels move along x only, cost nothing.
    """
    (top, row_weights), (left, column_weights) = rows, columns

    def row_added(sums, row, weight):
        line = [0, 0, 0]
        for column, column_weight in enumerate(column_weights):
            pixel = packed[row, left + column]
            for channel in range(3):
                line[channel] += column_weight * _levels(pixel, channel)
        return [s + weight * _kept(part) for s, part in zip(sums, line, strict=True)]

    def add(sums, tap):
        weighs = (tap[1] != 0).any()
        return jax.lax.cond(weighs, row_added, lambda sums, *_: sums, sums, *tap), None

    taps = top[None] + jnp.arange(len(row_weights))[:, None], row_weights
    return jax.lax.scan(add, [jnp.zeros_like(top)] * 3, taps)[0]


def _levels(packed, channel: int):
    return packed >> 8 * channel & 255


def _kept(line):
    """A sum over a row, with `ROW_BITS` after the point."""
    return line + (1 << WEIGHT_BITS - ROW_BITS - 1) >> WEIGHT_BITS - ROW_BITS


# Weights of neighbouring pixels as polynomials of how far the position is from one to
# the next: the coefficients of 1, t, t^2, t^3.
POLYNOMIALS = {
    "bilinear": [[1, -1], [0, 1]],
    "bicubic": [[0, -1, 2, -1], [1, 0, -2, 1], [0, 1, 1, -1], [0, 0, -1, 1]],
}


def _taps(
    position: Int32[Array, " n"], size: int, interpolation: str
) -> tuple[Int32[Array, " n"], Int32[Array, "taps n"]]:
    """The first neighbour along one axis, and the weights of all, in 2^-14.

    Positions are in units of 2^-21 pixels.

    The first one counts from `EDGE` pixels before the image. Where all taps of a pixel
    lie beyond the same edge it does not matter how far.
    """
    position = position - (1 << COORDINATE_BITS)  # from centres to corners
    shift = COORDINATE_BITS + 1
    t = (position >> shift - FRACTION_BITS) & (1 << FRACTION_BITS) - 1
    t2 = t * t >> 2 * FRACTION_BITS - WEIGHT_BITS
    one = jnp.full_like(t, 1 << WEIGHT_BITS)
    t1 = t << WEIGHT_BITS - FRACTION_BITS
    powers = one, t1, t2, t2 * t >> FRACTION_BITS
    polynomials = jnp.asarray(POLYNOMIALS[interpolation], jnp.int32)
    weights = sum(
        factor[:, None] * power[None]
        for factor, power in zip(polynomials.T, powers, strict=False)
    )
    before = len(polynomials) // 2 - 1  # neighbours before the pixel itself
    first = (position >> shift).clip(1 - EDGE, size) + EDGE
    return first - before, weights


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
