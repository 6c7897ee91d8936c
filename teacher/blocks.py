"""Blocks of images of a source, read ahead in bounded memory."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

READ_AHEAD = 2  # blocks in memory beside the one in use
THREADS = min(8, os.cpu_count() or 1)  # image decoders release Python's lock
CHUNK = 16  # pictures a thread takes at once: TFDS is slow to read a single one


def read_blocks(
    source,
    blocks: Iterable[np.ndarray],
    view: Callable[[Image.Image, int], np.ndarray],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields images uint8 [B, H, W, 3] and labels int64 [B] for each block, in order.

    Args:
      source: See `deit_jax.data.sources`.
      blocks: Positions in the source, int [B] each.
      view: (RGB picture, position) -> uint8 [S, S, 3], the part of a picture that is
        seen. It is not asked where `seen_whole`.
    """
    whole = seen_whole(source)

    def read(indices: list[int]) -> list[tuple[np.ndarray, int]]:
        return [
            (np.asarray(picture) if whole else view(picture, index), label)
            for index, (picture, label) in zip(
                indices, source.pictures(indices), strict=True
            )
        ]

    with ThreadPoolExecutor(THREADS) as pool:

        def submit(block: np.ndarray) -> list:
            chunk = min(CHUNK, -(-len(block) // THREADS))
            parts = (block[n : n + chunk] for n in range(0, len(block), chunk))
            return [pool.submit(read, part.tolist()) for part in parts]

        ahead = collections.deque()
        for block in blocks:
            ahead.append(submit(block))
            if len(ahead) > READ_AHEAD:
                yield _stack(ahead.popleft())
        while ahead:
            yield _stack(ahead.popleft())


def seen_whole(source) -> bool:
    """Whether the images are all squares of one size: nothing is cut off of them."""
    shape = source.image_shape
    return shape is not None and shape[0] == shape[1]


def consecutive(start: int, stop: int, size: int) -> Iterator[np.ndarray]:
    """Cuts the positions `start .. stop - 1` into blocks of at most `size`."""
    for first in range(start, stop, size):
        yield np.arange(first, min(first + size, stop))


def _stack(futures) -> tuple[np.ndarray, np.ndarray]:
    pairs = [pair for future in futures for pair in future.result()]
    images, labels = zip(*pairs, strict=True)
    return np.stack(images), np.array(labels, np.int64)
