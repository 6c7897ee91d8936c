"""Crops and flips of images that have the model's size already."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, UInt8


def pad_and_crop(
    key: Key[Array, ""], image: UInt8[Array, "h w 3"], padding: int
) -> UInt8[Array, "h w 3"]:
    """Pads `padding` black pixels on each side and crops the size back at random.

    As torchvision's RandomCrop(size, padding); every one of the (2 padding + 1)^2
    positions is equally likely.
    """
    corner = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return jax.lax.dynamic_slice(padded, (corner[0], corner[1], 0), image.shape)


def horizontal_flip(
    key: Key[Array, ""], image: UInt8[Array, "h w 3"]
) -> UInt8[Array, "h w 3"]:
    """Mirrors every second image, left to right."""
    return jnp.where(jax.random.bits(key) & 1, image[:, ::-1], image)
