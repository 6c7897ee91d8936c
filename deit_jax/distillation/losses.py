"""Losses of a distilled student (Touvron et al. 2020, section 4).

Everything is computed per example in float32; the caller masks and averages. Logits
are [B, C], targets are distributions [B, C], so that smoothed and mixed labels need no
second path.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from deit_jax.errors import InputError

KINDS = ("none", "soft", "hard", "cosine")
HEADS = ("token", "class")
REDUCTIONS = ("batchmean", "numel")
LABEL_KINDS = ("softmax", "bce")
BCE_REDUCTIONS = ("mean", "sum")
CLASS_WEIGHTS = ("none", "balanced")


def smooth_labels(
    labels: Int[Array, " b"], num_classes: int, smoothing: float
) -> Float[Array, "b c"]:
    """One-hot targets with `smoothing` spread over all classes, the true one included.

    As in Szegedy et al. 2016 (section 7), and torch's `label_smoothing`.
    """
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), smoothing)


def cross_entropy(
    logits: Float[Array, "b c"], targets: Float[Array, "b c"]
) -> Float[Array, " b"]:
    """-sum_c target_c log softmax(logits)_c."""
    return optax.losses.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def binary_cross_entropy(
    logits: Float[Array, "b c"],
    targets: Float[Array, "b c"],
    *,
    threshold: float | None = None,
    reduction: str = "mean",
) -> Float[Array, " b"]:
    """A yes or no for each class, as timm's `BinaryCrossEntropy` (arXiv 2110.00476).

    Args:
      targets: Label distributions, smoothed and mixed already.
      threshold: A target above it becomes 1, any other 0; None takes them as they are.
        facebookresearch/deit has 0 with `--bce-loss` (engine.py), so that both labels
        of a mixed image count whole.
      reduction: Over the classes: `mean`, as there and timm's default, or `sum`
        (timm's `--bce-sum`).
    """
    if threshold is not None:
        targets = (targets > threshold).astype(jnp.float32)
    each = optax.losses.sigmoid_binary_cross_entropy(
        logits.astype(jnp.float32), targets
    )
    return each.mean(axis=-1) if reduction == "mean" else each.sum(axis=-1)


def balanced_weights(
    labels: Int[np.ndarray, " n"], num_classes: int
) -> Float[np.ndarray, " c"]:
    """Weights of the classes, inverse to their number of images.

    scikit-learn's `balanced`: their mean over the images is 1, and a class has the same
    weight in all as any other. A class without images has 0.
    """
    counts = np.bincount(labels, minlength=num_classes)
    shares = np.count_nonzero(counts) * np.maximum(counts, 1)
    return np.where(counts, len(labels) / shares, 0).astype(np.float32)


def soft_distillation(
    student: Float[Array, "b c"], teacher: Float[Array, "b c"], tau: float
) -> Float[Array, " b"]:
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)), eq. 2 of the paper.

    tau^2 keeps the size of the gradient independent of tau (Hinton et al. 2015).
    """
    student = jax.nn.log_softmax(student.astype(jnp.float32) / tau)
    teacher = jax.nn.log_softmax(teacher.astype(jnp.float32) / tau)
    return tau**2 * optax.losses.kl_divergence_with_log_targets(student, teacher)


def hard_distillation(
    student: Float[Array, "b c"], teacher: Float[Array, "b c"]
) -> Float[Array, " b"]:
    """Cross-entropy with the teacher's decision as the label, eq. 3 of the paper."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(
        student.astype(jnp.float32), jnp.argmax(teacher, axis=-1)
    )


def cosine_distillation(
    student: Float[Array, "b c"], teacher: Float[Array, "b c"], tau: float
) -> Float[Array, " b"]:
    """1 - cos(softmax(student / tau), softmax(teacher / tau)), in 0 .. 1."""
    student = jax.nn.softmax(student.astype(jnp.float32) / tau)
    teacher = jax.nn.softmax(teacher.astype(jnp.float32) / tau)
    return optax.losses.cosine_distance(student, teacher)


def teacher_temperature(kind: str, tau: float) -> float:
    """At which the teacher's answers are used: a decision (`hard`) is taken at 1."""
    return 1.0 if kind == "hard" else tau


def mix_teacher_logits(
    teacher: Float[Array, "b c"],
    partner: Float[Array, "b c"],
    weight: Float[Array, " b"],
    *,
    tau: float,
) -> Float[Array, "b c"]:
    """What a teacher would say of mixed images if it were linear.

    Args:
      teacher: Logits of the unmixed images.
      partner: Of their partners.
      weight: The share of each image in its mix, 0 .. 1.
      tau: Temperature of the loss: its softmax of the result is the mixture of the two
        images' softmax.
    """
    own, other = (
        jax.nn.log_softmax(logits.astype(jnp.float32) / tau)
        for logits in (teacher, partner)
    )
    weight = weight[:, None]
    return tau * jnp.logaddexp(jnp.log(weight) + own, jnp.log1p(-weight) + other)


def check_heads(
    *, kind: str, head: str, student_heads: tuple[str, ...], variant: str
) -> None:
    """Refuses a distillation that the student has no head for, and the reverse.

    Args:
      student_heads: `("class",)` or `("class", "distill")`.
      variant: The model's name, for the message.
    """
    if kind != "none" and head == "token" and "distill" not in student_heads:
        raise InputError(
            f"distillation.head='token' needs a model with a distillation token, and "
            f"{variant} has none. Take its _distilled_ variant, set "
            "--config.distillation.head=class (the paper's usual distillation), or "
            "--config.distillation.kind=none."
        )
    if kind == "none" and "distill" in student_heads:
        raise InputError(
            f"{variant} has a distillation head, which nothing would train with "
            "distillation.kind='none'. Take a variant without _distilled_, or "
            "another kind."
        )


def training_loss(
    logits: dict[str, Float[Array, "b c"]],
    targets: Float[Array, "b c"],
    teacher_logits: Float[Array, "b c"] | None,
    *,
    kind: str,
    head: str,
    alpha: float,
    tau: float,
    reduction: str,
    label_kind: str = "softmax",
    bce_threshold: float | None = None,
    bce_reduction: str = "mean",
    class_weights: Float[np.ndarray, " c"] | None = None,
) -> dict[str, Float[Array, " b"]]:
    """(1 - alpha) L(class head, targets) + alpha D(student head, teacher).

    Args:
      logits: The student's heads, `class` and, with the token, `distill`.
      targets: Label distributions.
      teacher_logits: None only for `kind="none"`.
      kind: D is `soft` (with its factor tau^2), `hard` or `cosine`; `none` leaves L
        alone, unscaled.
      head: `token` compares the distillation head with the teacher (DeiT), `class` the
        class head (the paper's "usual distillation", table 3).
      alpha: Weight of D, 0 .. 1.
      tau: Temperature of `soft` and `cosine`.
      reduction: `batchmean` sums D over the classes, as the equation says; `numel`
        divides it by C on top, which is what facebookresearch/deit computes for `soft`
        (its sum is divided by B * C).
      label_kind: L is `softmax` (cross-entropy) or `bce`, which
        `binary_cross_entropy` computes with the two arguments that follow. D stays as
        it is, as in facebookresearch/deit.
      class_weights: Factors on L: an example has the mean of those of its targets.

    Returns:
      Per example: `loss` and its unscaled pieces, `loss_ce` or `loss_bce`, and
      `loss_distill`.
    """
    name, labels = "loss_ce", cross_entropy
    if label_kind == "bce":
        name = "loss_bce"
        labels = functools.partial(
            binary_cross_entropy, threshold=bce_threshold, reduction=bce_reduction
        )
    label_loss = labels(logits["class"], targets)
    if class_weights is not None:
        label_loss = label_loss * (targets * class_weights[None]).sum(axis=-1)
    if kind == "none":
        return {"loss": label_loss, name: label_loss}
    student = logits["distill" if head == "token" else "class"]
    match kind:
        case "soft":
            distill = soft_distillation(student, teacher_logits, tau)
        case "hard":
            distill = hard_distillation(student, teacher_logits)
        case "cosine":
            distill = cosine_distillation(student, teacher_logits, tau)
        case _:
            raise ValueError(f"unknown {kind=}; known: {KINDS}")
    if reduction == "numel":
        distill = distill / student.shape[-1]
    loss = (1 - alpha) * label_loss + alpha * distill
    return {"loss": loss, name: label_loss, "loss_distill": distill}
