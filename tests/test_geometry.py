"""Crops and flips by what they may do; warps by Pillow's pixels."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional

from deit_jax.data import rng
from deit_jax.data.augment import geometry
from deit_jax.errors import InputError

FILL = (124, 116, 104)
ONE = 1 << geometry.COORDINATE_BITS


def keys(count):
    return rng.image_keys(3, np.zeros(count, np.int32), np.arange(count))


def without_black(side=12):
    return np.random.default_rng(0).integers(1, 256, (side, side, 3), np.uint8)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crops_are_windows_of_the_padded_image_at_every_position(mode):
    image, padding = without_black(), 4
    crop = functools.partial(geometry.pad_and_crop, padding=padding, mode=mode)
    cropped = jax.jit(jax.vmap(crop, (0, None)))(keys(2000), image)
    padded = np.asarray(functional.pad(Image.fromarray(image), padding, 0, mode))
    windows = np.lib.stride_tricks.sliding_window_view(padded, image.shape)
    windows = windows.reshape(81, *image.shape)
    position = {window.tobytes(): n for n, window in enumerate(windows)}
    drawn = [position[one.tobytes()] for one in np.asarray(cropped)]
    counts = np.bincount(drawn, minlength=81)
    expected = 2000 / 81
    # chi2 of 80 degrees of freedom: p ~ 4e-4
    assert ((counts - expected) ** 2 / expected).sum() < 130


def test_every_second_image_is_mirrored():
    image = without_black()
    flip = jax.jit(jax.vmap(geometry.horizontal_flip, (0, None)))
    flipped = np.asarray(flip(keys(2000), image))
    mirrored = (flipped == image[:, ::-1]).all(axis=(1, 2, 3))
    kept = (flipped == image).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 900 < mirrored.sum() < 1100


# Warps. -----------------------------------------------------------------------------

on_sizes = pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (24, 37), (224, 224)]
)
interpolated = pytest.mark.parametrize("interpolation", geometry.INTERPOLATIONS)


def pictures(height, width):
    """uint8 [3, height, width, 3]: smooth, noise, and noise of the hardest edges."""
    random = np.random.default_rng(0)
    size = (height, width, 3)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + y / 14), np.cos(x / 23 - y / 6), np.sin(x * y / 400)]
    return np.stack(
        [
            127.5 + 127.5 * np.stack(waves, axis=-1),
            random.integers(0, 256, size),
            255 * random.integers(0, 2, size),
        ]
    ).astype(np.uint8)


def affine_maps(height, width, count):
    """float64 [n, 6]: those of RandAugment up to their bounds, and mixtures."""
    random = np.random.default_rng(1)
    shear, slant = random.uniform(-0.3, 0.3, (2, count))
    shift = random.uniform(-0.45, 0.45, (2, count))
    zero, one = np.zeros(count), np.ones(count)
    right, down = shift[0] * width, shift[1] * height
    maps = [
        [one, shear, zero, zero, one, zero],
        [one, zero, zero, slant, one, zero],
        [one, zero, right, zero, one, zero],
        [one, zero, zero, zero, one, down],
        [1 + shear, slant, right / 4, -slant, 1 - shear, down / 4],
    ]
    some = np.concatenate([np.stack(rows, axis=1) for rows in maps])
    ends = [
        [1, 0.3, 0, 0, 1, 0],
        [1, 0, 0, -0.3, 1, 0],
        [1, 0, 0.45 * width, 0, 1, 0],
        [1, 0, 0, 0, 1, -0.45 * height],
        [1, 0, 0.5, 0, 1, -0.5],  # between the pixels
        [1, 0, 3, 0, 1, -2],
        [1, 0, 2 * width, 0, 1, 0],  # nothing of it is left
        [-1, 0, width, 0, -1, height],
    ]
    return np.concatenate([some, ends])


@functools.partial(jax.jit, static_argnames="interpolation")
def warp_all(images, matrices, interpolation):
    """[matrix, image, ...]"""
    warp = functools.partial(geometry.warp, fill=FILL, interpolation=interpolation)
    return jax.lax.map(lambda m: jax.lax.map(lambda x: warp(x, m), images), matrices)


def near_the_edge(matrix, height, width):
    """Whether a position lies within 2^-10 pixels of the image's edge: bool [h, w]."""
    a, b, c, d, e, f = matrix
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    xs, ys = a * x + b * y + c, d * x + e * y + f
    distances = [xs, xs - width, ys, ys - height]
    return np.abs(distances).min(axis=0) <= 2**-10


def differing(ours, expected, free):
    """Share of levels that differ, by one at most but where `free`."""
    difference = np.abs(np.asarray(ours).astype(int) - expected)
    assert (difference * ~free[..., None]).max() <= 1
    return (difference > 0).mean()


@pytest.mark.slow
@on_sizes
@interpolated
def test_warp_is_pillows_transform(height, width, interpolation):
    images = pictures(height, width)
    maps = affine_maps(height, width, count=6 if height < 100 else 1)
    matrices = np.round(maps * ONE).astype(np.int32)
    method = Image.Resampling[interpolation.upper()]
    warped = warp_all(images, matrices, interpolation)
    shares = []
    for matrix, ours in zip(maps, warped, strict=True):
        expected = [
            Image.fromarray(image).transform(
                (width, height), Image.Transform.AFFINE, matrix, method, fillcolor=FILL
            )
            for image in images
        ]
        free = near_the_edge(matrix, height, width)
        shares.append(differing(ours, expected, free))
    # Not the mean: black and white, shifted by a fifth of a pixel, has whole levels as
    # exact results, and whether those are truncated to the level below is chance.
    assert np.median(shares) < 0.01


def rotations(degrees, height, width):
    cos_sin = [geometry.rotation(angle) for angle in degrees]
    matrix = functools.partial(geometry.rotation_matrix, height=height, width=width)
    return jax.jit(jax.vmap(matrix))(*np.array(cos_sin, np.int32).T)


@on_sizes
@interpolated
def test_warp_is_pillows_rotate(height, width, interpolation):
    images = pictures(height, width)
    degrees = [-30, -27, -11.3, -0.05, 0.3, 14.9, 28.5, 30]
    matrices = rotations(degrees, height, width)
    method = Image.Resampling[interpolation.upper()]
    warped = warp_all(images, matrices, interpolation)
    shares = []
    for angle, matrix, ours in zip(degrees, matrices, warped, strict=True):
        expected = [
            Image.fromarray(image).rotate(angle, method, fillcolor=FILL)
            for image in images
        ]
        free = near_the_edge(np.asarray(matrix) / ONE, height, width)
        assert free.mean() < 0.01
        shares.append(differing(ours, expected, free))
    assert np.mean(shares) < 0.01


@on_sizes
@interpolated
def test_the_identity_changes_nothing(height, width, interpolation):
    images = pictures(height, width)
    identity = np.array([[ONE, 0, 0, 0, ONE, 0]], np.int32)
    for matrices in (identity, rotations([0.0], height, width)):
        warped = warp_all(images, matrices, interpolation)
        np.testing.assert_array_equal(warped[0], images)


@interpolated
def test_quarter_turns_and_whole_shifts_only_move_pixels(interpolation):
    images = pictures(32, 32)
    shift = np.array([[ONE, 0, 5 * ONE, 0, ONE, -3 * ONE]], np.int32)
    matrices = np.concatenate([rotations([90, 180, 270], 32, 32), shift])
    *turned, shifted = np.asarray(warp_all(images, matrices, interpolation))
    for turns, ours in enumerate(turned, start=1):
        np.testing.assert_array_equal(ours, np.rot90(images, turns, axes=(1, 2)))
    np.testing.assert_array_equal(shifted[:, 3:, :-5], images[:, :-3, 5:])
    assert (shifted[:, :3] == FILL).all()
    assert (shifted[:, :, -5:] == FILL).all()


def test_large_images_do_not_overflow():
    side = geometry.MAX_SIDE
    # Black and white only: the largest sums.
    image = 255 * np.random.default_rng(0).integers(0, 2, (side, side, 3), np.uint8)
    bicubic = Image.Resampling.BICUBIC
    degrees = [30, -30]
    matrices = rotations(degrees, side, side)
    warped = warp_all(image[None], matrices, "bicubic")
    for angle, matrix, ours in zip(degrees, matrices, warped, strict=True):
        expected = Image.fromarray(image).rotate(angle, bicubic, fillcolor=FILL)
        free = near_the_edge(np.asarray(matrix) / ONE, side, side)
        assert differing(ours[0], expected, free) < 0.02


def test_larger_images_are_refused():
    image = np.zeros((8, 513, 3), np.uint8)
    with pytest.raises(InputError, match="up to 512 px a side, not 513 x 8"):
        warp_all(image[None], np.array([[ONE, 0, 0, 0, ONE, 0]], np.int32), "bilinear")
