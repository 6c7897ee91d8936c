"""Operations on colours, pixel by pixel equal to Pillow's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from timm.data import auto_augment
from torchvision.transforms import functional

from deit_jax.data.augment import colour
from deit_jax.data.augment.fixed import FACTOR

FACTORS = np.unique([*range(0, 2 * FACTOR, 27), 102, 1023, 1024, 1025, 1946, 2048])


@functools.cache
def all_images(height=30, width=33):
    """uint8 [n, height, width, 3]: what an operation may treat apart."""
    random = np.random.default_rng(height)
    size = (height, width, 3)
    y, x = np.mgrid[:height, :width]
    across, down = 255 * x // (width - 1), 255 * y // (height - 1)
    gradients = np.stack([across, down, (across + down) // 2], axis=-1)
    images = [
        random.integers(0, 256, size),
        random.normal(128, 30, size).clip(0, 255),
        gradients,
        40 + gradients // 4,  # of few levels, from neither 0 nor to 255
        np.broadcast_to([17, 130, 240], size),
        np.where(random.random(size) < 0.3, 200, 31),
        np.where(random.random(size) < 0.5, 255, 0),
        np.repeat(random.integers(0, 256, (height, width, 1)), 3, axis=2),
        np.zeros(size),
    ]
    return np.stack(images).astype(np.uint8)


@functools.partial(jax.jit, static_argnums=0)
def over_parameters(operation, images, parameters):
    """uint8 [images, parameters, h, w, 3]; a table is looked up."""

    def one(image, parameter):
        made = operation(image, parameter)
        return colour.look_up(image, made) if made.shape == (3, 256) else made

    return jax.lax.map(
        lambda image: jax.lax.map(lambda p: one(image, p), parameters), images
    )


def enhance(kind):
    return lambda image, factor: kind(image).enhance(factor / FACTOR)


def posterize(image, bits):
    if bits:
        return ImageOps.posterize(image, bits)
    return Image.new("RGB", image.size)  # Pillow 13 refuses it


def adjust_hue(image, shift):
    # Half a level more: torchvision truncates towards zero what float has rounded.
    return functional.adjust_hue(image, (shift + np.sign(shift) / 2) / 255)


# Operation: ours and the expected one of (image, parameter), and the parameters.
EQUAL = {
    "invert": (lambda *_: colour.invert(), lambda x, _: ImageOps.invert(x), [0]),
    "equalize": (
        lambda x, _: colour.equalize(x), lambda x, _: ImageOps.equalize(x), [0]),
    "posterize": (lambda _, bits: colour.posterize(bits), posterize, range(9)),
    "solarize": (
        lambda _, least: colour.solarize(least), ImageOps.solarize, range(0, 257, 4)),
    "solarize_add": (
        lambda _, n: colour.solarize_add(n), auto_augment.solarize_add, range(129)),
    "brightness": (
        lambda _, f: colour.brightness(f), enhance(ImageEnhance.Brightness), FACTORS),
    "contrast": (colour.contrast, enhance(ImageEnhance.Contrast), FACTORS),
    "greyscale": (
        lambda x, _: colour.greyscale(x),
        lambda x, _: functional.rgb_to_grayscale(x, num_output_channels=3), [0]),
    "saturation": (colour.saturation, enhance(ImageEnhance.Color), FACTORS),
    "sharpness": (colour.sharpness, enhance(ImageEnhance.Sharpness), FACTORS),
    "hue": (colour.shift_hue, adjust_hue, range(-127, 128)),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUAL)
def test_every_pixel_is_pillows_or_torchvisions(name):
    assert_equal(*EQUAL[name], all_images())


def assert_equal(ours, expected, parameters, images):
    """`expected` of each Pillow image and parameter is the same in all pixels."""
    got = np.asarray(over_parameters(ours, images, np.asarray(parameters)))
    assert got.dtype == np.uint8
    for image, of_image in zip(images, got, strict=True):
        pillow = Image.fromarray(image)
        for parameter, one in zip(parameters, of_image, strict=True):
            np.testing.assert_array_equal(
                one, expected(pillow, parameter), err_msg=f"{parameter=}"
            )


def test_histogram():
    counted = np.asarray(jax.jit(jax.vmap(colour.histogram))(all_images()))
    for image, counts in zip(all_images(), counted, strict=True):
        assert counts.ravel().tolist() == Image.fromarray(image).histogram()


def autocontrast(images):
    def one(image):
        return colour.look_up(image, colour.autocontrast(image))

    expected = [np.asarray(ImageOps.autocontrast(Image.fromarray(x))) for x in images]
    return np.asarray(jax.jit(jax.vmap(one))(images)).astype(int) - np.stack(expected)


def test_autocontrast_is_pillows_or_one_level_higher():
    assert np.abs(autocontrast(all_images())).max() <= 1
    # All levels between random lowest and highest ones: what the table depends on.
    random = np.random.default_rng(0)
    bounds = np.sort(random.integers(0, 256, (1000, 2, 3)), axis=1)
    ends = [[0, 255], [0, 0], [255, 255], [7, 8], [0, 1], [254, 255], [9, 9]]
    bounds[: len(ends)] = np.asarray(ends)[:, :, None]
    levels = np.arange(256)[None, None, :, None]
    above = autocontrast(
        levels.clip(bounds[:, :1, None], bounds[:, 1:, None]).astype(np.uint8)
    )
    assert set(np.unique(above)) <= {0, 1}
    between = (levels >= bounds[:, :1, None]) & (levels <= bounds[:, 1:, None])
    assert above[between].mean() < 0.006  # of all pairs of bounds, 0.0043


def test_blur():
    radii = np.linspace(0.1, 2.0, 100)
    weights = np.array([colour.blur_weights(radius) for radius in radii], np.uint32)

    def expected(image, n):
        return image.filter(ImageFilter.GaussianBlur(float(radii[n])))

    assert_equal(
        lambda image, n: colour.blur(image, jnp.asarray(weights)[n]),
        expected,
        range(len(radii)),
        all_images(),
    )


def test_a_blur_that_is_too_wide_is_refused():
    with pytest.raises(ValueError, match="radius=3"):
        colour.blur_weights(3)


def test_shift_hue_of_all_hues_and_all_saturations():
    # Hue and saturation depend on the ratios of the largest, the middle and the least
    # of three: all triples with the largest 255, and all pairs of largest and least.
    ramp = np.arange(256)
    largest = np.full((256, 256), 255)
    b, a = np.meshgrid(ramp, ramp)
    hues = [(largest, a, b), (a, largest, b), (a, b, largest)]
    saturations = [(a, np.minimum(a, b), np.minimum(a, b))]
    image = np.concatenate([np.stack(x, axis=-1) for x in hues + saturations])
    shifts = [-127, -85, -43, -13, -1, 0, 2, 27, 64, 100, 127]
    assert_equal(colour.shift_hue, adjust_hue, shifts, image[None].astype(np.uint8))
