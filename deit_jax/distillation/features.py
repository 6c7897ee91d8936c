"""Distillation of a teacher's pooled features, beside its logits.

The teacher's features are what its last linear layer reads, [b, f]; the student's are a
token or the mean of its patches, [b, d]. An orthogonal projection takes these to those,
as in VkD (Miles et al. 2024, arXiv 2403.06213, section 3.1): it keeps all angles and
lengths, so that it cannot do the student's work. It is trained with the student, as
`PROJECTOR` among its parameters, and belongs to no exported model.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from deit_jax.data.rng import Stream, stream_key

PROJECTOR = "projector"
DISTANCES = ("cosine", "smooth_l1")
# What of the student is projected: the token of the head that is compared with the
# teacher's logits, or the mean of its patches after the last block.
STUDENT = ("token", "mean")
EPSILON = 1e-6


def init_projector(seed: int, width: int, teacher_width: int) -> dict:
    """The parameters of `project` at step 0: an orthogonal matrix [width, f]."""
    init = jax.nn.initializers.orthogonal()
    key = stream_key(Stream.PROJECTOR, seed)
    return {"basis": init(key, (width, teacher_width))}


def without_projector(params: dict) -> dict:
    """The parameters of the model alone."""
    return {name: value for name, value in params.items() if name != PROJECTOR}


def project(student: Float[Array, "b d"], projector: dict) -> Float[Array, "b f"]:
    """`student` times the orthogonal factor Q of the projector's matrix.

    Where d <= f the rows of Q are orthonormal, otherwise its columns.
    """
    basis = projector["basis"]
    wide = basis.shape[0] <= basis.shape[1]
    q, r = jnp.linalg.qr(basis.T if wide else basis)
    # With R's diagonal positive, Q is a continuous function of the matrix.
    q = q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)[None]
    return student.astype(jnp.float32) @ (q.T if wide else q)


def standardise(features: Float[Array, "b f"]) -> Float[Array, "b f"]:
    """Layer norm without parameters, as VkD normalises a classifier's features."""
    return jax.nn.standardize(features.astype(jnp.float32), epsilon=EPSILON)


def distance(
    student: Float[Array, "b d"],
    teacher: Float[Array, "b f"],
    projector: dict,
    kind: str,
) -> Float[Array, " b"]:
    """Between a student's projected and a teacher's standardised features.

    `cosine` is 1 - cos, in 0 .. 2; `smooth_l1` is the mean over the features of the
    Huber loss with a threshold of 1 (torch's `smooth_l1_loss`).
    """
    projected, teacher = project(student, projector), standardise(teacher)
    if kind == "cosine":
        return optax.losses.cosine_distance(projected, teacher, epsilon=EPSILON)
    return optax.losses.huber_loss(projected, teacher).mean(axis=-1)
