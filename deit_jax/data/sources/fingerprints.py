"""sha256 sums that say which images a source holds."""

import hashlib

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


def positions(length: int, total_bytes: int) -> np.ndarray:
    """The images that a fingerprint reads: all of a small set, a sample of a large.

    Args:
      length: Images in the set.
      total_bytes: Of their encoded form, about.

    Returns:
      int64 [n], ascending.
    """
    if total_bytes <= WHOLE_BYTES or length <= SAMPLE:
        return np.arange(length)
    return np.linspace(0, length - 1, SAMPLE).round().astype(np.int64)


def scan(records, indices: np.ndarray) -> tuple[np.ndarray, str]:
    """Reads images once, for their labels and the sha256 of their encoded bytes.

    Args:
      records: See `deit_jax.data.sources.encoded`.
      indices: int [n].

    Returns:
      labels int32 [n] and the sha256 (hex) of labels and encoded images.
    """
    labels, sums = [], hashlib.sha256()
    for block in blocks(indices):
        for encoded, label in records.read(block):
            labels.append(label)
            sums.update(f"{label}:{len(encoded)}:".encode())
            sums.update(encoded)
    return np.array(labels, np.int32), sums.hexdigest()


def blocks(indices: np.ndarray):
    """`indices` in lists of at most `BLOCK`, which bounds the memory of a pass."""
    for first in range(0, len(indices), BLOCK):
        yield [int(i) for i in indices[first : first + BLOCK]]
