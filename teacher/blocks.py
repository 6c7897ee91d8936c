"""Blocks of images of a source, read ahead in bounded memory."""

import collections
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

READ_AHEAD = 2  # blocks in memory beside the one in use
THREADS = min(8, os.cpu_count() or 1)  # image decoders release Python's lock


def read_blocks(
    source, blocks: Iterable[np.ndarray], image_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields images uint8 [B, H, W, 3] and labels int64 [B] for each block, in order.

    Args:
      source: See `deit_jax.data.sources`.
      blocks: Positions in the source, int [B] each.
      image_size: What pictures are brought to that are not all square and of one
        size (`centre_square`); others keep theirs.
    """
    shape = source.image_shape
    uniform = shape is not None and shape[0] == shape[1]

    def read(index: int) -> tuple[np.ndarray, int]:
        example = source[index]
        image = example["image"]
        return image if uniform else centre_square(image, image_size), example["label"]

    with ThreadPoolExecutor(THREADS) as pool:
        ahead = collections.deque()
        for block in blocks:
            ahead.append([pool.submit(read, int(i)) for i in block])
            if len(ahead) > READ_AHEAD:
                yield _stack(ahead.popleft())
        while ahead:
            yield _stack(ahead.popleft())


def consecutive(start: int, stop: int, size: int) -> Iterator[np.ndarray]:
    """Cuts the positions `start .. stop - 1` into blocks of at most `size`."""
    for first in range(start, stop, size):
        yield np.arange(first, min(first + size, stop))


def centre_square(image: np.ndarray, size: int) -> np.ndarray:
    """The middle square of uint8 [H, W, 3], resized to `size` (Pillow, bilinear)."""
    height, width, _ = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(middle.resize((size, size), Image.Resampling.BILINEAR))


def _stack(futures) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*(future.result() for future in futures), strict=True)
    return np.stack(images), np.array(labels, np.int64)
