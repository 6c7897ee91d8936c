import hashlib

import jax
import numpy as np
import pytest

from deit_jax.data import crops, plan, rng
from deit_jax.data.plan import BatchPlan
from deit_jax.errors import InputError


def batch_plan(**changes):
    settings = {"length": 101, "batch_size": 8, "seed": 1, "augment_seed": 2}
    return BatchPlan(**(settings | changes))


def epoch(a_plan, number):
    """(index, view) of all batches of an epoch, concatenated."""
    first = number * a_plan.steps_per_epoch
    batches = [a_plan.batch(first + i) for i in range(a_plan.steps_per_epoch)]
    return tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))


def test_with_an_odd_length_another_index_rests_in_each_view():
    resting = {
        (set(range(101)) - set(plan.pairs(0, view, 101).ravel())).pop()
        for view in range(20)
    }
    assert len(resting) > 10


def test_epoch_shows_every_image_once_but_for_the_last_part_of_a_batch():
    """In another order each epoch, and for each seed."""
    first = epoch(batch_plan(), 0)[0]
    assert (first != epoch(batch_plan(seed=9), 0)[0]).any()
    assert (first != epoch(batch_plan(), 1)[0]).any()
    for number in range(3):
        index, view = epoch(batch_plan(), number)
        assert len(index) == 96 == len(set(index))
        assert (view == number).all()


def test_partners_are_neighbours_in_the_batch():
    a_plan = batch_plan()
    matching = {tuple(pair) for pair in plan.pairs(2, 1, 101).tolist()}
    index, _ = a_plan.batch(a_plan.steps_per_epoch + 3)
    assert {tuple(pair) for pair in index.reshape(-1, 2).tolist()} <= matching


def test_pairs_do_not_depend_on_the_order_seed_nor_the_batch_size():
    def all_pairs(a_plan):
        index, _ = epoch(a_plan, 0)
        return {tuple(pair) for pair in index.reshape(-1, 2).tolist()}

    base = all_pairs(batch_plan(batch_size=4, length=100))
    assert base == all_pairs(batch_plan(batch_size=20, length=100, seed=9))
    assert base != all_pairs(batch_plan(batch_size=4, length=100, augment_seed=9))


def test_views_cycle_and_bring_their_pairs_back():
    a_plan = batch_plan(length=100, batch_size=4, num_views=3)
    assert [epoch(a_plan, e)[1][0] for e in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    first, again = epoch(a_plan, 0)[0], epoch(a_plan, 3)[0]
    assert (first != again).any(), "another order of the same pairs"
    as_set = [{tuple(p) for p in x.reshape(-1, 2).tolist()} for x in (first, again)]
    assert as_set[0] == as_set[1]


@pytest.mark.parametrize(
    ("off", "num_views", "repeats", "expected"),
    [
        (4, 0, 1, [0, 1, 2, 3, 4, 5, 6]),
        # Two cached views are mixed and three are not, or four and two in pairs.
        (4, 5, 1, [0, 1, 0, 1, 2, 3, 4]),
        (4, 6, 2, [0, 0, 0, 0, 2, 2, 4]),
    ],
    ids=["fresh", "cached", "repeated"],
)
def test_the_last_epochs_have_views_of_their_own(off, num_views, repeats, expected):
    """So that a view says whether its images are mixed."""
    run = {"repeats": repeats, "num_views": num_views}
    view = plan.mix_off_view(off, epochs=6.5, **run)
    a_plan = batch_plan(length=96, mix_off_epoch=off, mix_off_view=view, **run)
    views = [set(epoch(a_plan, number)[1].tolist()) for number in range(7)]
    assert [min(shown) for shown in views] == expected
    assert [min(v) >= view for v in views] == [number >= off for number in range(7)]
    assert [max(v) >= view for v in views] == [number >= off for number in range(7)]


@pytest.mark.parametrize(
    ("off", "run", "message"),
    [
        (7, {}, "no epoch of this run, whose 6.5 epochs begin at 0"),
        (3, {"repeats": 2}, "multiple of augment.repeats=2"),
        (4, {"num_views": 3}, "leaves 3 epochs .*num_views=3 leaves none"),
    ],
)
def test_an_end_of_mixing_that_no_view_can_say_is_refused(off, run, message):
    with pytest.raises(InputError, match=message):
        plan.mix_off_view(off, **({"epochs": 6.5, "repeats": 1, "num_views": 0} | run))


def test_repeats_use_every_cache_row_once_a_block():
    a_plan = batch_plan(length=96, batch_size=8, num_views=6, repeats=3)
    assert a_plan.steps_per_epoch == 12
    for block in range(3):
        rows = []
        for part in range(3):
            index, view = epoch(a_plan, 3 * block + part)
            assert sorted(set(view)) == [3 * (block % 2) + r for r in range(3)]
            rows += zip(view.tolist(), index.tolist(), strict=True)
        assert len(rows) == len(set(rows)) == 3 * 96


def test_golden_order():
    """The same on every JAX version: caches and resumed runs depend on it."""
    a_plan = batch_plan(length=1001, batch_size=50, num_views=4, repeats=2)
    data = b"".join(
        part.astype("<i4").tobytes()
        for step in range(60)
        for part in a_plan.batch(step)
    )
    assert hashlib.sha256(data).hexdigest()[:16] == "d4412e0206fc10f5"


def test_crop_draws_follow_from_seed_view_and_index_alone():
    view, index = np.array([0, 0, 1, 5], np.int32), np.array([3, 4, 3, 9], np.int32)
    draws = rng.crop_draws(7, view, index)
    assert draws.dtype == np.uint32
    assert draws.shape == (4, crops.CROP_WORDS)
    assert len(np.unique(draws)) == draws.size
    for row in range(4):
        alone = rng.crop_draws(7, view[row : row + 1], index[row : row + 1])
        np.testing.assert_array_equal(alone[0], draws[row])
    np.testing.assert_array_equal(
        rng.crop_draws(7, view[::-1], index[::-1])[::-1], draws
    )
    assert (rng.crop_draws(8, view, index) != draws).all()


def test_golden_crop_draws():
    """The same on every JAX version: a teacher's cache depends on it."""
    index = np.arange(100, dtype=np.int32)
    draws = rng.crop_draws(2, index % 7, index)
    assert (
        hashlib.sha256(draws.astype("<u4").tobytes()).hexdigest()[:16]
        == "7ae2bd61ca729000"
    )


def test_streams_have_their_own_constants():
    """A changed or shared number would change every run, or correlate two uses."""
    numbers = [stream.value for stream in rng.Stream]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 102}, "larger than an epoch"),
        ({"repeats": 2, "num_views": 3}, "repeats=2"),
    ],
)
def test_impossible_plans(changes, message):
    with pytest.raises(InputError, match=message):
        batch_plan(**changes)


# The pairs that a teacher sees --------------------------------------------------------


@pytest.mark.parametrize(("length", "repeats"), [(4, 1), (100, 1), (101, 1), (101, 2)])
def test_partners_of_a_view_are_those_of_the_batches(length, repeats):
    a_plan = batch_plan(length=length, batch_size=4, num_views=4, repeats=repeats)
    seen = {view: set() for view in range(4)}
    for step in range(4 * a_plan.steps_per_epoch):
        index, view = (x.reshape(-1, 2) for x in a_plan.batch(step))
        for pair, views in zip(index.tolist(), view.tolist(), strict=True):
            assert views[0] == views[1]
            seen[views[0]].add(tuple(pair))
    for view in range(4):
        exported = plan.view_pairs(2, view, length, repeats)
        assert seen[view] <= {tuple(pair) for pair in exported.tolist()}
        assert np.unique(exported).tolist() == list(range(length))
        assert (exported[:, 0] == exported[:, 1]).sum() == length % 2


def test_a_jax_without_a_cpu_is_refused(monkeypatch):
    def unknown(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", unknown)
    with pytest.raises(
        InputError, match=r"leaves out the CPU.*set JAX_PLATFORMS=.*,cpu"
    ):
        plan.pairs(0, 0, 8)
