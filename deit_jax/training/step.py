"""The train step and the evaluation step: pure functions, and their pmapped forms."""

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from deit_jax.data.rng import Stream, stream_key
from deit_jax.distillation import losses
from deit_jax.distillation.features import PROJECTOR
from deit_jax.models import cost
from deit_jax.training import trainable as trainables
from deit_jax.training.inputs import normalise
from deit_jax.training.state import TrainState

AXIS = "batch"
# What `VisionTransformer` sows beside the attention weights.
TOKENS = ("class_token", "distill_token", "patch_mean")


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    teacher=None,
    *,
    model,
    optimizer: optax.GradientTransformation,
    inputs: Callable,
    loss: Callable,
    seed: int,
    ema_decay: float,
    accumulation: int = 1,
    trainable: str = "all",
    in_cache: bool = False,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on this device's part of the batch.

    Args:
      state: Donated by `pmap_train_step`.
      batch: Of `data.batches.train_batches`, without the device axis, rows in order.
      teacher: Parameters of a live teacher, or None.
      inputs: batch, with a live teacher also `teacher` -> `inputs.Inputs`.
      seed: Of dropout and stochastic depth. Their masks follow from it, the step and
        the image's place in the global batch, not from the number of devices.
      accumulation, in_cache: Parts that the batch is computed in, one after the other;
        and whether these are cut further, to what a CPU's caches hold.
      loss, trainable: See `distillation.losses.training_loss`, `trainable.split`.
      axis_name: The mapped axis, over which gradients and metrics are averaged.

    Returns:
      The new state, and means over the global batch: the losses, `top1` of the class
      head, `agreement` with a teacher, `grad_norm` before clipping, `grad_norms` of the
      trained parameters (`jax.tree.leaves`), and `skipped`: 1 where loss or `grad_norm`
      is not finite, which changes nothing but the step's number, on all devices.
    """
    local = batch["label"].shape[0]
    drop_keys = _drop_keys(seed, state.step, local, axis_name)
    if in_cache:  # in whole pairs
        accumulation *= cost.parts(model, local // accumulation, unit=2)
    if teacher is not None:
        inputs = functools.partial(inputs, teacher=teacher)
    trained, frozen = trainables.split(state.params, trainable)
    mean_loss = functools.partial(
        _mean_loss, frozen=frozen, model=model, inputs=inputs, loss=loss
    )
    gradient = jax.grad(mean_loss, has_aux=True)
    grads, metrics = _in_parts(gradient, accumulation, trained, batch, drop_keys)
    if axis_name is not None:
        grads, metrics = jax.lax.pmean((grads, metrics), axis_name)

    update = functools.partial(
        _update, optimizer=optimizer, ema_decay=ema_decay, trainable=trainable
    )
    metrics["grad_norm"] = optax.tree.norm(grads)
    norms = map(optax.tree.norm, jax.tree.leaves(grads))
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    metrics |= {"grad_norms": jnp.stack([*norms]), "skipped": jnp.float32(~finite)}
    state = _update_if(finite, update, state, grads).replace(step=state.step + 1)
    return state, metrics


def _mean_loss(
    trained, batch, drop_keys, *, frozen, model, inputs: Callable, loss: Callable
):
    """The loss of a part of the batch, and what is told of it: means of its images."""
    params = trainables.merge(trained, frozen)
    images, targets, answers = inputs(batch)
    projector = params.get(PROJECTOR)
    apply = functools.partial(model.apply, {"params": params}, drop_keys=drop_keys)
    if projector is None:
        outputs = apply(images)
    else:
        outputs, sown = apply(images, mutable=["intermediates"])
        tokens = {k: v for k, v in sown["intermediates"].items() if k in TOKENS}
        outputs |= {name: value for name, (value,) in tokens.items()}
    losses = loss(outputs, targets, answers, projector)
    predicted = jnp.argmax(outputs["class"], axis=-1)
    metrics = losses | {"top1": predicted == jnp.argmax(targets, axis=-1)}
    if answers is not None:
        student = outputs.get("distill", outputs["class"])
        metrics |= agreement(student, answers.logits)
    metrics = {name: values.mean() for name, values in metrics.items()}
    return metrics["loss"], metrics


def _drop_keys(seed: int, step, local: int, axis_name: str | None) -> jax.Array:
    """A key for each image of this device, by its place in the global batch: [b]."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * local
    step_key = jax.random.fold_in(stream_key(Stream.DROP, seed), step)
    positions = first + jnp.arange(local)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, positions)


def _in_parts(gradient: Callable, accumulation: int, params, batch, drop_keys):
    """The mean of `gradient` over parts of the batch, computed one after the other."""
    if accumulation == 1:
        return gradient(params, batch, drop_keys)
    parts = jax.tree.map(
        lambda x: x.reshape(accumulation, -1, *x.shape[1:]), (batch, drop_keys)
    )
    shapes = jax.eval_shape(gradient, params, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add_part(total, part):
        return jax.tree.map(jnp.add, total, gradient(params, *part)), None

    total, _ = jax.lax.scan(add_part, zeros, parts)
    return jax.tree.map(lambda x: x / accumulation, total)


def _update(
    state: TrainState, grads, *, optimizer, ema_decay: float, trainable: str
) -> TrainState:
    trained, frozen = trainables.split(state.params, trainable)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    ema_params = state.ema_params
    if ema_params is not None:
        ema, frozen_ema = trainables.split(ema_params, trainable)
        ema = optax.incremental_update(trained, ema, 1 - ema_decay)
        ema_params = trainables.merge(ema, frozen_ema)
    return state.replace(
        params=trainables.merge(trained, frozen),
        opt_state=opt_state,
        ema_params=ema_params,
    )


def _update_if(
    finite: Bool[Array, ""], update: Callable, state: TrainState, grads
) -> TrainState:
    """`update(state, grads)`, or `state` where `finite` is False.

    Not `optax.apply_if_finite`: its counters would be in every checkpoint, it leaves
    out the moving average, and after so many it lets a NaN through.
    """

    def branch(state, grads):
        return jax.lax.cond(finite, update, lambda state, _: state, state, grads)

    def select(state, grads):
        new = update(state, grads)
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, state)

    # A GPU's host waits for the predicate of a branch; a select is fused into the
    # update there. On CPU the select costs memory traffic (7 % of the step of the nano
    # model at batch 32) and other fusions round otherwise; the branch at most 0.7 %.
    return jax.lax.platform_dependent(state, grads, cpu=branch, default=select)


def agreement(
    student: Float[Array, "b c"], teacher: Float[Array, "b c"]
) -> dict[str, Shaped[Array, " b"]]:
    """How a student's logits agree with its teacher's, per example.

    `teacher_agreement`: both decide for the same class. `teacher_kl`: KL(teacher ||
    student) in nats, and `teacher_cosine`: the cosine similarity of the probabilities,
    both at temperature 1 whatever that of the loss.
    """
    same = jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)
    return {
        "teacher_agreement": same,
        "teacher_kl": losses.soft_distillation(student, teacher, tau=1.0),
        "teacher_cosine": 1 - losses.cosine_distillation(student, teacher, tau=1.0),
    }


def eval_step(
    params,
    images: UInt8[Array, "b h w 3"],
    *,
    model,
    mean,
    std,
    token_cosine: bool = False,
    in_cache: bool = False,
) -> dict[str, Float[Array, "b ..."]]:
    """Logits of every head, [b, C]; nothing is dropped.

    With `token_cosine`, a model that has a distillation token also gives, under that
    name, the cosine similarity of its two tokens after the last norm, [b]. `in_cache`
    is that of `train_step`.
    """

    def outputs(images):
        images = normalise(images, mean, std)
        if not (token_cosine and model.distilled):
            return model.apply({"params": params}, images)
        logits, sown = model.apply(
            {"params": params}, images, mutable=["intermediates"]
        )
        tokens = (sown["intermediates"][f"{h}_token"][0] for h in ("class", "distill"))
        return logits | {"token_cosine": optax.losses.cosine_similarity(*tokens)}

    parts = cost.parts(model, len(images)) if in_cache else 1
    if parts == 1:
        return outputs(images)
    found = jax.lax.map(outputs, images.reshape(parts, -1, *images.shape[1:]))
    return jax.tree.map(lambda rows: rows.reshape(len(images), *rows.shape[2:]), found)


def replicate(state: TrainState, devices: Sequence[jax.Device]) -> TrainState:
    """Puts a state on `devices` with the sharding that `pmap_train_step` returns.

    A state with any other sharding would make the second step compile again. Of several
    processes each gives the same state, as NumPy arrays, and all devices.
    """
    return jax.device_put(state, state_sharding(devices))


def state_sharding(devices: Sequence[jax.Device]) -> jax.sharding.NamedSharding:
    """Whole on every device."""
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def on_devices(
    stream: Generator[dict], devices: Sequence[jax.Device]
) -> Iterator[dict[str, jax.Array]]:
    """Batches of arrays [d, ...] on this process's `devices`, for `pmap_train_step`.

    Each is given while it is still on its way, so that a thread that asks for them
    ahead hides the copies behind the steps before.
    """
    mine = [d for d in devices if d.process_index == jax.process_index()]
    mesh = jax.sharding.Mesh(np.asarray(mine), (AXIS,))
    spec = jax.sharding.PartitionSpec(AXIS)
    sharding = jax.sharding.NamedSharding(mesh, spec)
    with contextlib.closing(stream):
        for batch in stream:
            yield jax.device_put(batch, sharding)


def place_whole(tree, devices: Sequence[jax.Device]):
    """Puts NumPy arrays, each whole, on each of `devices`; every process has them."""
    sharding = state_sharding(devices)
    # Not by device_put, which sends them between the processes to compare them.
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(
            array.shape, sharding, lambda part: array[part]
        ),
        tree,
    )


def _with_resident(batch: dict, resident: dict | None) -> tuple[dict, object]:
    """A batch with its images, and the parameters of a live teacher or None."""
    resident = resident or {}
    if "images" in resident:
        batch = batch | {"image": resident["images"][batch["index"]]}
    return batch, resident.get("teacher")


def pmap_train_step(devices: Sequence[jax.Device], **statics) -> Callable:
    """`train_step` over `devices`: (state, batch, resident) -> (state, metrics).

    The state has no device axis and is donated. The arrays of the batch are [d, b, ...]
    and the metrics scalars; or they are [d, k, b, ...], which is k steps one after the
    other, and the metrics [k]. `resident` is what `place_whole` has put on the devices
    for the whole run, or None: `images` of the whole source, [N, H, W, 3], where the
    batches have none, and the parameters of a live `teacher`. Of several processes each
    gives the part of the batch that lies on its own devices.
    """
    one_step = functools.partial(
        train_step, axis_name=AXIS, in_cache=devices[0].platform == "cpu", **statics
    )

    def steps(state, batch, resident):
        def one(state, batch):
            batch, teacher = _with_resident(batch, resident)
            return one_step(state, batch, teacher)

        if batch["label"].ndim == 1:
            return one(state, batch)
        return jax.lax.scan(one, state, batch)

    return jax.pmap(
        steps,
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=(None, None),
        donate_argnums=0,
        devices=devices,
    )


def pmap_eval_step(devices: Sequence[jax.Device], **statics) -> Callable:
    """`eval_step` over `devices`: (params, images [d, b, ...]) -> each [d, b, ...]."""
    return jax.pmap(
        functools.partial(eval_step, in_cache=devices[0].platform == "cpu", **statics),
        axis_name=AXIS,
        in_axes=(None, 0),
        devices=devices,
    )


def pmap_teacher(
    devices: Sequence[jax.Device],
    *,
    ask: Callable,
    images: Callable,
) -> Callable:
    """What a teacher says of a batch: (batch, resident) -> `Answers` [d, b, ...].

    Args:
      ask: As of `inputs.prepare`.
      images: `inputs.student_images` but for the batch. That is of a train step, or of
        several, [d, k, b, ...], of which the last counts.
    """

    def answers(batch, resident):
        if batch["label"].ndim == 2:
            batch = jax.tree.map(lambda x: x[-1], batch)
        batch, teacher = _with_resident(batch, resident)
        seen, _ = images(batch)
        return ask(teacher, seen)

    return jax.pmap(answers, axis_name=AXIS, in_axes=(0, None), devices=devices)
