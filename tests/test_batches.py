import threading

import numpy as np
import pytest

from deit_jax.data import batches, sources, views
from deit_jax.errors import InputError


@pytest.mark.parametrize(
    ("size", "devices", "accumulation", "works"),
    [
        (64, 4, 1, True),
        (64, 4, 8, True),
        (2, 1, 1, True),
        (60, 4, 1, False),
        (64, 4, 16, False),
        (3, 1, 1, False),
        (0, 1, 1, False),
    ],
)
def test_batch_is_whole_pairs_on_every_device(size, devices, accumulation, works):
    if works:
        batches.check_batch_size(size, devices=devices, accumulation=accumulation)
        return
    with pytest.raises(InputError, match=f"batch_size={size} is not a multiple"):
        batches.check_batch_size(size, devices=devices, accumulation=accumulation)


def test_the_nearest_batch_sizes_are_named():
    with pytest.raises(InputError, match="Nearest: 56 or 64"):
        batches.check_batch_size(60, devices=4, accumulation=1)


def test_train_batches_hold_the_images_of_the_plan():
    source = sources.load("digits", "train[:50]")
    plan = views.BatchPlan(length=50, batch_size=8, seed=0, augment_seed=0)
    for done, batch in enumerate(
        batches.train_batches(source, plan, start=3, stop=9, devices=2), start=3
    ):
        index, _ = plan.batch(done)
        assert batch["image"].shape == (2, 4, 32, 32, 3)
        np.testing.assert_array_equal(
            batch["image"].reshape(8, 32, 32, 3), source.images[index]
        )
        np.testing.assert_array_equal(batch["label"].ravel(), source.labels[index])
    assert done == 8


@pytest.mark.parametrize(
    ("batch_size", "devices"), [(16, 1), (16, 4), (50, 4), (999, 4)]
)
def test_eval_batches_count_every_image_once(batch_size, devices):
    source = sources.load("digits", "test[:50]")
    seen = []
    for batch, real in batches.eval_batches(
        source, batch_size=batch_size, devices=devices
    ):
        assert batch["image"].shape[0] == devices
        seen.append(batch["image"].reshape(-1, 32, 32, 3)[:real])
    np.testing.assert_array_equal(np.concatenate(seen), source.images)


def test_prefetch_keeps_the_order():
    assert list(batches.prefetch(iter(range(100)))) == list(range(100))


def test_prefetch_hands_over_errors():
    def broken():
        yield 1
        raise InputError("broken image")

    stream = batches.prefetch(broken())
    assert next(stream) == 1
    with pytest.raises(InputError, match="broken image"):
        next(stream)


def test_prefetch_stops_its_thread_when_closed_early():
    before = threading.active_count()
    stream = batches.prefetch(iter(range(10**9)))
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before
