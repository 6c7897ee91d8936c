"""Augmentation as one jitted function: integers, a pure function of three of them.

It runs inside the train step, or on the host ahead of it (`StudentViews.augment`).

The image of (augment seed, view, index) is the same whatever the batch, the device or
the JAX version. No float touches a pixel before normalisation: float code differs by a
level between batch sizes, devices and versions, integers do not.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, Key, UInt8

from deit_jax.data.augment import erase, geometry, jitter, mix, randaugment
from deit_jax.data.augment.recipes import Augmentation
from deit_jax.data.rng import image_keys

# One constant an operation, folded into the image's key: switching one off leaves the
# draws of the others as they are.
CROP, FLIP, RANDAUGMENT, THREE_AUGMENT, JITTER, ERASE, MIX = range(7)


def augment(
    key: Key[Array, ""], image: UInt8[Array, "h w 3"], settings: Augmentation
) -> UInt8[Array, "h w 3"]:
    """All operations on one image but the mixing, in DeiT's order.

    Args:
      key: The image's own (`rng.image_keys`).
      image: Of the model's size.
      settings: What to do.
    """

    def own(operation: int):
        return jax.random.fold_in(key, operation)

    if settings.crop_padding:
        # Part of DeiT III's augmentation. A field for it would be missing in the
        # manifests of all caches that there are.
        mode = "reflect" if settings.three_augment else "constant"
        image = geometry.pad_and_crop(own(CROP), image, settings.crop_padding, mode)
    if settings.flip:
        image = geometry.horizontal_flip(own(FLIP), image)
    if settings.randaugment:
        image = randaugment.randaugment(
            own(RANDAUGMENT),
            image,
            policy=randaugment.parse(settings.randaugment),
            fill=erase.mean_colour(settings.mean),
            interpolation=settings.interpolation,
        )
    if settings.three_augment:
        image = jitter.three_augment(own(THREE_AUGMENT), image)
    if any(settings.color_jitter):
        image = jitter.color_jitter(own(JITTER), image, settings.color_jitter)
    if settings.erase_probability:
        image = erase.random_erasing(
            own(ERASE),
            image,
            probability=settings.erase_probability,
            area=settings.erase_area,
            aspect=settings.erase_aspect,
            mode=settings.erase_mode,
            mean=settings.mean,
            std=settings.std,
        )
    return image


def augment_pair(
    keys: Key[Array, "2"],
    index: Int32[Array, "2"],
    view: Int32[Array, "2"],
    images: UInt8[Array, "2 h w 3"],
    settings: Augmentation,
    mixed: bool = True,
) -> tuple[UInt8[Array, "2 h w 3"], mix.Mix]:
    """Two partners, augmented and, where the settings say so, mixed."""
    pair = jnp.stack([augment(keys[n], images[n], settings) for n in range(2)])
    pair_key = jnp.where(index[0] <= index[1], keys[0], keys[1])
    drawn = mix.draw(
        jax.random.fold_in(pair_key, MIX),
        images.shape[1],
        mixup=settings.mixup,
        cutmix=settings.cutmix,
        probability=settings.mix_probability,
        switch_probability=settings.mix_switch_probability,
    )
    if settings.mix_off_view:
        drawn = mix.unless(view[0] >= settings.mix_off_view, drawn)
    if mixed and settings.mixes:
        pair = mix.apply_pair(pair, drawn)
    return pair, drawn


def augment_batch(
    images: UInt8[Array, "b h w 3"],
    index: Int32[Array, " b"],
    view: Int32[Array, " b"],
    *,
    augment_seed: int,
    settings: Augmentation,
    mixed: bool = True,
) -> tuple[UInt8[Array, "b h w 3"], mix.Mix]:
    """The images that a student sees of whole pairs, partners side by side.

    Args:
      images: As they come from the host: of the model's size.
      index, view: Of each image; rows 2i and 2i + 1 are partners in one view.
      augment_seed: Of all draws.
      settings: What to do.
      mixed: False leaves the mixing to the caller (`mix.apply_pair`).

    Returns:
      The augmented images, and how each pair [b / 2] was mixed.
    """

    def pairs(x):
        return x.reshape(-1, 2, *x.shape[1:])

    keys = image_keys(augment_seed, view, index)
    operands = (pairs(keys), pairs(index), pairs(view), pairs(images))
    one = functools.partial(augment_pair, settings=settings, mixed=mixed)
    # On a CPU one pair after the other, so that only the branches are computed that a
    # draw has chosen; elsewhere all pairs at once, and every branch of a switch.
    augmented, drawn = jax.lax.platform_dependent(
        *operands,
        cpu=lambda *pair: jax.lax.map(lambda x: one(*x), pair),
        default=jax.vmap(one),
    )
    return augmented.reshape(images.shape), drawn
