"""SHA-256 of what a checkpoint holds, to notice what a disk has changed.

The digests are taken of the values and not of the files, so that everything between the
two is covered, the layout of orbax included. They are part of the checkpoint.
"""

import hashlib
import json
from collections.abc import Mapping

import jax
import numpy as np


def of_arrays(tree) -> dict[str, str]:
    """Digests of a tree's arrays (type, shape, bytes) by path, `params.head.bias`."""
    digests = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest = hashlib.sha256(f"{array.dtype.name}{array.shape}".encode())
        # As bytes: bfloat16 has no buffer of its own.
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        digests[name] = digest.hexdigest()
    return digests


def of_json(value) -> str:
    """The digest of what JSON keeps of `value`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check(written: Mapping[str, str], read: Mapping[str, str]) -> None:
    """Raises ValueError, naming some, where digests differ or are missing."""
    differing = sorted(
        name for name in written | read if written.get(name) != read.get(name)
    )
    if differing:
        raise ValueError(
            f"{len(differing)} of {len(written | read)} values are not those that were "
            f"written: {', '.join(differing[:3])}{', ...' * (len(differing) > 3)}."
        )
