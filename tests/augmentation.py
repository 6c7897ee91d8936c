"""What the tests of augmentation share: settings, keys, images, and bounds."""

import jax
import numpy as np

from deit_jax.data.augment.fixed import QUANTILES

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = (124, 116, 104)  # the mean's colour
POINTS = (np.arange(QUANTILES) + 0.5) / QUANTILES
LEAST_P = 1e-4  # of tests of frequencies; the seeds do not change


def keys(count):
    return jax.random.split(jax.random.key(0), count)


def bits_of(some_keys, words):
    """The random bits of each key: uint32 [keys, words]."""
    return np.asarray(jax.vmap(lambda key: jax.random.bits(key, (words,)))(some_keys))


def noise(height, width, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (height, width, 3), np.uint8)


def images(height, width):
    """uint8 [4, height, width, 3]: smooth, noise, black and white, low contrast."""
    random = np.random.default_rng(0)
    size = (height, width, 3)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + y / 14), np.cos(x / 23 - y / 6), np.sin(x * y / 400)]
    return np.stack(
        [
            127.5 + 127.5 * np.stack(waves, axis=-1),
            random.integers(0, 256, size),
            255 * random.integers(0, 2, size),
            random.normal([60, 120, 200], 8, size).clip(0, 255),
        ]
    ).astype(np.uint8)


def one_by_one(change, some_keys, image):
    """`change(key, image)` for each key: uint8 [keys, h, w, 3]."""
    many = jax.jit(lambda some: jax.lax.map(lambda key: change(key, image), some))
    return np.asarray(many(some_keys))
