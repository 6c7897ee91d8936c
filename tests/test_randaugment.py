"""RandAugment: timm's operations, arguments and frequencies."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import stats
from timm.data import auto_augment

from deit_jax.data.augment import randaugment
from deit_jax.data.augment.fixed import QUANTILE_BITS, QUANTILES
from deit_jax.data.augment.randaugment import BLENDS, OPERATIONS, WARPS, Policy, parse
from deit_jax.errors import InputError

DEIT = parse("rand-m9-mstd0.5-inc1")
# Magnitudes of 0 to 10, all from one table.
WIDE = Policy(layers=2, magnitude=5.0, magnitude_std=4.0)
FILL = (124, 116, 104)
QUANTILES_TRIED = [0, 130, 250, 333, 512, 600, 747, 871, 900, 1023]


def pictures(height=24, width=32):
    """uint8 [4, height, width, 3]: smooth, noise, few levels, and low contrast."""
    random = np.random.default_rng(0)
    size = (height, width, 3)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + y / 14), np.cos(x / 23 - y / 6), np.sin(x * y / 400)]
    return np.stack(
        [
            127.5 + 127.5 * np.stack(waves, axis=-1),
            random.integers(0, 256, size),
            255 * random.integers(0, 2, size),
            random.normal([60, 120, 200], 8, size).clip(0, 255),
        ]
    ).astype(np.uint8)


def bits_of(quantile):
    """Random bits that choose an entry of a table."""
    return np.uint32(quantile << 32 - QUANTILE_BITS)


@functools.partial(jax.jit, static_argnames=("policy", "interpolation"))
def apply_all(images, operation, bits, sign, *, policy, interpolation):
    """Each (operation, bits, sign) on each image: uint8 [n, images, h, w, 3]."""
    apply = functools.partial(
        randaugment.apply, policy=policy, fill=FILL, interpolation=interpolation
    )

    def of_one(draw):
        return jax.lax.map(lambda image: apply(image, *draw), images)

    return jax.lax.map(of_one, (operation, bits, sign))


def timms(name, magnitude, sign, image, interpolation):
    hparams = {"img_mean": FILL, "interpolation": interpolation}
    operation = auto_augment.AugmentOp(name, 1.0, magnitude, hparams)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto_augment, "_randomly_negate", lambda value: sign * value)
        if name == "PosterizeIncreasing" and magnitude == 10:  # Pillow 13 refuses it
            return np.zeros_like(image)
        return np.asarray(operation(Image.fromarray(image)))


def test_the_operations_are_timms():
    assert set(OPERATIONS) == set(auto_augment._RAND_INCREASING_TRANSFORMS)
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 15


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_each_operation_at_each_magnitude_is_timms(interpolation):
    images = pictures()
    method = Image.Resampling[interpolation.upper()]
    magnitudes = randaugment.magnitudes(WIDE)[QUANTILES_TRIED]
    assert magnitudes[0] == 0
    assert magnitudes[-1] == 10
    tried = [
        (n, q, sign)
        for n in range(15 if interpolation == "bicubic" else len(WARPS))
        for q in range(len(magnitudes))
        for sign in (1, -1)
    ]
    operation, quantile, sign = np.array(tried, np.int32).T
    bits = np.array([bits_of(q) for q in QUANTILES_TRIED])[quantile]
    changed = apply_all(
        images, operation, bits, sign, policy=WIDE, interpolation=interpolation
    )
    inexact = {*WARPS, *BLENDS, "AutoContrast"}
    inexact |= {"ContrastIncreasing", "BrightnessIncreasing"}
    for (n, q, sign), ours in zip(tried, np.asarray(changed), strict=True):
        name = OPERATIONS[n]
        expected = [timms(name, magnitudes[q], sign, x, method) for x in images]
        difference = np.abs(ours.astype(int) - np.stack(expected))
        what = f"{name}, magnitude {magnitudes[q]:.2f}, sign {sign}"
        assert difference.max() <= (name in inexact), what


def test_factors_of_blends_are_rounded_to_a_multiple_and_equal_then():
    images, policy = pictures(), Policy(2, 5.0, 0.0)
    names = ["ContrastIncreasing", "BrightnessIncreasing", *BLENDS]
    draws = [(OPERATIONS.index(name), sign) for name in names for sign in (1, -1)]
    operation, sign = np.array(draws, np.int32).T
    bits = np.zeros(len(draws), np.uint32)
    changed = apply_all(
        images, operation, bits, sign, policy=policy, interpolation="bicubic"
    )
    for (n, sign), ours in zip(draws, changed, strict=True):
        factor = 1 + sign * round(0.45 * 1024) / 1024
        change = auto_augment.NAME_TO_OP[OPERATIONS[n]]
        expected = [np.asarray(change(Image.fromarray(x), factor)) for x in images]
        np.testing.assert_array_equal(ours, np.stack(expected), OPERATIONS[n])


def test_the_least_factor_is_timms():
    [least] = set(randaugment.arguments(Policy(2, 10.0, 0.0))["enhance"].tolist())
    assert 1024 - least == round(0.1 * 1024)


def test_magnitudes_are_a_clipped_normal_distribution():
    magnitudes = randaugment.magnitudes(DEIT)
    points = (np.arange(QUANTILES) + 0.5) / QUANTILES
    expected = stats.norm(9, 0.5).ppf(points).clip(0, 10)
    np.testing.assert_allclose(magnitudes, expected, rtol=1e-12)
    assert magnitudes.max() == 10
    assert magnitudes.min() > 7
    many = np.random.default_rng(0).normal(9, 0.5, 1_000_000).clip(0, 10)
    assert magnitudes.mean() == pytest.approx(many.mean(), abs=2e-3)
    assert magnitudes.std() == pytest.approx(many.std(), abs=2e-3)
    assert set(randaugment.magnitudes(Policy(2, 7.0, 0.0))) == {7.0}


@functools.cache
def draws(count=20_000):
    """(operation, magnitude's bits, sign), each [count, 2], as `randaugment` draws."""
    keys = jax.random.split(jax.random.key(1), count)
    bits = jax.jit(jax.vmap(lambda key: jax.random.bits(key, (2, 4))))(keys)
    drawn = jax.jit(jax.vmap(jax.vmap(randaugment.draw)))(bits)
    return tuple(np.asarray(part) for part in drawn)


LEAST_P = 1e-4  # of the tests below, with seeds that do not change


def test_operations_are_equally_frequent_and_applied_half_of_the_time():
    operation, _, _ = draws()
    counts = np.bincount(operation.ravel() + 1, minlength=16)
    expected = np.array([0.5] + [0.5 / 15] * 15) * operation.size
    assert stats.chisquare(counts, expected).pvalue > LEAST_P


def test_signs_and_magnitudes_are_equally_frequent():
    _, bits, sign = draws()
    assert set(np.unique(sign)) == {-1, 1}
    assert stats.binomtest(int((sign > 0).sum()), sign.size).pvalue > LEAST_P
    counts = np.bincount(bits.ravel() >> 32 - QUANTILE_BITS, minlength=QUANTILES)
    assert stats.chisquare(counts).pvalue > LEAST_P


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 2])
def test_layers_are_applied_one_after_the_other(layers):
    policy = Policy(layers, 9.0, 0.5)
    settings = {"policy": policy, "fill": FILL, "interpolation": "bilinear"}
    images = np.tile(pictures(16, 16), (6, 1, 1, 1))
    keys = jax.random.split(jax.random.key(0), len(images))

    @jax.jit
    def whole(operands):
        return jax.lax.map(lambda x: randaugment.randaugment(*x, **settings), operands)

    @jax.jit
    def layer(operands):
        def one(operand):
            image, bits = operand
            return randaugment.apply(image, *randaugment.draw(bits), **settings)

        return jax.lax.map(one, operands)

    bits = jax.vmap(lambda key: jax.random.bits(key, (layers, 4)))(keys)
    expected = images
    for n in range(layers):
        expected = layer((expected, bits[:, n]))
    np.testing.assert_array_equal(whole((keys, images)), expected)
    if layers == 1:  # all branches computed and one taken, as on accelerators
        at_once = jax.jit(jax.vmap(lambda *x: randaugment.randaugment(*x, **settings)))
        np.testing.assert_array_equal(at_once(keys, images), expected)
    assert (np.asarray(expected) != images).any(axis=(1, 2, 3)).sum() > len(images) / 4


def test_no_operation_changes_nothing():
    images = pictures()
    none, bits, sign = np.int32([-1]), np.uint32([0]), np.int32([1])
    kept = apply_all(images, none, bits, sign, policy=DEIT, interpolation="bicubic")
    np.testing.assert_array_equal(kept[0], images)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("rand-m9-mstd0.5-inc1", Policy(2, 9.0, 0.5)),
        ("rand-m7-n3-mstd0.5-inc1", Policy(3, 7.0, 0.5)),
        ("rand-m7-mstd1-n1-inc1", Policy(1, 7.0, 1.0)),
        ("rand-m10-inc1", Policy(2, 10.0, 0.0)),
        ("rand-m0-mstd100-inc1", Policy(2, 0.0, 100.0)),
    ],
)
def test_policies_that_timm_reads_the_same(text, policy):
    assert parse(text) == policy
    theirs = auto_augment.rand_augment_transform(text, {"img_mean": FILL})
    assert theirs.num_layers == policy.layers
    for operation in theirs.ops:
        assert operation.magnitude == policy.magnitude
        assert operation.magnitude_std == policy.magnitude_std
        assert operation.magnitude_max is None
        assert operation.prob == randaugment.PROBABILITY


@pytest.mark.parametrize(
    "text",
    [
        "rand",
        "rand-m9-mstd0.5",  # not increasing
        "rand-m9-mstd0.5-inc0",
        "rand-m11-inc1",
        "rand-m9-n0-inc1",
        "rand-m9-n2-mstd0.5-n3-inc1",
        "rand-m9-mstd101-inc1",  # uniform, in timm
        "rand-m9-mstd0.5-inc1-tweights",
        "rand-m-1-inc1",
        "original-mstd0.5",
        " rand-m9-mstd0.5-inc1",
    ],
)
def test_policies_that_are_refused(text):
    with pytest.raises(InputError) as raised:
        parse(text)
    message = str(raised.value)
    assert f"augment.randaugment={text!r}" in message
    assert "such as rand-m9-mstd0.5-inc1" in message
