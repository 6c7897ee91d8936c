"""Augmentation inside the train step: pure functions of a key, uint8 in and out.

No float touches a pixel before normalisation: float code differs by a level between
batch sizes, devices and JAX versions, integers do not.
"""

import jax
from jaxtyping import Array, Key, UInt8

from deit_jax.data.augment import geometry

# One constant an operation, folded into the image's key: switching one off leaves the
# draws of the others as they are.
CROP, FLIP = range(2)


def augment(
    key: Key[Array, ""], image: UInt8[Array, "h w 3"], *, crop_padding: int, flip: bool
) -> UInt8[Array, "h w 3"]:
    """All operations on one image, in DeiT's order.

    Args:
      key: The image's own (`views.image_keys`).
      image: Of the model's size.
      crop_padding: Pixels of `geometry.pad_and_crop`; 0 for none.
      flip: Whether to mirror every second image.
    """
    if crop_padding:
        image = geometry.pad_and_crop(
            jax.random.fold_in(key, CROP), image, crop_padding
        )
    if flip:
        image = geometry.horizontal_flip(jax.random.fold_in(key, FLIP), image)
    return image
