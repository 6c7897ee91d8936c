"""What a train step computes on: images, label distributions, a teacher's logits."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped, UInt8

from deit_jax.data.augment import augment_batch, mix
from deit_jax.data.augment.recipes import Augmentation
from deit_jax.distillation import losses


class Inputs(NamedTuple):
    """Normalised images, label distributions, and the teacher's logits or None."""

    images: Float[Array, "b h w 3"]
    targets: Float[Array, "b c"]
    teacher_logits: Float[Array, "b c"] | None


def normalise(
    images: UInt8[Array, "b h w 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "b h w 3"]:
    """uint8 pixels to (x / 255 - mean) / std in float32, one mean and std a channel."""
    # As one multiplication and one addition, which XLA fuses into the patch product.
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    shift = -jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return (
        images.astype(jnp.float32) * scale[None, None, None] + shift[None, None, None]
    )


def student_images(
    batch: dict[str, jax.Array],
    *,
    augment_seed: int,
    augmentation: Augmentation,
    mixed: bool = True,
) -> tuple[UInt8[Array, "b h w 3"], mix.Mix]:
    """The augmented images of a batch, see `prepare`, and how its pairs are mixed.

    With `mixed` False the images are those before that, where the device augments them.
    """
    if "weight" in batch:
        return batch["image"], mix.Mix(*(batch[name] for name in mix.Mix._fields))
    return augment_batch(
        *(batch[name] for name in ("image", "index", "view")),
        augment_seed=augment_seed,
        settings=augmentation,
        mixed=mixed,
    )


def prepare(
    batch: dict[str, jax.Array],
    teacher=None,
    *,
    num_classes: int,
    label_smoothing: float,
    augment_seed: int,
    augmentation: Augmentation,
    mix_teacher: Callable | None = None,
    unmixed: bool = False,
    ask: Callable | None = None,
) -> Inputs:
    """What the student sees, and what it is to say.

    Args:
      batch: image uint8 [b, H, W, 3], label, index and view int32 [b], maybe
        teacher_logits [b, C]; whole pairs, partners side by side. The augmented image
        is a pure function of (augment_seed, view, index). With the fields of `mix.Mix`
        [b / 2, ...] the images are augmented already.
      teacher: Parameters of a live teacher.
      augmentation: Its mean and std normalise the images.
      mix_teacher: `losses.mix_teacher_logits` but for its first three arguments, where
        the teacher saw the images unmixed; None takes its logits as they are.
      unmixed: Whether images that the host has augmented are still to be mixed, and a
        live teacher sees all images before they are.
      ask: A live teacher: (`teacher`, images uint8 [b, H, W, 3]) -> logits [b, C].
    """
    images, mixes = student_images(
        batch, augment_seed=augment_seed, augmentation=augmentation, mixed=not unmixed
    )
    labels = losses.smooth_labels(batch["label"], num_classes, label_smoothing)
    logits = batch.get("teacher_logits")
    if ask is not None:
        logits = jax.lax.stop_gradient(ask(teacher, images))
    if unmixed:
        pairs = images.reshape(-1, 2, *images.shape[1:])
        images = jax.vmap(mix.apply_pair)(pairs, mixes).reshape(images.shape)
    if augmentation.mixes:
        weight = jnp.repeat(mixes.weight, 2)
        own, others = weight[:, None], 1 - weight[:, None]
        labels = own * labels + others * swap_partners(labels)
        if mix_teacher is not None:
            logits = mix_teacher(logits, swap_partners(logits), weight)
    return Inputs(
        normalise(images, augmentation.mean, augmentation.std), labels, logits
    )


def swap_partners(rows: Shaped[Array, "b ..."]) -> Shaped[Array, "b ..."]:
    """Puts row 2i + 1 in place of row 2i, and the other way round."""
    return rows.reshape(-1, 2, *rows.shape[1:])[:, ::-1].reshape(rows.shape)
