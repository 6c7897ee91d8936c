"""Blocks of images of a source, read ahead in bounded memory."""

import collections
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

READ_AHEAD = 2  # blocks in memory beside the one in use
THREADS = min(8, os.cpu_count() or 1)  # image decoders release Python's lock


def read_blocks(
    source, blocks: Iterable[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields images uint8 [B, H, W, 3] and labels int64 [B] for each block, in order.

    Args:
      source: See `deit_jax.data.sources`.
      blocks: Positions in the source, int [B] each.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        ahead = collections.deque()
        for block in blocks:
            ahead.append([pool.submit(source.__getitem__, int(i)) for i in block])
            if len(ahead) > READ_AHEAD:
                yield _stack(ahead.popleft())
        while ahead:
            yield _stack(ahead.popleft())


def consecutive(start: int, stop: int, size: int) -> Iterator[np.ndarray]:
    """Cuts the positions `start .. stop - 1` into blocks of at most `size`."""
    for first in range(start, stop, size):
        yield np.arange(first, min(first + size, stop))


def _stack(futures) -> tuple[np.ndarray, np.ndarray]:
    examples = [future.result() for future in futures]
    images = np.stack([example["image"] for example in examples])
    return images, np.array([example["label"] for example in examples], np.int64)
