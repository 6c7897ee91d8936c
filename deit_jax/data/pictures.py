"""Pictures at the model's size: from memory, or from a pipeline that streams them."""

import contextlib
from collections.abc import Iterator

from deit_jax.data import sources
from deit_jax.data.host_pipeline import HostPipeline

# Of each of the two splits. ImageNet at 32 px (3.9 GB) fits, at 64 px it streams; a
# machine that trains on such sets has several times as much.
IN_MEMORY_BYTES = 4 * 2**30


def fit_in_memory(source, size: int, *, limit: int = IN_MEMORY_BYTES) -> bool:
    """Whether all images of `source` have `size` pixels a side, and `limit` bytes."""
    total_bytes = len(source) * size * size * 3
    return source.image_shape == (size, size, 3) and total_bytes <= limit


@contextlib.contextmanager
def open_pictures(
    source, *, size: int, **options
) -> Iterator[sources.ArraySource | HostPipeline]:
    """In memory where the images have the model's size and fit, otherwise streamed.

    Args:
      source: A source (`deit_jax.data.sources`).
      size: Pixels a side of the model's images.
      options: Of `HostPipeline`, for pictures that are streamed.
    """
    if fit_in_memory(source, size):
        yield sources.load_into_memory(source)
        return
    with HostPipeline(source, size=size, **options) as pipeline:
        yield pipeline
