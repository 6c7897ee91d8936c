"""Host batches: NumPy arrays with a leading device axis, as `jax.pmap` takes them.

A global batch lies on the devices of all processes in their order; of several processes
each reads the rows of its own devices only.
"""

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np

from deit_jax.data.pipeline import HostPipeline
from deit_jax.data.plan import BatchPlan
from deit_jax.data.rng import crop_draws
from deit_jax.errors import InputError


def check_batch_size(batch_size: int, *, devices: int, accumulation: int) -> None:
    """Refuses a global batch that does not split into whole pairs everywhere."""
    unit = 2 * devices * accumulation
    if batch_size < unit or batch_size % unit:
        nearest = max(round(batch_size / unit), 1) * unit
        raise InputError(
            f"batch_size={batch_size} is not a multiple of {unit} = 2 (pairs) x "
            f"{devices} (devices) x {accumulation} (optimizer.accumulation): take "
            f"{nearest}."
        )


def read(
    opened, requests: Iterable[tuple[np.ndarray, np.ndarray]], *, augment_seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images of the model's size, before any augmentation but the random crop.

    Args:
      opened: An `ArraySource`, or a `HostPipeline`, which crops at random.
      requests: (index int [B], view int [B]); of a pipeline they are asked for ahead.
      augment_seed: Of the crops.

    Yields:
      Images uint8 [B, H, W, 3] and labels int32 [B].
    """
    if isinstance(opened, HostPipeline):
        return opened.batches(
            (index, crop_draws(augment_seed, view, index)) for index, view in requests
        )
    return ((opened.images[index], opened.labels[index]) for index, _ in requests)


def train_batches(
    source,
    plan: BatchPlan,
    *,
    start: int,
    stop: int,
    devices: int,
    local: range | None = None,
    teacher=None,
    images: bool = True,
    augment: Callable | None = None,
) -> Iterator[dict]:
    """The batches of steps `start` .. `stop` - 1.

    Args:
      source: An `ArraySource`, or a `HostPipeline`, which crops at random.
      plan: Says which images make a step.
      devices: Of all processes; each has batch_size / devices images of a batch.
      local: Which of the devices are this process's; None: all.
      teacher: An open `TeacherCache`, or None.
      images: False where the devices have those of an `ArraySource` already.
      augment: (images, index, view) -> (images, `mix.Mix`), where the host does it
        (`StudentViews.augment`); None leaves it to the train step.

    Yields:
      image uint8 [d, b, H, W, 3] (with `images`), label, index and view int32 [d, b],
      with a cache teacher_logits [d, b, C] and maybe teacher_features [d, b, f] and, of
      images that are augmented, the fields of `mix.Mix` [d, b / 2, ...] of each pair;
      for the d devices in `local`.
    """
    local = range(devices) if local is None else local
    rows = _rows(local, plan.batch_size // devices)

    def planned(step: int) -> tuple[np.ndarray, np.ndarray]:
        index, view = plan.batch(step)
        return index[rows], view[rows]

    steps = range(start, stop)
    if images:
        stream = read(source, map(planned, steps), augment_seed=plan.augment_seed)
    else:
        stream = ((None, source.labels[planned(step)[0]]) for step in steps)
    for step, (pixels, labels) in zip(steps, stream, strict=True):
        index, view = planned(step)
        batch = {"label": labels, "index": index, "view": view}
        if images:
            batch["image"] = pixels
        if augment is not None:
            batch["image"], drawn = augment(pixels, index, view)
            batch |= drawn._asdict()
        if teacher is not None:
            answers = teacher.batch(view, index)._asdict().items()
            batch |= {f"teacher_{k}": v for k, v in answers if v is not None}
        yield split(batch, len(local))


def together(stream: Generator[dict], numbers: Iterable[int]) -> Iterator[dict]:
    """Batches of `stream` by the dispatch, for each k in `numbers`.

    [d, b, ...] for k = 1, else [d, k, b, ...].
    """
    with contextlib.closing(stream):
        for number in numbers:
            if number == 1:
                yield next(stream)
                continue
            several = list(itertools.islice(stream, number))
            yield {name: np.stack([b[name] for b in several], 1) for name in several[0]}


def eval_batches(
    source,
    *,
    batch_size: int,
    devices: int,
    local: range | None = None,
    index: np.ndarray | None = None,
) -> Iterator[tuple[dict, np.ndarray]]:
    """All images once, in order; what the last batch lacks is filled with padding.

    Args:
      source: An `ArraySource`, or a `HostPipeline`, which takes the centre.
      batch_size: Global, rounded up to a multiple of `devices`.
      devices, local: See `train_batches`.
      index: int [N], the images in place of all.

    Yields:
      ({"image": uint8 [d, b, H, W, 3]}, their labels, int32 [d * b]), for the d devices
      in `local`. The rows of all processes, batch after batch, are the images in the
      order of the source, and behind the last of them padding.
    """
    index = np.arange(len(source)) if index is None else index
    length = len(index)
    local = range(devices) if local is None else local
    size = -(-min(batch_size, length) // devices)
    rows = _rows(local, size)

    def block(first: int) -> np.ndarray:
        mine = index[first + rows.start : first + rows.stop]
        return mine if len(mine) else index[first : first + 1]

    blocks = map(block, range(0, length, size * devices))
    if isinstance(source, HostPipeline):
        stream = source.batches((mine, None) for mine in blocks)
    else:
        stream = ((source.images[mine], source.labels[mine]) for mine in blocks)
    for images, labels in stream:
        missing = size * len(local) - len(images)
        batch = {"image": pad(images, missing)}
        yield split(batch, len(local)), pad(labels, missing)


def _rows(local: range, per_device: int) -> slice:
    """The rows of a global batch that lie on the devices `local`."""
    return slice(local.start * per_device, local.stop * per_device)


def pad(rows: np.ndarray, missing: int) -> np.ndarray:
    """With so many copies of the first row at the end."""
    return np.concatenate([rows, rows[:1].repeat(missing, axis=0)])


def split(batch: dict, devices: int) -> dict:
    """[B, ...] to [devices, B / devices, ...] for every array."""
    return {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in batch.items()}


def prefetch(iterator: Iterator, size: int = 2) -> Iterator:
    """Runs `iterator` in a thread, `size` items ahead; its errors are raised here."""
    items: queue.Queue = queue.Queue(maxsize=size)
    stopped = threading.Event()

    def put(item, error=None, last=False) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return items.put((item, error, last), timeout=0.1)

    def work() -> None:
        try:
            for item in iterator:
                put(item)
                if stopped.is_set():
                    return
            put(None, last=True)
        except BaseException as error:  # handed over, not swallowed
            put(None, error)
        finally:
            if hasattr(iterator, "close"):  # a generator's own `finally` runs here
                iterator.close()

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            item, error, last = items.get()
            if error is not None:
                raise error
            if last:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
