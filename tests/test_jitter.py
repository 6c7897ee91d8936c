"""Colour jitter and 3-Augment: torchvision's and Pillow's pixels, and frequencies."""

import functools
import itertools

import jax
import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps
from scipy import stats
from torchvision import transforms
from torchvision.transforms import functional

from deit_jax.data.augment import jitter
from deit_jax.data.augment.fixed import FACTOR, QUANTILE_BITS, QUANTILES

NAMES = ("brightness", "contrast", "saturation", "hue")
STRENGTHS = (0.3, 0.4, 0.2, 0.05)
LEAST_P = 1e-4  # of tests of frequencies; the seeds do not change
POINTS = (np.arange(QUANTILES) + 0.5) / QUANTILES


def picture(height=12, width=16):
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (3, 4, 3))
    blocks = np.kron(colours, np.ones((height // 3, width // 4, 1)))
    return (blocks + random.normal(0, 20, blocks.shape)).clip(0, 255).astype(np.uint8)


def keys(count):
    return jax.random.split(jax.random.key(0), count)


def changed(change, some_keys, image):
    """uint8 [keys, h, w, 3]"""
    return np.asarray(
        jax.jit(lambda many: jax.lax.map(lambda key: change(key, image), many))(
            some_keys
        )
    )


@functools.partial(jax.jit, static_argnums=1)
def bits_of(some_keys, words):
    return jax.vmap(lambda key: jax.random.bits(key, (words,)))(some_keys)


@pytest.mark.parametrize("strength", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("name", NAMES[:3])
def test_factors_are_uniform_in_torchvisions_range(name, strength):
    low, high = getattr(transforms.ColorJitter(**{name: strength}), name)
    factors = jitter.factor_table(name, strength) / FACTOR
    uniform = low + (high - low) * POINTS
    np.testing.assert_allclose(factors, uniform, rtol=0, atol=0.5 / FACTOR)


@pytest.mark.parametrize("strength", [0.05, 0.25, 0.5])
def test_the_turn_of_the_hue_is_uniform_in_torchvisions_range(strength):
    low, high = transforms.ColorJitter(hue=strength).hue
    turns = low + (high - low) * POINTS
    shifts = jitter.factor_table("hue", strength)
    # As adjust_hue makes a whole level of a turn.
    np.testing.assert_array_equal(shifts, [np.int32(turn * 255) for turn in turns])
    assert abs(shifts.sum()) == 0


def drawn_by(some_keys, strengths):
    """[(name, factor as torchvision takes it)] in the order drawn, of each key."""
    active = [n for n, strength in enumerate(strengths) if strength]
    orders = list(itertools.permutations(active))
    tables = [jitter.factor_table(*x) for x in zip(NAMES, strengths, strict=True)]
    for bits in np.asarray(bits_of(some_keys, 5)):
        order = orders[int(bits[4] >> 16) * len(orders) >> 16]
        factors = [
            int(table[row >> 32 - QUANTILE_BITS])
            for table, row in zip(tables, bits[:4], strict=True)
        ]
        # A level of the hue and a half: torchvision truncates.
        factors[3] = (factors[3] + np.sign(factors[3]) / 2) / 255
        factors[:3] = [factor / FACTOR for factor in factors[:3]]
        yield [(NAMES[n], factors[n]) for n in order]


@pytest.mark.parametrize(
    "strengths",
    [
        STRENGTHS,
        (0.3, 0.3, 0.3, 0.0),  # DeiT III
        (0.0, 0.4, 0.0, 0.1),
        (0.0, 0.0, 1.0, 0.0),
    ],
)
def test_color_jitter_is_torchvisions_in_the_order_drawn(strengths):
    image, some_keys = picture(), keys(300)
    ours = changed(
        functools.partial(jitter.color_jitter, strengths=strengths), some_keys, image
    )
    for one, operations in zip(ours, drawn_by(some_keys, strengths), strict=True):
        expected = Image.fromarray(image)
        for name, factor in operations:
            expected = getattr(functional, f"adjust_{name}")(expected, factor)
        np.testing.assert_array_equal(one, expected, err_msg=str(operations))
    assert len(np.unique(ours, axis=0)) > 200


def test_no_strength_changes_nothing():
    image = picture()
    assert jitter.color_jitter(jax.random.key(0), image, (0.0,) * 4) is image


def test_every_order_of_the_four_is_drawn():
    orders = {
        tuple(name for name, _ in operations)
        for operations in drawn_by(keys(2000), STRENGTHS)
    }
    assert len(orders) == 24


def test_three_augment_is_pillows_and_each_third_as_frequent():
    image, some_keys = picture(), keys(3000)
    ours = changed(jitter.three_augment, some_keys, image)
    pillow = Image.fromarray(image)
    grey = functional.rgb_to_grayscale(pillow, num_output_channels=3)
    solarized = ImageOps.solarize(pillow, 128)
    counts, radii = np.zeros(3), []
    for one, bits in zip(ours, np.asarray(bits_of(some_keys, 2)), strict=True):
        choice = int(bits[0] >> 16) * 3 >> 16
        counts[choice] += 1
        expected = (grey, solarized)[choice] if choice < 2 else None
        if expected is None:
            radius = 0.1 + 1.9 * POINTS[bits[1] >> 32 - QUANTILE_BITS]
            radii.append(radius)
            expected = pillow.filter(ImageFilter.GaussianBlur(float(radius)))
        np.testing.assert_array_equal(one, expected, err_msg=f"{choice=}")
    assert stats.chisquare(counts).pvalue > LEAST_P
    assert stats.kstest(radii, stats.uniform(0.1, 1.9).cdf).pvalue > LEAST_P


@pytest.mark.parametrize(
    "change",
    [
        functools.partial(jitter.color_jitter, strengths=(0.0, 0.4, 0.0, 0.1)),
        jitter.three_augment,
    ],
)
def test_images_at_once_are_the_same_as_one_by_one(change):
    # All branches computed and one taken, as on accelerators.
    image, some_keys = picture(), keys(100)
    at_once = jax.jit(jax.vmap(lambda key: change(key, image)))(some_keys)
    np.testing.assert_array_equal(at_once, changed(change, some_keys, image))
