"""The activation of the MLPs, with a backward pass that does not compute it again."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: Float[Array, "*shape"], recompute: bool = False) -> Float[Array, "*shape"]:
    """x times the normal distribution function of x, by erf, not the tanh formula.

    Hendrycks and Gimpel 2016, arXiv 1606.08415. The slope is computed with the value:
    where the backward pass begins with x, XLA evaluates erf a second time. With
    `recompute` it does so, which saves memory traffic where erf costs nothing.
    """
    return _value_and_slope(x)[0]


def _value_and_slope(x):
    # In float32 whatever the type: the products on either side are what costs.
    wide = x.astype(jnp.float32)
    below = 0.5 * (1 + jax.lax.erf(wide * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * wide**2) / math.sqrt(2 * math.pi)
    return (wide * below).astype(x.dtype), (below + wide * density).astype(x.dtype)


def _gelu_forward(x, recompute):
    if not recompute:
        return _value_and_slope(x)
    # Else XLA skips the rounding to 16 bits and keeps x in float32.
    x = jax.lax.optimization_barrier(x)
    return _value_and_slope(x)[0], x


def _gelu_backward(recompute, kept, g):
    slope = _value_and_slope(kept)[1] if recompute else kept
    return (slope * g,)


gelu.defvjp(_gelu_forward, _gelu_backward)
