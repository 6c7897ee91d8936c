"""The train step and the evaluation step: pure functions, and their pmapped forms."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8

from deit_jax.data.augment import augment
from deit_jax.data.views import Stream, image_keys, stream_key
from deit_jax.distillation import losses
from deit_jax.training.state import TrainState

AXIS = "batch"


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


def inputs(
    batch: dict[str, jax.Array],
    *,
    num_classes: int,
    label_smoothing: float,
    mean: Sequence[float],
    std: Sequence[float],
    augment_seed: int,
    crop_padding: int,
    flip: bool,
) -> tuple[Float[Array, "b h w 3"], Float[Array, "b c"]]:
    """What the student sees: augmented, normalised images and target distributions.

    Args:
      batch: image uint8 [b, H, W, 3], label, index and view int32 [b]. The augmented
        image is a pure function of (augment_seed, view, index).
      crop_padding, flip: See `augment`.
    """
    keys = image_keys(augment_seed, batch["view"], batch["index"])
    one = functools.partial(augment, crop_padding=crop_padding, flip=flip)
    images = jax.vmap(one)(keys, batch["image"])
    targets = losses.smooth_labels(batch["label"], num_classes, label_smoothing)
    return normalise(images, mean, std), targets


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    model,
    optimizer: optax.GradientTransformation,
    inputs: Callable,
    loss: Callable,
    seed: int,
    ema_decay: float,
    accumulation: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on this device's part of the batch.

    Args:
      state: Donated by `pmap_train_step`.
      batch: image uint8 [b, H, W, 3], label, index and view int32 [b] and, under
        distillation, teacher_logits [b, C]. Rows are in the order of the global batch.
      inputs: batch -> (normalised images, target distributions [b, C]).
      loss: (logits, targets, teacher_logits) -> per-example losses, see
        `distillation.losses.training_loss`.
      seed: Of dropout and stochastic depth. Their masks follow from (seed, step, the
        image's place in the global batch), not from the number of devices.
      ema_decay: ema <- decay * ema + (1 - decay) * params; unused without an EMA.
      accumulation: Parts that the batch is computed in, one after the other.
      axis_name: The mapped axis; gradients and metrics are averaged over it.

    Returns:
      The new state, and means over the global batch: the losses, `top1` of the class
      head on this (augmented) batch, and `grad_norm` before clipping.
    """
    local = batch["label"].shape[0]
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * local
    step_key = jax.random.fold_in(stream_key(Stream.DROP, seed), state.step)
    positions = first + jnp.arange(local)
    drop_keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, positions)

    def mean_loss(params, batch, drop_keys):
        images, targets = inputs(batch)
        logits = model.apply({"params": params}, images, drop_keys=drop_keys)
        losses = loss(logits, targets, batch.get("teacher_logits"))
        predicted = jnp.argmax(logits["class"], axis=-1)
        hits = predicted == jnp.argmax(targets, axis=-1)
        metrics = {k: v.mean() for k, v in losses.items()} | {"top1": hits.mean()}
        return metrics["loss"], metrics

    gradient = jax.grad(mean_loss, has_aux=True)
    if accumulation == 1:
        grads, metrics = gradient(state.params, batch, drop_keys)
    else:
        parts = jax.tree.map(
            lambda x: x.reshape(accumulation, -1, *x.shape[1:]), (batch, drop_keys)
        )
        shapes = jax.eval_shape(
            gradient, state.params, *jax.tree.map(lambda x: x[0], parts)
        )
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add_part(total, part):
            return jax.tree.map(jnp.add, total, gradient(state.params, *part)), None

        total, _ = jax.lax.scan(add_part, zeros, parts)
        grads, metrics = jax.tree.map(lambda x: x / accumulation, total)
    if axis_name is not None:
        grads, metrics = jax.lax.pmean((grads, metrics), axis_name)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:
        ema_params = optax.incremental_update(params, ema_params, 1 - ema_decay)
    new_state = TrainState(
        step=state.step + 1, params=params, opt_state=opt_state, ema_params=ema_params
    )
    return new_state, metrics | {"grad_norm": optax.tree.norm(grads)}


def eval_step(
    params, images: UInt8[Array, "b h w 3"], *, model, mean, std
) -> dict[str, Float[Array, "b c"]]:
    """Logits of every head; nothing is dropped."""
    return model.apply({"params": params}, normalise(images, mean, std))


def replicate(state: TrainState, devices: Sequence[jax.Device]) -> TrainState:
    """Puts a state on `devices` with the sharding that `pmap_train_step` returns.

    A state with any other sharding would make the second step compile again.
    """
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    return jax.device_put(
        state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )


def pmap_train_step(devices: Sequence[jax.Device], **statics) -> Callable:
    """`train_step` over `devices`: (state, batch [d, b, ...]) -> (state, metrics).

    The state has no device axis and is donated; the metrics are scalars.
    """
    return jax.pmap(
        functools.partial(train_step, axis_name=AXIS, **statics),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),
        donate_argnums=0,
        devices=devices,
    )


def pmap_eval_step(devices: Sequence[jax.Device], **statics) -> Callable:
    """`eval_step` over `devices`: (params, images [d, b, ...]) -> logits [d, b, C]."""
    return jax.pmap(
        functools.partial(eval_step, **statics),
        axis_name=AXIS,
        in_axes=(None, 0),
        devices=devices,
    )
