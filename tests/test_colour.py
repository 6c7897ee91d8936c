"""Operations on colours, pixel by pixel equal to Pillow's."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from timm.data import auto_augment
from torchvision.transforms import functional

from deit_jax.data.augment import colour
from deit_jax.data.augment.fixed import FACTOR

FACTORS = np.unique([*range(0, 2 * FACTOR, 9), 102, 1023, 1024, 1025, 1946, 2048])


def pictures(height, width):
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


SIZES = {"square": (32, 32), "oblong": (7, 12)}
on_all_pictures = pytest.mark.parametrize(
    "images", [pictures(*size) for size in SIZES.values()], ids=SIZES
)


def table_of(operation, of_image=False):
    """The operation as a function of an image, its table looked up."""
    if of_image:
        return lambda image, *rest: colour.look_up(image, operation(image, *rest))
    return lambda image, *rest: colour.look_up(image, operation(*rest))


@functools.partial(jax.jit, static_argnums=0)
def over_parameters(operation, images, parameters):
    """uint8 [images, parameters, h, w, 3]"""
    return jax.lax.map(
        lambda image: jax.lax.map(lambda p: operation(image, p), parameters), images
    )


def without(operation):
    """As a function of a parameter that is no matter."""
    return lambda image, _: operation(image)


def enhance(kind):
    return lambda image, factor: kind(image).enhance(factor / FACTOR)


def posterize(image, bits):
    if bits:
        return ImageOps.posterize(image, bits)
    return Image.new("RGB", image.size)  # Pillow 13 refuses it


def adjust_hue(image, shift):
    # Half a level more: torchvision truncates towards zero what float has rounded.
    return functional.adjust_hue(image, (shift + np.sign(shift) / 2) / 255)


def greyscale(image):
    return functional.rgb_to_grayscale(image, num_output_channels=3)


EQUAL = {
    "invert": (without(table_of(colour.invert)), without(ImageOps.invert), [0]),
    "equalize": (
        without(table_of(colour.equalize, of_image=True)),
        without(ImageOps.equalize),
        [0],
    ),
    "posterize": (table_of(colour.posterize), posterize, range(9)),
    "solarize": (table_of(colour.solarize), ImageOps.solarize, range(0, 257, 4)),
    "solarize_add": (
        table_of(colour.solarize_add),
        auto_augment.solarize_add,
        range(129),
    ),
    "brightness": (
        table_of(colour.brightness),
        enhance(ImageEnhance.Brightness),
        FACTORS,
    ),
    "contrast": (
        table_of(colour.contrast, of_image=True),
        enhance(ImageEnhance.Contrast),
        FACTORS,
    ),
    "greyscale": (without(colour.greyscale), without(greyscale), [0]),
    "saturation": (colour.saturation, enhance(ImageEnhance.Color), FACTORS),
    "sharpness": (colour.sharpness, enhance(ImageEnhance.Sharpness), FACTORS),
    "hue": (colour.shift_hue, adjust_hue, range(-127, 128)),
}


@on_all_pictures
@pytest.mark.parametrize("name", EQUAL)
def test_every_pixel_is_pillows_or_torchvisions(images, name):
    assert_equal(*EQUAL[name], images)


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


@on_all_pictures
def test_histogram(images):
    counted = np.asarray(jax.jit(jax.vmap(colour.histogram))(images))
    for image, counts in zip(images, counted, strict=True):
        assert counts.ravel().tolist() == Image.fromarray(image).histogram()


def test_autocontrast_is_pillows_or_one_level_higher():
    # All levels between random lowest and highest ones: what the table depends on.
    random = np.random.default_rng(0)
    bounds = np.sort(random.integers(0, 256, (1000, 2, 3)), axis=1)
    ends = [[0, 255], [0, 0], [255, 255], [7, 8], [0, 1], [254, 255], [9, 9]]
    bounds[: len(ends)] = np.asarray(ends)[:, :, None]
    levels = np.arange(256)[None, None, :, None]
    images = levels.clip(bounds[:, :1, None], bounds[:, 1:, None]).astype(np.uint8)
    ours = jax.jit(jax.vmap(table_of(colour.autocontrast, of_image=True)))(images)
    expected = [np.asarray(ImageOps.autocontrast(Image.fromarray(x))) for x in images]
    above = np.asarray(ours).astype(int) - np.stack(expected)
    assert set(np.unique(above)) <= {0, 1}
    between = (levels >= bounds[:, :1, None]) & (levels <= bounds[:, 1:, None])
    assert above[between].mean() < 0.006  # of all pairs of bounds, 0.0043


@on_all_pictures
def test_autocontrast_of_images(images):
    ours = jax.jit(jax.vmap(table_of(colour.autocontrast, of_image=True)))(images)
    expected = [np.asarray(ImageOps.autocontrast(Image.fromarray(x))) for x in images]
    assert np.abs(np.asarray(ours).astype(int) - np.stack(expected)).max() <= 1


@on_all_pictures
def test_blur(images):
    radii = np.linspace(0.1, 2.0, 300).tolist()
    weights = np.array([colour.blur_weights(radius) for radius in radii])
    blurred = over_parameters(colour.blur, images, weights.astype(np.uint32))
    for image, of_image in zip(images, np.asarray(blurred), strict=True):
        pillow = Image.fromarray(image)
        for radius, one in zip(radii, of_image, strict=True):
            expected = pillow.filter(ImageFilter.GaussianBlur(radius))
            np.testing.assert_array_equal(one, expected, err_msg=f"{radius=}")


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
