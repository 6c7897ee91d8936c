"""Self-attention of short sequences in one kernel, for TPUs.

As in flash attention (Dao et al. 2022, arXiv 2205.14135) no [n, n] of a head is ever in
the device's main memory, and the backward pass computes it again. The sequences of a
vision transformer are so short that one fits into a core's own memory whole: image
after image, head after head, straight from the projection's output. What that saves
stands in docs/performance.md.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

# Of a core's own 128 MiB; Mosaic's default of 16 is too little for 578 tokens.
VMEM_BYTES = 64 * 2**20

_dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
# Which axis of each operand a product sums over; none is common to both.
NONE = ((), ())
_ROWS, _COLUMNS, _USUAL = (
    (((0,), (0,)), NONE),
    (((1,), (1,)), NONE),
    (((1,), (0,)), NONE),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def attend(
    qkv: Float[Array, "b n 3d"], num_heads: int, interpret: bool = False
) -> Float[Array, "b n d"]:
    """softmax(q k^T / sqrt(d / h)) v of each head, the heads side by side.

    Products take operands of the input's dtype and add up in float32, as the softmax
    is.

    Args:
      qkv: Queries, keys and values one after the other, each [b, n, d] with its heads
        side by side: timm's order.
      num_heads: h.
      interpret: Run it on any device, slowly, as JAX operations.
    """
    return _call(_forward, (qkv,), qkv.shape[-1] // 3, num_heads, interpret)


def _attend_forward(qkv, num_heads, interpret):
    return attend(qkv, num_heads, interpret), qkv


def _attend_backward(num_heads, interpret, qkv, g):
    return (_call(_backward, (qkv, g), qkv.shape[-1], num_heads, interpret),)


attend.defvjp(_attend_forward, _attend_backward)


def _call(kernel, operands, width: int, num_heads: int, interpret: bool):
    """`kernel` on one image after the other; its result is [b, n, width]."""
    b, n, _ = operands[0].shape

    def one_image(width):
        return pl.BlockSpec((1, n, width), lambda image: (image, 0, 0))

    return pl.pallas_call(
        functools.partial(kernel, num_heads=num_heads),
        grid=(b,),
        in_specs=[one_image(x.shape[-1]) for x in operands],
        out_specs=one_image(width),
        out_shape=jax.ShapeDtypeStruct((b, n, width), operands[0].dtype),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES),
        interpret=interpret,
    )(*operands)


def _columns(head: int, part: int, d: int, num_heads: int) -> slice:
    """Where the queries (part 0), keys (1) or values (2) of a head lie."""
    head_dim = d // num_heads
    first = part * d + head * head_dim
    return slice(first, first + head_dim)


def _weights(q, k):
    """The attention weights of one head, float32 [n, n]."""
    logits = _dot(q, k, _COLUMNS) * q.shape[-1] ** -0.5
    powers = jnp.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _forward(qkv_ref, out_ref, *, num_heads: int):
    d = out_ref.shape[-1]
    for head in range(num_heads):
        q, k, v = (
            qkv_ref[0, :, _columns(head, part, d, num_heads)] for part in range(3)
        )
        out = _dot(_weights(q, k).astype(v.dtype), v, _USUAL)
        out_ref[0, :, _columns(head, 0, d, num_heads)] = out.astype(out_ref.dtype)


def _backward(qkv_ref, g_ref, dqkv_ref, *, num_heads: int):
    d = g_ref.shape[-1]
    for head in range(num_heads):
        columns = [_columns(head, part, d, num_heads) for part in range(3)]
        q, k, v = (qkv_ref[0, :, where] for where in columns)
        g = g_ref[0, :, columns[0]]
        weights = _weights(q, k)
        dweights = _dot(g, v, _COLUMNS)
        mean = (weights * dweights).sum(-1, keepdims=True)
        dlogits = weights * (dweights - mean) * q.shape[-1] ** -0.5
        dlogits = dlogits.astype(q.dtype)
        gradients = (
            _dot(dlogits, k, _USUAL),
            _dot(dlogits, q, _ROWS),
            _dot(weights.astype(g.dtype), g, _ROWS),
        )
        for where, gradient in zip(columns, gradients, strict=True):
            dqkv_ref[0, :, where] = gradient.astype(dqkv_ref.dtype)
