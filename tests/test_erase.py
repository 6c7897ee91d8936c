"""Random erasing: timm's rectangles, and what fills them."""

import functools
import math
import random

import jax
import numpy as np
import pytest
import torch
from scipy import stats
from timm.data.random_erasing import RandomErasing

from deit_jax.data.augment import erase
from deit_jax.data.augment.fixed import QUANTILE_BITS, QUANTILES

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SETTINGS = {
    "probability": 1.0,
    "area": (0.02, 1 / 3),
    "aspect": (0.3, 1 / 0.3),
    "mode": "constant",
    "mean": MEAN,
    "std": STD,
}
POINTS = (np.arange(QUANTILES) + 0.5) / QUANTILES
LEAST_P = 1e-4  # of tests of frequencies; the seeds do not change


def keys(count):
    return jax.random.split(jax.random.key(0), count)


def noise(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return pixels.astype(np.uint8)


def erased(image, count, **changes):
    """uint8 [count, h, w, 3]"""
    change = functools.partial(erase.random_erasing, **(SETTINGS | changes))
    many = jax.jit(lambda some: jax.lax.map(lambda key: change(key, image), some))
    return np.asarray(many(keys(count)))


def rectangles(bits, height, width, area, aspect):
    """int [n, 4]: (top, left, height, width)"""
    one = functools.partial(
        erase.rectangle, height=height, width=width, area=area, aspect=aspect
    )
    return np.asarray(jax.jit(jax.vmap(one))(bits))


@functools.cache
def draws(count):
    bits = jax.random.bits(jax.random.key(1), (count, 4 * erase.ATTEMPTS))
    return np.asarray(bits)


def timms_rectangles(count, height, width, area, aspect):
    random.seed(0)
    erasing = RandomErasing(1.0, *area, *aspect, mode="const", device="cpu")
    found = np.zeros((count, 4), int)
    for n in range(count):
        outside = erasing(torch.ones(1, height, width))[0].numpy()
        rows = np.flatnonzero((outside == 0).any(axis=1))
        columns = np.flatnonzero((outside == 0).any(axis=0))
        if len(rows):
            found[n] = rows[0], columns[0], len(rows), len(columns)
    return found


@pytest.mark.parametrize(
    ("height", "width", "area", "aspect"),
    [
        (90, 90, (0.02, 1 / 3), (0.3, 1 / 0.3)),
        (32, 32, (0.02, 1 / 3), (0.3, 1 / 0.3)),
        (40, 100, (0.1, 0.9), (0.2, 2.0)),  # many attempts do not fit
        (20, 20, (0.8, 1.0), (0.5, 2.0)),  # of many images no attempt fits
    ],
)
def test_rectangles_are_distributed_as_timms(height, width, area, aspect):
    count = 4000
    ours = rectangles(draws(count), height, width, area, aspect)
    theirs = timms_rectangles(count, height, width, area, aspect)
    missed = [int((rows[:, 2] == 0).sum()) for rows in (ours, theirs)]
    test = stats.fisher_exact([missed, [count - n for n in missed]])
    assert test.pvalue > LEAST_P
    assert (missed[0] > 100) == (area[0] == 0.8)

    def statistics(rows):
        top, left, h, w = rows[rows[:, 2] > 0].astype(float).T
        return h * w, h / w, h, w, top / (height - h), left / (width - w), top, left

    for ours_part, theirs_part in zip(
        statistics(ours), statistics(theirs), strict=True
    ):
        assert stats.ks_2samp(ours_part, theirs_part).pvalue > LEAST_P


@pytest.mark.parametrize(
    ("height", "width", "area", "aspect"),
    [
        (224, 224, (0.02, 1 / 3), (0.3, 1 / 0.3)),
        (40, 100, (0.1, 0.9), (0.2, 2.0)),
        (1024, 1024, (0.0001, 1.0), (1 / 50, 50.0)),
    ],
)
def test_sides_are_timms_of_the_first_area_and_aspect_that_fit(
    height, width, area, aspect
):
    bits = draws(4000)
    top, left, h, w = rectangles(bits, height, width, area, aspect).T
    quantiles = (bits >> 32 - QUANTILE_BITS).reshape(-1, 4, erase.ATTEMPTS)
    share = area[0] + (area[1] - area[0]) * POINTS[quantiles[:, 0]]
    logs = np.log(aspect)
    ratio = np.exp(logs[0] + (logs[1] - logs[0]) * POINTS[quantiles[:, 1]])
    heights = np.sqrt(share * height * width * ratio)
    widths = np.sqrt(share * height * width / ratio)
    fits = (heights.round() < height) & (widths.round() < width)
    first = np.arange(len(bits)), fits.argmax(axis=1)
    # A side of an image that is not square is known to 1 / 32 of a pixel only, and the
    # roots to 14 bits: what comes that near to a half is left out.
    doubt = 0.04 if height < 1000 else 0.4
    slack = np.minimum(np.abs(heights - height + 0.5), np.abs(widths - width + 0.5))
    clear = slack.min(axis=1) > doubt
    assert clear.mean() > 0.8
    found = fits.any(axis=1)
    np.testing.assert_array_equal((h > 0)[clear], found[clear])
    clear &= found
    assert clear.mean() > 0.4
    for side, exact in ((h, heights[first]), (w, widths[first])):
        assert np.abs(side - exact)[clear].max() < 0.5 + doubt
        assert (side == exact.round())[clear].mean() > 0.9
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()
    assert (h < height).all() and (w < width).all()


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.25, 1.0])
def test_the_share_of_images_that_are_touched(probability):
    image = noise(16, 16)
    images = erased(image, 4000, probability=probability)
    touched = int((images != image).any(axis=(1, 2, 3)).sum())
    if probability in (0, 1):
        assert touched == 4000 * probability
    else:
        assert stats.binomtest(touched, 4000, probability).pvalue > LEAST_P


def drawn_rectangles(count, height, width):
    """Those of `erased` with an unchanged area and aspect."""
    places = jax.vmap(lambda key: jax.random.split(key)[0])(keys(count))
    bits = jax.vmap(lambda key: jax.random.bits(key, (erase.WORDS,)))(places)
    area, aspect = SETTINGS["area"], SETTINGS["aspect"]
    return rectangles(bits[:, 1:], height, width, area, aspect)


@pytest.mark.parametrize("mode", erase.MODES)
def test_only_the_rectangle_changes(mode):
    image = noise(24, 40)
    images = erased(image, 500, mode=mode)
    drawn = drawn_rectangles(500, 24, 40)
    for one, (top, left, h, w) in zip(images, drawn, strict=True):
        part = np.s_[top : top + h, left : left + w]
        changed = (one != image).any(axis=2)
        # Of the noise, a pixel in 16 million is what it was.
        assert changed[part].all()
        assert changed.sum() == h * w
        if mode == "constant":
            assert (one[part] == [124, 116, 104]).all()
    areas = drawn[:, 2] * drawn[:, 3]
    assert areas.min() < 0.05 * 24 * 40
    assert areas.max() > 0.3 * 24 * 40


def noise_pixels(mean, std):
    """uint8 [images, 30, 30, 3], erased nearly whole."""
    settings = {"area": (0.9, 0.9), "aspect": (1.0, 1.0), "mode": "pixel"}
    black = np.zeros((32, 32, 3), np.uint8)
    images = erased(black, 200, mean=mean, std=std, **settings)
    side = round(math.sqrt(0.9) * 32)
    parts = []
    for image in images:
        top, left = (np.flatnonzero(image.any((axis, 2)))[0] for axis in (1, 0))
        parts.append(image[top : top + side, left : left + side])
    return np.stack(parts)


@pytest.mark.parametrize(
    ("mean", "std"),
    [(MEAN, STD), ((0.1, 0.5, 0.95), (0.3, 0.05, 0.25))],  # much of it clipped
)
def test_noise_has_the_mean_and_std_of_the_data(mean, std):
    pixels = noise_pixels(mean, std).reshape(-1, 3)
    random_state = np.random.default_rng(0)
    for n in range(3):
        normal = random_state.normal(mean[n], std[n], len(pixels)) * 255
        expected = normal.round().clip(0, 255)
        assert pixels[:, n].mean() == pytest.approx(expected.mean(), abs=0.7)
        assert pixels[:, n].std() == pytest.approx(expected.std(), rel=0.01)
        levels = np.arange(256)
        cumulated = np.searchsorted(np.sort(pixels[:, n]), levels, "right")
        exact = stats.norm(255 * mean[n], 255 * std[n]).cdf(levels + 0.5)
        exact[-1] = 1
        # A step of the table is 1 / 256.
        assert np.abs(cumulated / len(pixels) - exact).max() < 0.007


@pytest.mark.parametrize(
    ("area", "aspect"),
    [((0.5, 0.5), (50.0, 50.0)), ((0.5, 0.5), (0.02, 0.02)), ((1.0, 1.0), (1.0, 1.0))],
)
def test_where_nothing_fits_the_image_stays(area, aspect):
    image = noise(32, 32)
    assert (erased(image, 50, area=area, aspect=aspect) == image).all()
