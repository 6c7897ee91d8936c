import optax
import pytest

from deit_jax.training import schedule

RATES = {"warmup_learning_rate": 0.2, "min_learning_rate": 0.1}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine", (0.2, 0.6, 1, 0.55, 0.1859, 0.1)),
        ("linear", (0.2, 0.6, 1, 0.55, 0.28, 0.1)),
        ("constant", (0.2, 0.6, 1, 1, 1, 1)),
        ("wsd", (0.2, 0.6, 1, 1, 1, 0.1)),
    ],
)
def test_what_follows_the_warm_up(name, expected):
    rate = schedule.create(
        name, 1.0, total_steps=110, warmup_steps=10, cooldown_steps=20, **RATES
    )
    got = [float(rate(step)) for step in (0, 5, 10, 60, 90, 110)]
    assert got == pytest.approx(expected, abs=1e-4)


def test_the_cooldown_of_wsd_is_linear():
    rate = schedule.create(
        "wsd", 1.0, total_steps=110, warmup_steps=10, cooldown_steps=20, **RATES
    )
    got = [float(rate(step)) for step in (89, 90, 95, 100, 105, 110)]
    assert got == pytest.approx([1, 1, 0.775, 0.55, 0.325, 0.1])


def test_the_cosine_has_the_bits_of_optaxs_own():
    """Runs of older versions had that one, and resume."""
    ours = schedule.create("cosine", 5e-4, total_steps=97, warmup_steps=13, **RATES)
    optaxs = optax.warmup_cosine_decay_schedule(0.2, 5e-4, 13, 97, 0.1)
    assert [ours(step) for step in range(98)] == [optaxs(step) for step in range(98)]


@pytest.mark.parametrize("name", schedule.NAMES)
def test_without_a_warm_up_the_first_step_has_the_peak(name):
    rate = schedule.create(
        name, 1.0, total_steps=10, warmup_steps=0, cooldown_steps=2, **RATES
    )
    assert rate(0) == 1
