"""MixUp and CutMix: how often, how much, which pixels, and what the labels weigh."""

import functools

import jax
import numpy as np
import pytest
from scipy import stats
from timm.data import mixup as timms

from deit_jax.data.augment import mix
from deit_jax.data.augment.fixed import QUANTILE_BITS, QUANTILES
from deit_jax.data.augment.mix import LAMBDA

SETTINGS = {"mixup": 0.8, "cutmix": 1.0, "probability": 1.0, "switch_probability": 0.5}
COUNT = 10_000
LEAST_P = 1e-4  # of tests of frequencies; the seeds do not change


@functools.cache
def keys():
    return jax.random.split(jax.random.key(0), COUNT)


def draws(size=32, **changes):
    """A `Mix` of arrays [COUNT, ...]."""
    draw = functools.partial(mix.draw, size=size, **(SETTINGS | changes))
    return mix.Mix(*map(np.asarray, jax.jit(jax.vmap(draw))(keys())))


@functools.cache
def bits():
    """uint32 [COUNT, 6], as `draw` takes them from a key."""
    return np.asarray(jax.vmap(lambda key: jax.random.bits(key, (6,)))(keys()))


def is_cut(drawn):
    return (drawn.box[:, 2:] > drawn.box[:, :2]).all(axis=1)


def lambdas(column, alpha):
    """Those of the draws, looked up in the table."""
    return mix.beta_table(alpha)[bits()[:, column] >> 32 - QUANTILE_BITS]


@jax.jit
def apply_all(image, partner, drawn):
    """[mixes, h, w, 3]"""
    return jax.lax.map(lambda one: mix.apply(image, partner, one), drawn)


def noise(size, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3))
    return pixels.astype(np.uint8)


@pytest.mark.parametrize("alpha", [0.8, 1.0, 0.2, 5.0])
def test_the_table_of_lambda_is_the_beta_distribution(alpha):
    table = mix.beta_table(alpha)
    assert table.shape == (QUANTILES,)
    steps = np.arange(LAMBDA + 1)
    cumulated = np.searchsorted(np.sort(table), steps, side="right") / QUANTILES
    exact = stats.beta(alpha, alpha).cdf(np.minimum((steps + 0.5) / LAMBDA, 1))
    assert np.abs(cumulated - exact).max() <= 0.5 / QUANTILES + 1e-9


def test_lambda_of_mixup_is_drawn_from_the_table():
    share = draws(cutmix=0.0).share
    counts = np.bincount(share, minlength=LAMBDA + 1)
    expected = np.bincount(mix.beta_table(0.8), minlength=LAMBDA + 1)
    assert stats.chisquare(counts, expected * COUNT / QUANTILES).pvalue > LEAST_P


@pytest.mark.parametrize("size", [32, 224, 225])
def test_boxes_are_timms(size, monkeypatch):
    box = draws(size, mixup=0.0).box
    lambda_ = lambdas(3, 1.0) / LAMBDA
    centres = (bits()[:, 4:] >> 16).astype(int) * size >> 16
    assert stats.kstest(lambda_, stats.uniform.cdf).pvalue > LEAST_P
    for column in centres.T:
        assert stats.chisquare(np.bincount(column, minlength=size)).pvalue > LEAST_P
    assert stats.pearsonr(*centres.T).pvalue > LEAST_P

    side = np.floor(size * np.sqrt(1 - lambda_)).astype(int)
    top_left = centres - side[:, None] // 2
    expected = np.concatenate([top_left, top_left + side[:, None] // 2 * 2], axis=1)
    np.testing.assert_array_equal(box, expected.clip(0, size))

    even = np.flatnonzero(side % 2 == 0)[:2000]
    assert len(even) == 2000
    for n in even:
        drawn = iter(centres[n])
        monkeypatch.setattr(np.random, "randint", lambda *_, size, it=drawn: next(it))
        y0, y1, x0, x1 = timms.rand_bbox((3, size, size), lambda_[n])
        assert box[n].tolist() == [y0, x0, y1, x1]


@pytest.mark.parametrize(
    ("probability", "switch_probability"),
    [(1.0, 0.0), (1.0, 0.5), (1.0, 1.0), (0.0, 0.5), (0.3, 0.5), (0.6, 0.3)],
)
def test_how_often_it_is_mixup_and_how_often_cutmix(probability, switch_probability):
    drawn = draws(64, probability=probability, switch_probability=switch_probability)
    cut, blended = is_cut(drawn), drawn.share < LAMBDA
    assert not (cut & blended).any()
    np.testing.assert_array_equal(drawn.weight < 1, cut | blended)
    # Sides of less than two pixels are no box, and a lambda of one is no MixUp.
    some_box = ((LAMBDA - mix.beta_table(1.0)) * 64**2 >= 4 * LAMBDA).mean()
    some_mixup = (mix.beta_table(0.8) < LAMBDA).mean()
    for happened, expected in (
        (cut, switch_probability * some_box),
        (blended, (1 - switch_probability) * some_mixup),
    ):
        test = stats.binomtest(int(happened.sum()), COUNT, probability * expected)
        assert test.pvalue > LEAST_P


def test_with_one_of_the_two_on_only_that_one_happens():
    only_mixup = draws(cutmix=0.0, switch_probability=0.9)
    assert not is_cut(only_mixup).any()
    assert (only_mixup.share < LAMBDA).mean() > 0.9
    only_cutmix = draws(mixup=0.0, switch_probability=0.1)
    assert is_cut(only_cutmix).mean() > 0.9
    assert (only_cutmix.share == LAMBDA).all()
    neither = draws(mixup=0.0, cutmix=0.0)
    assert (neither.weight == 1).all()
    assert (neither.share == LAMBDA).all()
    assert (neither.box == 0).all()


@pytest.mark.parametrize("size", [32, 225])
def test_the_weight_is_the_share_of_the_pixels(size):
    drawn = draws(size)
    top, left, bottom, right = drawn.box.T
    cut = 1 - (bottom - top) * (right - left) / size**2
    assert drawn.weight.dtype == np.float32
    expected = np.where(is_cut(drawn), cut, drawn.share / LAMBDA)
    np.testing.assert_allclose(drawn.weight, expected, rtol=2**-22, atol=0)

    # Of white in black, and of black in white: what is left is the partner's label's.
    some = mix.Mix(*(part[:300] for part in drawn))
    white, black = np.full((size, size, 3), 255, np.uint8), np.zeros((size, size, 3))
    black = black.astype(np.uint8)
    own = np.asarray(apply_all(white, black, some)).mean((1, 2, 3)) / 255
    partners = np.asarray(apply_all(black, white, some)).mean((1, 2, 3)) / 255
    np.testing.assert_allclose(own, some.weight, rtol=0, atol=0.5 / 255)
    np.testing.assert_allclose(partners, 1 - some.weight, rtol=0, atol=0.51 / 255)
    np.testing.assert_allclose(own + partners, 1, rtol=0, atol=1.01 / 255)


def test_partners_are_mixed_with_the_same_lambda_and_box():
    size = 32
    a, b = noise(size, 0), noise(size, 1)
    drawn = mix.Mix(*(part[:200] for part in draws(size)))
    mixed_a = np.asarray(apply_all(a, b, drawn))
    mixed_b = np.asarray(apply_all(b, a, drawn))
    cut = is_cut(drawn)
    assert 50 < cut.sum() < 150
    for n, (share, box) in enumerate(zip(drawn.share, drawn.box, strict=True)):
        if cut[n]:
            expected_a, expected_b = a.copy(), b.copy()
            part = np.s_[box[0] : box[2], box[1] : box[3]]
            expected_a[part], expected_b[part] = b[part], a[part]
        else:
            weight = share / LAMBDA
            expected_a, expected_b = (
                np.floor(weight * own + (1 - weight) * partner + 0.5)
                for own, partner in ((a, b), (b, a))
            )
        np.testing.assert_array_equal(mixed_a[n], expected_a)
        np.testing.assert_array_equal(mixed_b[n], expected_b)


def test_mixup_rounds_exactly():
    # Every level with every level.
    own, other = np.meshgrid(np.arange(256), np.arange(256))
    own, other = (np.repeat(x[..., None], 3, axis=2) for x in (own, other))
    shares = np.unique([*range(0, LAMBDA, 5), 1, 128, 255, LAMBDA]).astype(np.int32)
    drawn = mix.Mix(
        shares, np.zeros((len(shares), 4), np.int32), shares.astype(np.float32)
    )
    mixed = apply_all(own.astype(np.uint8), other.astype(np.uint8), drawn)
    for share, image in zip(shares.tolist(), np.asarray(mixed), strict=True):
        exact = (share * own + (LAMBDA - share) * other) / LAMBDA
        np.testing.assert_array_equal(image, np.floor(exact + 0.5))
