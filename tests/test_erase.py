"""Random erasing: timm's rectangles, and what fills them."""

import functools
import math
import random

import jax
import numpy as np
import pytest
import torch
from augmentation import FILL, LEAST_P, MEAN, STD, keys, noise, one_by_one
from scipy import stats
from timm.data.random_erasing import RandomErasing

from deit_jax.data.augment import erase

SETTINGS = {
    "probability": 1.0,
    "area": (0.02, 1 / 3),
    "aspect": (0.3, 1 / 0.3),
    "mode": "constant",
    "mean": MEAN,
    "std": STD,
}


def erased(image, count, **changes):
    """uint8 [count, h, w, 3]"""
    change = functools.partial(erase.random_erasing, **(SETTINGS | changes))
    return one_by_one(change, keys(count), image)


def rectangles(bits, height, width, area, aspect):
    """int [n, 4]: (top, left, height, width)"""
    one = functools.partial(
        erase.rectangle, height=height, width=width, area=area, aspect=aspect
    )
    return np.asarray(jax.jit(jax.vmap(one))(bits))


class Recorder:
    """An image that only says where it was erased."""

    dtype = torch.float32

    def __init__(self, height, width):
        self._size, self.rectangle = (1, height, width), (0, 0, 0, 0)

    def size(self):
        return self._size

    def __setitem__(self, place, _):
        _, rows, columns = place
        sides = rows.stop - rows.start, columns.stop - columns.start
        self.rectangle = (rows.start, columns.start, *sides)


def timms_rectangles(count, height, width, area, aspect):
    random.seed(0)
    erasing = RandomErasing(1.0, *area, *aspect, mode="const", device="cpu")
    return np.array([erasing(Recorder(height, width)).rectangle for _ in range(count)])


@pytest.mark.parametrize(
    ("height", "width", "area", "aspect"),
    [
        (32, 32, (0.02, 1 / 3), (0.3, 1 / 0.3)),
        (40, 100, (0.1, 0.9), (0.2, 2.0)),  # many attempts do not fit
        (20, 20, (0.8, 1.0), (0.5, 2.0)),  # of many images no attempt fits
        (1024, 1024, (0.0001, 1.0), (1 / 50, 50.0)),  # the largest numbers
    ],
)
def test_rectangles_are_distributed_as_timms(height, width, area, aspect):
    count = 4000
    bits = jax.random.bits(jax.random.key(1), (count, 4 * erase.ATTEMPTS))
    ours = rectangles(bits, height, width, area, aspect)
    theirs = timms_rectangles(count, height, width, area, aspect)
    missed = [int((rows[:, 2] == 0).sum()) for rows in (ours, theirs)]
    test = stats.fisher_exact([missed, [count - n for n in missed]])
    assert test.pvalue > LEAST_P
    assert area[0] < 0.8 or missed[0] > 100

    def statistics(rows):
        top, left, h, w = rows[rows[:, 2] > 0].astype(float).T
        assert (top >= 0).all() and (top + h <= height).all() and (h < height).all()
        assert (left >= 0).all() and (left + w <= width).all() and (w < width).all()
        return h * w, h / w, h, w, top / (height - h), left / (width - w), top, left

    for ours_part, theirs_part in zip(
        statistics(ours), statistics(theirs), strict=True
    ):
        assert stats.ks_2samp(ours_part, theirs_part).pvalue > LEAST_P


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_the_share_of_images_that_are_touched(probability):
    image = noise(16, 16)
    images = erased(image, 4000, probability=probability)
    touched = int((images != image).any(axis=(1, 2, 3)).sum())
    assert stats.binomtest(touched, 4000, probability).pvalue > LEAST_P


@pytest.mark.parametrize("mode", erase.MODES)
def test_only_the_rectangle_changes(mode):
    image, count = noise(24, 40), 300
    images = erased(image, count, mode=mode)
    places = jax.vmap(lambda key: jax.random.split(key)[0])(keys(count))
    bits = jax.vmap(lambda key: jax.random.bits(key, (erase.WORDS,)))(places)
    drawn = rectangles(bits[:, 1:], 24, 40, SETTINGS["area"], SETTINGS["aspect"])
    for one, (top, left, h, w) in zip(images, drawn, strict=True):
        part = np.s_[top : top + h, left : left + w]
        changed = (one != image).any(axis=2)
        # Of the noise, a pixel in 16 million is what it was.
        assert changed[part].all()
        assert changed.sum() == h * w
        if mode == "constant":
            assert (one[part] == FILL).all()


@pytest.mark.parametrize(
    ("mean", "std"),
    [(MEAN, STD), ((0.1, 0.5, 0.95), (0.3, 0.05, 0.25))],  # much of it clipped
)
def test_noise_is_normal_with_the_mean_and_std_of_the_data(mean, std):
    whole = {"area": (0.9, 0.9), "aspect": (1.0, 1.0), "mode": "pixel"}
    black = np.zeros((32, 32, 3), np.uint8)
    side, pixels = round(math.sqrt(0.9) * 32), []
    for image in erased(black, 200, mean=mean, std=std, **whole):
        top, left = (np.flatnonzero(image.any((axis, 2)))[0] for axis in (1, 0))
        pixels.append(image[top : top + side, left : left + side].reshape(-1, 3))
    levels = np.arange(256)
    for n, found in enumerate(np.concatenate(pixels).T):
        cumulated = np.searchsorted(np.sort(found), levels, "right") / len(found)
        exact = stats.norm(255 * mean[n], 255 * std[n]).cdf(levels + 0.5)
        exact[-1] = 1
        # A step of the table is 1 / 256.
        assert np.abs(cumulated - exact).max() < 0.007


@pytest.mark.parametrize(
    ("area", "aspect"), [((0.5, 0.5), (50.0, 50.0)), ((1.0, 1.0), (1.0, 1.0))]
)
def test_where_nothing_fits_the_image_stays(area, aspect):
    image = noise(32, 32)
    assert (erased(image, 50, area=area, aspect=aspect) == image).all()
