import contextlib
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
    ("size", "devices", "accumulation", "nearest"),
    [
        (64, 4, 1, None),
        (64, 4, 8, None),
        (2, 1, 1, None),
        (61, 4, 1, 64),
        (64, 4, 16, 128),
        (3, 1, 1, 4),
        (0, 1, 1, 2),
    ],
)
def test_batch_is_whole_pairs_on_every_device(size, devices, accumulation, nearest):
    refused = pytest.raises(InputError, match=f"={size} is not a.*: take {nearest}")
    with refused if nearest else contextlib.nullcontext():
        batches.check_batch_size(size, devices=devices, accumulation=accumulation)


@pytest.fixture(params=["memory", "streamed"])
def kind(request, tmp_path):
    """A source of 20 images: of one size, or of many; and how it is opened."""
    if request.param == "memory":
        source = sources.load("digits", "train[:20]")
        return source, contextlib.nullcontext(source)
    for number in range(20):
        path = tmp_path / "train" / f"class-{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.RandomState(number).randint(0, 256, (20 + number, 30, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    source = sources.load(f"folder:{tmp_path}", "train")
    return source, HostPipeline(source, size=32, workers=0, crop_ratio=0.8)


def test_train_batches_are_the_images_of_the_plan(kind):
    source, opening = kind
    plan = BatchPlan(length=20, batch_size=8, seed=0, augment_seed=3)
    with opening as opened:
        read = list(batches.train_batches(opened, plan, start=1, stop=4, devices=2))
    assert len(read) == 3
    for done, batch in enumerate(read, start=1):
        index, view = plan.batch(done)
        assert batch["image"].shape == (2, 4, 32, 32, 3)
        for name, values in (
            ("label", source.labels[index]),
            ("index", index),
            ("view", view),
        ):
            np.testing.assert_array_equal(batch[name].ravel(), values)
        draws = rng.crop_draws(3, view, index)
        for row, image in enumerate(batch["image"].reshape(8, 32, 32, 3)):
            picture, _ = next(source.pil_images([index[row]]))
            box = crops.random_resized_crop_box(draws[row], *picture.size)
            if source.image_shape is None:
                picture = crops.crop_and_resize(picture, box, 32)
            np.testing.assert_array_equal(image, picture)


@pytest.mark.parametrize(
    ("batch_size", "devices"), [(8, 1), (6, 4), (20, 4), (99, 3), (999, 4)]
)
def test_eval_batches_are_every_image_once(kind, batch_size, devices):
    source, opening = kind
    seen, seen_labels = [], []
    with opening as opened:
        for batch, labels in batches.eval_batches(
            opened, batch_size=batch_size, devices=devices
        ):
            assert batch["image"].shape[0] == devices
            seen.append(batch["image"].reshape(-1, 32, 32, 3))
            seen_labels.append(labels)
            assert len(labels) == len(seen[-1])
    seen, seen_labels = np.concatenate(seen), np.concatenate(seen_labels)
    np.testing.assert_array_equal(seen_labels[:20], source.labels)
    expected = [image for image, _ in source.pil_images(range(20))]
    if source.image_shape is None:
        expected = [crops.centre_view(image, 32, 0.8) for image in expected]
    np.testing.assert_array_equal(seen[:20], np.stack(expected))
    assert (seen[20:] == seen[-len(labels)]).all(), "padding"


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


def test_closing_early_ends_the_thread_and_the_generators():
    before, closed = threading.active_count(), []

    def endless():
        try:
            while True:
                yield {"label": np.zeros((1, 2))}
        finally:
            closed.append(threading.current_thread().name)

    stream = batches.prefetch(batches.together(endless(), [1] * 99))
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before
    assert closed == ["prefetch"]
