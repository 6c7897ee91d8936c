"""Keys of random draws: one stream for each use of randomness.

All draws are integers of JAX's threefry generator: they do not depend on the JAX
version, the kind of device or the number of devices (a golden test holds them).
"""

import enum
import functools

import jax
import numpy as np

from deit_jax.data.crops import CROP_WORDS
from deit_jax.errors import InputError


class Stream(enum.IntEnum):
    """One constant for each use of randomness, so that no two ever share a key."""

    INIT = 1
    ORDER = 2
    PAIRS = 3
    DROP = 4
    AUGMENT = 5
    CROP = 6
    PROJECTOR = 7


def stream_key(stream: Stream, seed: int) -> jax.Array:
    """The root key of a stream. Threefry is pinned: rbg is not batch-invariant."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), stream)


def host_device() -> jax.Device:
    """The CPU on which a process draws, and augments images for other devices.

    Raises:
      InputError: JAX_PLATFORMS leaves it out.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        platforms = jax.config.jax_platforms
        raise InputError(
            f"JAX_PLATFORMS={platforms} leaves out the CPU, which draws the order of "
            f"the images and may augment them: set JAX_PLATFORMS={platforms},cpu"
        ) from error


def image_keys(
    augment_seed: int,
    view: jax.Array,
    index: jax.Array,
    stream: Stream = Stream.AUGMENT,
) -> jax.Array:
    """The key [B] of each image's draws, from its view and index (int [B]).

    Args:
      stream: Which use of randomness: what is drawn on the device, or the crop boxes
        of the host.
    """
    root = stream_key(stream, augment_seed)
    by_view = jax.vmap(jax.random.fold_in, (None, 0))(root, view)
    return jax.vmap(jax.random.fold_in)(by_view, index)


def crop_draws(augment_seed: int, view: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The draws of `crops.random_resized_crop_box`: uint32 [B, CROP_WORDS].

    Each row follows from (augment_seed, view, index) alone; view and index int [B].
    """
    with jax.default_device(host_device()):
        return np.asarray(_crop_draws(augment_seed, view, index))


@functools.partial(jax.jit, static_argnums=0)
def _crop_draws(augment_seed: int, view: jax.Array, index: jax.Array) -> jax.Array:
    keys = image_keys(augment_seed, view, index, Stream.CROP)
    return jax.vmap(lambda key: jax.random.bits(key, (CROP_WORDS,), np.uint32))(keys)
