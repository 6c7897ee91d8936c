"""sha256 sums that say which images a source holds."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

# Hashing runs at about 0.5 GB/s: up to here every byte counts, at every start.
WHOLE_BYTES = 2**30
# Beyond, this many evenly spaced images are read (ImageNet: about 110 MB).
SAMPLE = 1024
BLOCK = 512


def fingerprint(*parts) -> str:
    """sha256 (hex) of strings, bytes and arrays, each with its length."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            part = np.ascontiguousarray(part)
            head = f"{part.dtype.str}{part.shape}"
            payload = memoryview(part).cast("B")
        else:
            payload = part if isinstance(part, bytes) else str(part).encode()
            head = "bytes"
        digest.update(f"{head}:{len(payload)}:".encode())
        digest.update(payload)
    return digest.hexdigest()


def of_records(split, class_names, labels: np.ndarray, sizes, images: Iterable) -> str:
    """The fingerprint of a split, which says nothing of how its files are made.

    The same images have one fingerprint in Parquet files, in shards and on the Hub.

    Args:
      sizes: int64 [N], the bytes of each encoded image.
      images: (encoded, label) of all of them, or of a `sample`.
    """
    names = "\n".join(class_names)
    _, sums = scan(images)
    return fingerprint("records", "1", split, names, labels, sizes, sums)


def sample(records, total_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Reads the images that a fingerprint covers: all, or some of a large set.

    Args:
      records: See `deit_jax.data.sources.encoded`.
      total_bytes: Of their encoded form, about.
    """
    indices = np.arange(len(records))
    if total_bytes > WHOLE_BYTES and len(records) > SAMPLE:
        indices = np.linspace(0, len(records) - 1, SAMPLE).round().astype(np.int64)
    for block in blocks(indices):
        yield from records.read(block)


def scan(images: Iterable[tuple[bytes, int]]) -> tuple[np.ndarray, str]:
    """Labels, int32 [n], and the sha256 (hex) of labels and encoded images."""
    labels, sums = [], hashlib.sha256()
    for encoded, label in images:
        labels.append(label)
        sums.update(f"{label}:{len(encoded)}:".encode())
        sums.update(encoded)
    return np.array(labels, np.int32), sums.hexdigest()


def blocks(indices: np.ndarray) -> Iterator[list[int]]:
    """`indices` in lists of at most `BLOCK`, which bounds the memory of a pass."""
    for first in range(0, len(indices), BLOCK):
        yield indices[first : first + BLOCK].tolist()
