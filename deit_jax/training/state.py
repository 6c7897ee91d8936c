"""What a step reads and replaces, and all that a checkpoint has to hold."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from deit_jax.data.rng import Stream, stream_key
from deit_jax.distillation import features
from deit_jax.training import trainable as trainables


class TrainState(flax.struct.PyTreeNode):
    """The state has no device axis: `pmap` takes and returns it with axis None.

    Attributes:
      step: int32 [], steps done. Data order and randomness follow from it.
      params: The parameters, float32.
      opt_state: Optax's, of the trained parameters alone.
      ema_params: Moving average of `params`, or None where `ema.decay` is 0.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    ema_params: Any


def create(
    model,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema: bool,
    trainable: str = "all",
    teacher_width: int = 0,
) -> TrainState:
    """A state at step 0, initialised from `seed`, maybe with a moving average.

    `trainable` says which parameters `optimizer` is for (`trainable.split`); with a
    `teacher_width`, that of its features, the projector on to them is one.
    """
    size = model.image_size

    @jax.jit
    def init():
        images = jnp.zeros((1, size, size, 3), jnp.float32)
        params = model.init(stream_key(Stream.INIT, seed), images)["params"]
        if teacher_width:
            params[features.PROJECTOR] = features.init_projector(
                seed, model.width, teacher_width
            )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(trainables.split(params, trainable)[0]),
            # A copy: a donated buffer must not be in the state twice.
            ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        )

    return init()
