import threading

import numpy as np
import pytest
from PIL import Image

from deit_jax.data import batches, crops, rng, sources
from deit_jax.data.augment.mix import Mix
from deit_jax.data.pipeline import HostPipeline
from deit_jax.data.plan import BatchPlan
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
    plan = BatchPlan(length=50, batch_size=8, seed=0, augment_seed=0)
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
    seen, seen_labels = [], []
    for batch, labels in batches.eval_batches(
        source, batch_size=batch_size, devices=devices
    ):
        assert batch["image"].shape[0] == devices
        seen.append(batch["image"].reshape(-1, 32, 32, 3))
        seen_labels.append(labels)
        assert len(labels) == len(seen[-1])
    seen, seen_labels = np.concatenate(seen), np.concatenate(seen_labels)
    np.testing.assert_array_equal(seen_labels[:50], source.labels)
    np.testing.assert_array_equal(seen[:50], source.images)
    assert (seen[50:] == seen[-len(labels)]).all(), "padding"


@pytest.mark.parametrize("batch_size", [8, 16, 50])
def test_two_processes_read_the_rows_of_their_devices(batch_size):
    source = sources.load("digits", "test[:50]")
    plan = BatchPlan(length=50, batch_size=8, seed=0, augment_seed=0)

    def augment(images, index, view):  # each pair by itself, as the real one
        mixes = Mix(index[::2], index.reshape(-1, 2), view[::2] / 7)
        return images + index[:, None, None, None], mixes

    def read(local):
        trained = batches.train_batches(
            source, plan, start=2, stop=5, devices=4, local=local, augment=augment
        )
        evaluated = batches.eval_batches(
            source, batch_size=batch_size, devices=4, local=local
        )
        return list(trained), list(evaluated)

    (train, evaluation), first, second = map(read, [None, range(2), range(2, 4)])
    for whole, *parts in zip(train, first[0], second[0], strict=True):
        assert whole["weight"].shape == (4, 1)
        for name, values in whole.items():
            joined = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(joined, values)
    left = 50
    for whole, *parts in zip(evaluation, first[1], second[1], strict=True):
        images = np.concatenate([batch["image"] for batch, _ in parts])
        labels = np.concatenate([labels for _, labels in parts])
        assert images.shape == whole[0]["image"].shape
        real = min(left, len(labels))
        left -= real
        np.testing.assert_array_equal(labels[:real], whole[1][:real])
        np.testing.assert_array_equal(
            images.reshape(-1, 32, 32, 3)[:real],
            whole[0]["image"].reshape(-1, 32, 32, 3)[:real],
        )
    assert left == 0


@pytest.fixture
def mixed(tmp_path):
    """A source of 20 images that differ in size."""
    for number in range(20):
        path = tmp_path / "train" / f"class-{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.RandomState(number).randint(0, 256, (20 + number, 30, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return sources.load(f"folder:{tmp_path}", "train")


def test_streamed_train_batches_are_random_crops_of_the_plan(mixed):
    plan = BatchPlan(length=20, batch_size=8, seed=0, augment_seed=3)
    with HostPipeline(mixed, size=16, workers=0) as pipeline:
        read = list(
            batches.train_batches(
                pipeline, plan, start=1, stop=4, devices=2, teacher=None
            )
        )
    assert len(read) == 3
    for done, batch in enumerate(read, start=1):
        index, view = plan.batch(done)
        assert batch["image"].shape == (2, 4, 16, 16, 3)
        np.testing.assert_array_equal(batch["label"].ravel(), mixed.labels[index])
        np.testing.assert_array_equal(batch["index"].ravel(), index)
        np.testing.assert_array_equal(batch["view"].ravel(), view)
        draws = rng.crop_draws(3, view, index)
        for row, image in enumerate(batch["image"].reshape(8, 16, 16, 3)):
            picture, _ = mixed.pil_image(index[row])
            box = crops.random_resized_crop_box(draws[row], *picture.size)
            expected = crops.crop_and_resize(picture, box, 16)
            np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(("batch_size", "devices"), [(8, 1), (6, 4), (99, 3)])
def test_streamed_eval_batches_are_all_centre_views(mixed, batch_size, devices):
    seen, seen_labels = [], []
    with HostPipeline(mixed, size=16, workers=0, crop_ratio=0.8) as pipeline:
        for batch, labels in batches.eval_batches(
            pipeline, batch_size=batch_size, devices=devices
        ):
            seen.append(batch["image"].reshape(-1, 16, 16, 3))
            seen_labels.append(labels)
    np.testing.assert_array_equal(np.concatenate(seen_labels)[:20], mixed.labels)
    expected = [crops.centre_view(mixed.pil_image(i)[0], 16, 0.8) for i in range(20)]
    np.testing.assert_array_equal(np.concatenate(seen)[:20], np.stack(expected))


def test_batches_of_a_dispatch_lie_behind_the_devices():
    source = sources.load("digits", "train[:50]")
    plan = BatchPlan(length=50, batch_size=8, seed=0, augment_seed=0)
    settings = {"start": 0, "stop": 5, "devices": 2}
    single = list(batches.train_batches(source, plan, **settings))
    stream = batches.train_batches(source, plan, images=False, **settings)
    first, second, third = batches.together(stream, [3, 1, 1])
    assert first["label"].shape == (2, 3, 4)
    for number in range(3):
        for name in ("index", "view", "label"):
            np.testing.assert_array_equal(first[name][:, number], single[number][name])
    for several, one in zip((second, third), single[3:], strict=True):
        assert several.keys() == {"index", "view", "label"}
        np.testing.assert_array_equal(several["index"], one["index"])


def test_what_is_grouped_is_closed():
    closed = []

    def endless():
        try:
            while True:
                yield {"label": np.zeros((1, 2))}
        finally:
            closed.append(True)

    stream = batches.together(endless(), [1, 2])
    next(stream)
    stream.close()
    assert closed


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


def test_prefetch_closes_the_generator_that_it_reads():
    closed = []

    def endless():
        try:
            while True:
                yield 1
        finally:
            closed.append(threading.current_thread().name)

    stream = batches.prefetch(endless())
    next(stream)
    stream.close()
    assert closed == ["prefetch"]
