"""Host batches: NumPy arrays with a leading device axis, as `jax.pmap` takes them."""

import queue
import threading
from collections.abc import Iterable, Iterator

import numpy as np

from deit_jax.data.host_pipeline import HostPipeline
from deit_jax.data.views import BatchPlan, crop_draws
from deit_jax.errors import InputError


def check_batch_size(batch_size: int, *, devices: int, accumulation: int) -> None:
    """Refuses a global batch that does not split into whole pairs everywhere."""
    unit = 2 * devices * accumulation
    if batch_size < unit or batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        nearest = " or ".join(str(n) for n in sorted({below, above}) if n > 0)
        raise InputError(
            f"batch_size={batch_size} is not a multiple of {unit} = 2 (pairs) x "
            f"{devices} (devices) x {accumulation} (optimizer.accumulation). "
            f"Nearest: {nearest}."
        )


def read(
    pictures, requests: Iterable[tuple[np.ndarray, np.ndarray]], *, augment_seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images of the model's size, before any augmentation but the random crop.

    Args:
      pictures: An `ArraySource`, or a `HostPipeline`, which crops at random.
      requests: (index int [B], view int [B]); of a pipeline they are asked for ahead.
      augment_seed: Of the crops.

    Yields:
      Images uint8 [B, H, W, 3] and labels int32 [B].
    """
    if isinstance(pictures, HostPipeline):
        return pictures.batches(
            (index, crop_draws(augment_seed, view, index)) for index, view in requests
        )
    return ((pictures.images[index], pictures.labels[index]) for index, _ in requests)


def train_batches(
    source, plan: BatchPlan, *, start: int, stop: int, devices: int, teacher=None
) -> Iterator[dict]:
    """The batches of steps `start` .. `stop` - 1.

    Args:
      source: An `ArraySource`, or a `HostPipeline`, which crops at random.
      plan: Says which images make a step.
      devices: The batch is laid out as [devices, batch_size / devices, ...].
      teacher: An open `TeacherLogits`, or None.

    Yields:
      image uint8 [d, b, H, W, 3], label, index and view int32 [d, b] and, with a
      teacher, teacher_logits [d, b, C].
    """
    planned = map(plan.batch, range(start, stop))
    pictures = read(source, planned, augment_seed=plan.augment_seed)
    for step, (images, labels) in enumerate(pictures, start):
        index, view = plan.batch(step)
        batch = {"image": images, "label": labels, "index": index, "view": view}
        if teacher is not None:
            batch["teacher_logits"] = teacher.batch(view, index)
        yield split(batch, devices)


def eval_batches(
    source, *, batch_size: int, devices: int
) -> Iterator[tuple[dict, np.ndarray]]:
    """All images once, in order; the last batch is padded with its first image.

    Args:
      source: An `ArraySource`, or a `HostPipeline`, which takes the centre.
      batch_size: Global, rounded up to a multiple of `devices`.
      devices: The batch is laid out as [devices, batch_size / devices, ...].

    Yields:
      ({"image": uint8 [d, b, H, W, 3]}, the labels, int32 [n], of its n first rows:
      the others are padding).
    """
    length = len(source)
    batch_size = -(-min(batch_size, length) // devices) * devices
    blocks = (
        np.arange(first, min(first + batch_size, length))
        for first in range(0, length, batch_size)
    )
    if isinstance(source, HostPipeline):
        pictures = source.batches((rows, None) for rows in blocks)
    else:
        pictures = ((source.images[rows], source.labels[rows]) for rows in blocks)
    for images, labels in pictures:
        padding = images[:1].repeat(batch_size - len(images), axis=0)
        yield split({"image": np.concatenate([images, padding])}, devices), labels


def split(batch: dict, devices: int) -> dict:
    """[B, ...] to [devices, B / devices, ...] for every array."""
    return {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in batch.items()}


def prefetch(iterator: Iterator, size: int = 2) -> Iterator:
    """Runs `iterator` in a thread, `size` items ahead; its errors are raised here."""
    items: queue.Queue = queue.Queue(maxsize=size)
    stopped = threading.Event()
    end = object()

    def put(item) -> None:
        while not stopped.is_set():
            try:
                return items.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in iterator:
                put((item, None))
                if stopped.is_set():
                    return
            put((end, None))
        except BaseException as error:  # handed over, not swallowed
            put((end, error))
        finally:
            if hasattr(iterator, "close"):  # a generator's own `finally` runs here
                iterator.close()

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            item, error = items.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
