"""Blocks of images of a source, read ahead in bounded memory."""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from deit_jax.data.batches import prefetch
from deit_jax.data.crops import (
    CROP_WORDS,
    centre_view,
    crop_and_resize,
    random_resized_crop_box,
)

READ_AHEAD = 2  # blocks in memory beside the one in use
THREADS = min(8, os.cpu_count() or 1)  # image decoders release Python's lock
CHUNK = 16  # images a thread takes at once: TFDS is slow to read a single one


def read_blocks(
    source, blocks: Iterable[np.ndarray], view: Callable[[Image.Image, int], np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields images uint8 [B, H, W, 3] and labels int64 [B] for each block, in order.

    Args:
      source: See `deit_jax.data.sources`.
      blocks: Positions in the source, int [B] each.
      view: (RGB image, position) -> uint8 [S, S, 3], the part of an image that is
        seen. It is not asked where `seen_whole`.
    """
    # One more block is in the making.
    return prefetch(_read(source, blocks, view), size=READ_AHEAD - 1)


def _read(source, blocks, view) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    whole = seen_whole(source)

    def read(indices: np.ndarray) -> list[tuple[np.ndarray, int]]:
        indices = indices.tolist()
        return [
            (np.asarray(image) if whole else view(image, index), label)
            for index, (image, label) in zip(
                indices, source.pil_images(indices), strict=True
            )
        ]

    with ThreadPoolExecutor(THREADS) as pool:
        for block in blocks:
            parts = np.array_split(block, max(THREADS, -(-len(block) // CHUNK)))
            read_parts = pool.map(read, (part for part in parts if len(part)))
            images, labels = zip(*itertools.chain(*read_parts), strict=True)
            yield np.stack(images), np.array(labels, np.int64)


def read_plain(
    teachers: Sequence, source, blocks: Sequence[np.ndarray]
) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """`read_blocks` of images without augmentation: whole, or their centre view.

    Yields:
      What each of the teachers sees, uint8 [B, S, S, 3], and the labels.
    """
    kinds = [(teacher.image_size, teacher.crop_ratio) for teacher in teachers]
    if seen_whole(source):
        kinds = [None] * len(kinds)
    streams = {
        kind: read_blocks(source, blocks, functools.partial(_centre, kind))
        for kind in kinds
    }
    for read in zip(*streams.values(), strict=True):
        images = dict(zip(streams, (images for images, _ in read), strict=True))
        yield [images[kind] for kind in kinds], read[0][1]


def _centre(kind: tuple[int, float], image: Image.Image, _) -> np.ndarray:
    return centre_view(image, *kind)


def seen_whole(source) -> bool:
    """Whether the images are all squares of one size: nothing is cut off of them."""
    shape = source.image_shape
    return shape is not None and shape[0] == shape[1]


def consecutive(start: int, stop: int, size: int) -> Iterator[np.ndarray]:
    """Cuts the positions `start .. stop - 1` into blocks of at most `size`."""
    for first in range(start, stop, size):
        yield np.arange(first, min(first + size, stop))


def augmented_batches(
    source,
    batch_size: int,
    *,
    image_size: int,
    crop_padding: int,
    flip: bool,
    seed: int,
    epoch: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields one shuffled epoch of whole batches: uint8 [B, H, W, 3], int64 [B].

    Images that are all squares of one size are padded and cropped, in their own size.
    Of other images a random part is resized to `image_size`.

    Args:
      crop_padding: Black pixels added on each side before a random crop of the
        original size, in pixels of the source.
      flip: Mirror half of the images.
      seed, epoch: Order and augmentation are a function of them.
    """
    generator = np.random.default_rng([seed, epoch])
    count = len(source) // batch_size * batch_size
    order = generator.permutation(len(source))[:count].reshape(-1, batch_size)
    padding = crop_padding if seen_whole(source) else 0

    def view(image: Image.Image, index: int) -> np.ndarray:
        # + 1, since NumPy takes a zero at the end for nothing: (seed, epoch) alone.
        draws = np.random.default_rng([seed, epoch, index + 1])
        draws = draws.integers(0, 2**32, CROP_WORDS, np.uint32)
        box = random_resized_crop_box(draws, *image.size)
        return crop_and_resize(image, box, image_size)

    for images, labels in read_blocks(source, order, view):
        if padding:
            images = _pad_and_crop(images, padding, generator)
        if flip:
            mirrored = generator.random(len(images)) < 0.5
            images[mirrored] = images[mirrored, :, ::-1]
        yield images, labels


def _pad_and_crop(
    images: np.ndarray, padding: int, generator: np.random.Generator
) -> np.ndarray:
    b, h, w, _ = images.shape
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    top, left = generator.integers(0, 2 * padding + 1, (2, b))
    return np.stack(
        [
            image[y : y + h, x : x + w]
            for image, y, x in zip(padded, top, left, strict=True)
        ]
    )
