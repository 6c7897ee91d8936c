"""Images that do not fit into memory: decoded, cropped and resized by workers.

The workers are processes, each with its own handles on the source. A request names its
images and brings the random draws of their crops, so that order and pixels do not
depend on the number of workers.

Worker processes import this module: it must not import JAX.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from deit_jax.data import sources
from deit_jax.data.crops import (
    CROP_RATIO,
    centre_view,
    crop_and_resize,
    random_resized_crop_box,
)
from deit_jax.errors import InputError

# Batches that are decoded while the one before them is used: they bound the memory.
BATCHES_AHEAD = 2
# Images a worker takes at once: few enough that closing does not wait long for them.
CHUNK = 16


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """What a worker has to know.

    Attributes:
      source: Has `pil_images(indices)` and `image_shape` (`deit_jax.data.sources`).
      size: Pixels a side.
      area, aspect: Of `crops.random_resized_crop_box`.
      crop_ratio: Of `crops.centre_view`.
    """

    source: object
    size: int
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    crop_ratio: float = CROP_RATIO

    def read(
        self, indices: np.ndarray, draws: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [n, size, size, 3] and labels int32 [n]; see `HostPipeline`."""
        images = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        labels = np.empty(len(indices), np.int32)
        for row, (image, label) in enumerate(self.source.pil_images(indices.tolist())):
            labels[row] = label
            if self.source.image_shape and image.size == (self.size, self.size):
                images[row] = image
            elif draws is None:
                images[row] = centre_view(image, self.size, self.crop_ratio)
            else:
                box = random_resized_crop_box(
                    draws[row], *image.size, area=self.area, aspect=self.aspect
                )
                images[row] = crop_and_resize(image, box, self.size)
        return images, labels


class HostPipeline:
    """Reads batches of a source ahead of their use; a context manager.

    Args:
      source: A source (`deit_jax.data.sources`). It is pickled to the workers.
      workers: Processes; with 0 the images are read in a thread of this one.
      size, crops: Fields of `ImageReader`.

    Attributes:
      workers: Processes that there are: 0 where the machine has no semaphores for them.
    """

    def __init__(self, source, *, size: int, workers: int, **crops):
        self.source = source
        reader = ImageReader(source, size, **crops)
        self._pool = _start_processes(workers, reader) if workers else None
        self.workers, self._read = workers, _read_in_worker
        if self._pool is None:
            self.workers, self._read = 0, reader.read
            self._pool = concurrent.futures.ThreadPoolExecutor(1, "reader")

    def __len__(self) -> int:
        return len(self.source)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def batches(
        self, requests: Iterable[tuple[np.ndarray, np.ndarray | None]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Reads one batch for each request, in their order.

        Args:
          requests: (index int [B], draws uint32 [B, CROP_WORDS] of random crops, or
            None for centre views). They are asked for only `BATCHES_AHEAD` ahead of
            the use. An image that has the size already, in a source where all have
            it, is taken as it is.

        Yields:
          Images uint8 [B, size, size, 3] and labels int32 [B].

        Raises:
          InputError: An image is damaged (it is named), or a worker has died.
        """
        ahead = collections.deque()
        try:
            for indices, draws in requests:
                ahead.append(self._submit(indices, draws))
                if len(ahead) > BATCHES_AHEAD:
                    yield _collect(ahead.popleft())
            while ahead:
                yield _collect(ahead.popleft())
        except BrokenProcessPool as error:
            raise InputError(
                f"a process that read images of {self.source.name} has died: lower "
                "--config.dataset.workers (0 reads in this process) or "
                "--config.batch_size if the memory ran out."
            ) from error
        finally:
            for chunks in ahead:
                for chunk in chunks:
                    chunk.cancel()

    def close(self) -> None:
        """Ends the workers, at once but for the images they have in hand."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, indices: np.ndarray, draws: np.ndarray | None) -> list:
        size = min(CHUNK, -(-len(indices) // max(self.workers, 1)))
        parts = [slice(n, n + size) for n in range(0, len(indices), size)]
        with _without_interrupts():  # submitting starts the workers
            return [
                self._pool.submit(
                    self._read, indices[part], None if draws is None else draws[part]
                )
                for part in parts
            ]


# Ctrl-C reaches all processes of a terminal, and SIGTERM from a scheduler all of a job.
_NOT_FOR_WORKERS = {signal.SIGINT, signal.SIGTERM}


class _Worker(multiprocessing.context.SpawnProcess):
    """A process that only SIGKILL ends: so its pool ends it where another has died."""

    def terminate(self) -> None:
        self.kill()


class _Workers(multiprocessing.context.SpawnContext):
    Process = _Worker


def _start_processes(
    workers: int, reader: ImageReader
) -> concurrent.futures.ProcessPoolExecutor | None:
    """A pool of workers; None where they cannot talk to this process."""
    try:
        # Not forked: a fork of a process in which JAX has threads can deadlock.
        return concurrent.futures.ProcessPoolExecutor(
            workers,
            mp_context=_Workers(),
            initializer=_start_worker,
            initargs=(reader,),
        )
    except (OSError, ImportError, NotImplementedError) as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
            raise
        _say_once(
            f"no worker processes ({getattr(error, 'strerror', None) or error}: they "
            "need a writable /dev/shm), as with dataset.workers=0"
        )
        return None


@functools.cache  # a run has a pipeline for each of its splits
def _say_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _without_interrupts():
    """Processes that start inside see none of these: the main process ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_WORKERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _collect(chunks: list) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*(chunk.result() for chunk in chunks), strict=True)
    return np.concatenate(images), np.concatenate(labels)


# What runs in a worker.

_reader: ImageReader | None = None


def _start_worker(reader: ImageReader) -> None:
    global _reader
    _reader = reader
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot say goodbye."""
    parent = multiprocessing.parent_process()
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _read_in_worker(indices, draws):
    return _reader.read(indices, draws)


# Of each of the two splits. ImageNet at 32 px (3.9 GB) fits, at 64 px it streams; a
# machine that trains on such sets has several times as much.
IN_MEMORY_BYTES = 4 * 2**30


def fit_in_memory(source, size: int, *, limit: int = IN_MEMORY_BYTES) -> bool:
    """Whether all images of `source` have `size` pixels a side, and `limit` bytes."""
    total_bytes = len(source) * size * size * 3
    return source.image_shape == (size, size, 3) and total_bytes <= limit


@contextlib.contextmanager
def open_images(
    source, *, size: int, **options
) -> Iterator[sources.ArraySource | HostPipeline]:
    """In memory where the images have the model's size and fit, otherwise streamed.

    Args:
      source: A source (`deit_jax.data.sources`).
      size: Pixels a side of the model's images.
      options: Of `HostPipeline`, for images that are streamed.
    """
    if fit_in_memory(source, size):
        yield sources.load_into_memory(source)
        return
    with HostPipeline(source, size=size, **options) as pipeline:
        yield pipeline
