"""Streaming with workers: order, pixels, bounds, and every way to stop."""

import errno
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from deit_jax.data import crops, rng, sources
from deit_jax.data import pipeline as pipeline_module
from deit_jax.data.pipeline import BATCHES_AHEAD, HostPipeline
from deit_jax.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[1]
SIZE = 16
COUNT = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of many sizes, formats and modes in three classes."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.RandomState(0)
    for number in range(COUNT):
        mode, ending = [("RGB", "jpg"), ("L", "png"), ("RGBA", "webp")][number % 3]
        width, height = random.randint(3, 60, 2)
        channels = {"RGB": (3,), "L": (), "RGBA": (4,)}[mode]
        pixels = random.randint(0, 256, (height, width, *channels)).astype(np.uint8)
        path = root / "train" / f"class-{number % 3}" / f"{number}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def source(folder):
    return sources.load(f"folder:{folder}", "train")


def requests(count=4, batch=7, seed=0):
    """Batches of random crops, and of centre views in between."""
    random = np.random.RandomState(seed)
    for number in range(count):
        index = random.randint(0, COUNT, batch).astype(np.int32)
        view = np.full(batch, number, np.int32)
        yield index, (rng.crop_draws(0, view, index) if number % 2 else None)


def expected(source, index, draws):
    image, _ = source.pil_image(index)
    if draws is None:
        return crops.centre_view(image, SIZE, crops.CROP_RATIO)
    box = crops.random_resized_crop_box(draws, *image.size)
    return crops.crop_and_resize(image, box, SIZE)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("chunk", [2, 16])
def test_images_and_order_do_not_depend_on_the_workers(
    source, workers, chunk, monkeypatch
):
    monkeypatch.setattr("deit_jax.data.pipeline.CHUNK", chunk)
    with HostPipeline(source, size=SIZE, workers=workers) as pipeline:
        read = list(pipeline.batches(requests()))
    assert len(read) == 4
    for (index, draws), (images, labels) in zip(requests(), read, strict=True):
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, source.labels[index])
        for row, i in enumerate(index):
            row_draws = None if draws is None else draws[row]
            np.testing.assert_array_equal(images[row], expected(source, i, row_draws))


def test_the_settings_of_the_crops_reach_them(source):
    whole = {"area": (1.0, 1.0), "aspect": (1.0, 1.0), "crop_ratio": 0.5}
    [(index, draws)] = [*requests(2)][1:]
    with HostPipeline(source, size=SIZE, workers=0, **whole) as pipeline:
        read = list(pipeline.batches([(index, draws), (index, None)]))
    for row, i in enumerate(index):
        image, _ = source.pil_image(i)
        box = crops.random_resized_crop_box(
            draws[row], *image.size, area=(1.0, 1.0), aspect=(1.0, 1.0)
        )
        random, centre = read[0][0][row], read[1][0][row]
        np.testing.assert_array_equal(random, crops.crop_and_resize(image, box, SIZE))
        np.testing.assert_array_equal(centre, crops.centre_view(image, SIZE, 0.5))


@pytest.mark.parametrize(
    ("size", "as_training"), [(32, False), (32, True), (48, False)]
)
def test_an_image_that_has_the_size_is_taken_as_it_is(size, as_training):
    """Others are cropped and resized, in memory too."""
    digits = sources.load("digits", "train[:40]")
    index = np.array([3, 5, 39])
    draws = rng.crop_draws(0, index, index) if as_training else None
    with HostPipeline(digits, size=size, workers=size // 48) as pipeline:
        [(images, labels)] = pipeline.batches([(index, draws)])
    expected = digits.images[index]
    if size == 48:
        pictures = map(Image.fromarray, expected)
        expected = [crops.centre_view(p, 48, crops.CROP_RATIO) for p in pictures]
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(labels, digits.labels[index])


def test_an_image_of_a_mixed_source_is_cropped_though_it_has_the_size(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        noise = np.random.RandomState(0).randint(0, 256, (SIZE, SIZE, 3))
        image = Image.fromarray(noise.astype(np.uint8))
        image.save(tmp_path / "train" / name / "1.png")
    mixed = sources.load(f"folder:{tmp_path}", "train")
    with HostPipeline(mixed, size=SIZE, workers=0) as pipeline:
        [(images, _)] = pipeline.batches([(np.array([0]), None)])
    np.testing.assert_array_equal(
        images[0], crops.centre_view(image, SIZE, crops.CROP_RATIO)
    )
    assert (images[0] != np.asarray(image)).any()


@pytest.mark.parametrize("workers", [0, 1])
def test_requests_are_taken_only_as_far_as_the_window(source, workers):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield np.arange(2), None

    with HostPipeline(source, size=SIZE, workers=workers) as pipeline:
        read = pipeline.batches(endless())
        for used in range(1, 6):
            next(read)
            assert len(taken) == used + BATCHES_AHEAD
        read.close()


def test_workers_load_neither_jax_nor_tensorflow(source):
    with HostPipeline(source, size=SIZE, workers=1) as pipeline:
        list(pipeline.batches(requests()))
        loaded = pipeline._pool.submit(eval, "[*__import__('sys').modules]").result()
    assert "deit_jax.data.pipeline" in loaded
    assert not {"jax", "jaxlib", "tensorflow", "flax", "torch"} & set(loaded)


# Damage and death


@pytest.fixture
def damaged(tmp_path):
    for number in range(24):
        path = tmp_path / "train" / f"class-{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (number, 0, 0)).save(path)
    opened = sources.load(f"folder:{tmp_path}", "train")
    path = Path(opened.where(17))
    path.write_bytes(path.read_bytes()[:50])
    return opened


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(damaged, workers):
    with HostPipeline(damaged, size=SIZE, workers=workers) as pipeline:
        read = pipeline.batches((np.arange(n, n + 4), None) for n in range(0, 24, 4))
        before = [next(read) for _ in range(4)]
        assert len(before) == 4
        with pytest.raises(InputError, match=r"17|\d+\.png cannot be decoded") as error:
            next(read)
    assert damaged.where(17) in str(error.value)
    _assert_no_process()


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSYS, errno.ENOSPC])
def test_without_semaphores_the_images_are_read_in_this_process(
    source, number, monkeypatch, capfd
):
    """As where /dev/shm is missing: the error is raised where the system raises it."""
    error = OSError(number, os.strerror(number))
    monkeypatch.setattr("_multiprocessing.SemLock", mock.Mock(side_effect=error))
    pipeline_module._say_once.cache_clear()
    for _ in range(2):  # the pipelines of two splits say it once
        with HostPipeline(source, size=SIZE, workers=2) as pipeline:
            images, _ = next(pipeline.batches([(np.arange(4), None)]))
        assert pipeline.workers == 0
    assert (images == [expected(source, n, None) for n in range(4)]).all()
    said = capfd.readouterr().err
    assert said.startswith(
        f"no worker processes ({error.strerror}: they need a writable /"
    )
    assert said.count("\n") == 1


def test_a_killed_worker_ends_in_a_message(source):
    with HostPipeline(source, size=SIZE, workers=2) as pipeline:
        read = pipeline.batches((np.arange(4), None) for _ in range(10**6))
        next(read)
        os.kill(_processes(pipeline)[0].pid, signal.SIGKILL)
        with pytest.raises(InputError, match=r"has died.*dataset\.workers"):
            for _ in read:
                pass
    _assert_no_process()


def test_only_the_parent_can_tell_a_worker_to_end(source):
    with HostPipeline(source, size=SIZE, workers=2) as pipeline:
        read = pipeline.batches((np.arange(4), None) for _ in range(10**6))
        next(read)
        workers = _processes(pipeline)
        # As a scheduler does to a job, perhaps while one of them still starts.
        pids = [str(worker.pid) for worker in workers]
        subprocess.run(["kill", "-TERM", *pids], check=True)
        for _ in range(20):
            next(read)
        assert all(worker.is_alive() for worker in workers)
        workers[0].terminate()
        # Not by `join`, which the pool's own thread may be in already.
        assert multiprocessing.connection.wait([workers[0].sentinel], 60)
        with pytest.raises(InputError, match="has died"):
            for _ in read:
                pass
    _assert_no_process()


def test_closing_early_ends_the_workers_and_a_waiting_thread(source):
    pipeline = HostPipeline(source, size=SIZE, workers=2)
    read = pipeline.batches((np.arange(30), None) for _ in range(10**6))
    next(read)
    failed = threading.Event()

    def use():
        with pytest.raises((CancelledError, RuntimeError)):
            for _ in read:
                pass
        failed.set()

    thread = threading.Thread(target=use)
    thread.start()
    pipeline.close()
    thread.join(timeout=60)
    assert failed.is_set()
    _assert_no_process()


def _processes(pipeline) -> list:
    return list(pipeline._pool._processes.values())


def _assert_no_process() -> None:
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


ENDLESS = """
    import os, signal, sys
    import numpy as np
    from deit_jax.data import sources
    from deit_jax.data.pipeline import HostPipeline

    if __name__ == "__main__":
        # A shell that starts the tests in the background lets them ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        source = sources.load(sys.argv[1], "train")
        with HostPipeline(source, size=16, workers=2) as pipeline:
            read = pipeline.batches((np.arange(30), None) for _ in range(10**9))
            next(read)
            processes = pipeline._pool._processes
            print(*processes, flush=True)
            for _ in read:
                pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_a_killed_parent(folder, tmp_path, number):
    script = tmp_path / "endless.py"
    script.write_text(textwrap.dedent(ENDLESS))
    process = subprocess.Popen(
        [sys.executable, str(script), f"folder:{folder}"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert workers
    # Ctrl-C reaches every process of the terminal.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    try:
        # The workers hold stderr open until they end.
        _, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode != 0
    assert not any(_alive(pid) for pid in workers)
    if number == signal.SIGINT:
        assert err.count("Traceback") == 1, "only the main process was interrupted"


def _alive(pid: int) -> bool:
    """Zombies, which wait for a parent that may not come, do not count."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
