"""What a train step computes on: images, label distributions, a teacher's answers."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped, UInt8

from deit_jax.data.augment import augment_batch, mix
from deit_jax.data.augment.recipes import Augmentation
from deit_jax.distillation import losses
from deit_jax.distillation.teacher import Answers


class Inputs(NamedTuple):
    """Normalised images, label distributions, and what the teacher says, or None."""

    images: Float[Array, "b h w 3"]
    targets: Float[Array, "b c"]
    teacher: Answers | None


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
        teacher_logits [b, C] and teacher_features [b, f]; whole pairs, partners side by
        side. The augmented image is a pure function of (augment_seed, view, index).
        With the fields of `mix.Mix` [b / 2, ...] the images are augmented already.
      teacher: Parameters of a live teacher.
      augmentation: Its mean and std normalise the images.
      mix_teacher: `losses.mix_teacher_logits` but for its first three arguments, where
        the teacher saw the images unmixed; features are mixed like labels. None takes
        its answers as they are.
      unmixed: Whether images that the host has augmented are still to be mixed, and a
        live teacher sees all images before they are.
      ask: A live teacher: (`teacher`, images uint8 [b, H, W, 3]) -> `Answers`.
    """
    images, mixes = student_images(
        batch, augment_seed=augment_seed, augmentation=augmentation, mixed=not unmixed
    )
    labels = losses.smooth_labels(batch["label"], num_classes, label_smoothing)
    answers = None
    if "teacher_logits" in batch:
        answers = Answers(batch["teacher_logits"], batch.get("teacher_features"))
    if ask is not None:
        answers = jax.lax.stop_gradient(ask(teacher, images))
    if unmixed:
        pairs = images.reshape(-1, 2, *images.shape[1:])
        images = jax.vmap(mix.apply_pair)(pairs, mixes).reshape(images.shape)
    if augmentation.mixes:
        weight = jnp.repeat(mixes.weight, 2)
        labels = _mixed(labels, weight)
        if mix_teacher is not None:
            logits, features = answers
            logits = mix_teacher(logits, swap_partners(logits), weight)
            if features is not None:
                features = _mixed(features.astype(jnp.float32), weight)
            answers = Answers(logits, features)
    return Inputs(
        normalise(images, augmentation.mean, augmentation.std), labels, answers
    )


def _mixed(
    rows: Float[Array, "b n"], weight: Float[Array, " b"]
) -> Float[Array, "b n"]:
    return weight[:, None] * rows + (1 - weight[:, None]) * swap_partners(rows)


def swap_partners(rows: Shaped[Array, "b ..."]) -> Shaped[Array, "b ..."]:
    """Puts row 2i + 1 in place of row 2i, and the other way round."""
    return rows.reshape(-1, 2, *rows.shape[1:])[:, ::-1].reshape(rows.shape)
