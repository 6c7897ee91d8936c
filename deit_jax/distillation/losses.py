"""Losses of a distilled student (Touvron et al. 2020, section 4).

Everything is computed per example in float32; the caller masks and averages. Logits
are [B, C], targets are distributions [B, C], so that smoothed and mixed labels need no
second path.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from deit_jax.distillation import features
from deit_jax.distillation.teacher import Answers
from deit_jax.errors import InputError

KINDS = ("none", "soft", "hard", "cosine", "features")
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


def label_loss(
    logits: Float[Array, "b c"],
    targets: Float[Array, "b c"],
    *,
    label_kind: str = "softmax",
    bce_threshold: float | None = None,
    bce_reduction: str = "mean",
    class_weights: Float[np.ndarray, " c"] | None = None,
) -> Float[Array, " b"]:
    """`cross_entropy`, or with `bce` `binary_cross_entropy`.

    Args:
      bce_threshold, bce_reduction: Of `binary_cross_entropy`.
      class_weights: Factors; an example has the mean of those of its targets.
    """
    if label_kind == "bce":
        loss = binary_cross_entropy(
            logits, targets, threshold=bce_threshold, reduction=bce_reduction
        )
    else:
        loss = cross_entropy(logits, targets)
    if class_weights is not None:
        loss = loss * (targets * class_weights[None]).sum(axis=-1)
    return loss


def distillation_loss(
    kind: str, student: Float[Array, "b c"], teacher: Float[Array, "b c"], tau: float
) -> Float[Array, " b"]:
    """Between two models' logits; that of `features` is `soft`."""
    match kind:
        case "soft" | "features":
            return soft_distillation(student, teacher, tau)
        case "hard":
            return hard_distillation(student, teacher)
        case "cosine":
            return cosine_distillation(student, teacher, tau)
    raise ValueError(f"unknown {kind=}; known: {KINDS}")


def training_loss(
    outputs: dict[str, Float[Array, "b ..."]],
    targets: Float[Array, "b c"],
    teacher: Answers | None,
    projector: dict | None = None,
    *,
    kind: str,
    head: str,
    alpha: float,
    tau: float,
    reduction: str,
    features_weight: float = 1.0,
    features_distance: str = "cosine",
    features_student: str = "token",
    **labels,
) -> dict[str, Float[Array, " b"]]:
    """(1 - alpha) L(class head, targets) + alpha D(student head, teacher).

    Args:
      outputs: The student's logits, `class` and, with the token, `distill`; and with a
        projector what `VisionTransformer` sows.
      targets: Label distributions.
      teacher: None only for `kind="none"`, which leaves L alone, unscaled.
      projector: Of `features.project`, for `kind="features"`: this adds
        `features_weight` times the `features_distance` between the features of the
        teacher and those of the student, the head's token or the `mean` of its patches.
      head: `token` compares the distillation head with the teacher (DeiT), `class` the
        class head (the paper's "usual distillation", table 3).
      reduction: `batchmean` sums D over the classes, as the equation says; `numel`
        divides it by C on top, which is what facebookresearch/deit computes for `soft`
        (its sum is divided by B * C).
      labels: Of `label_loss`, which is L. D does not depend on them.

    Returns:
      Per example: `loss` and its unscaled pieces, `loss_ce` or `loss_bce`,
      `loss_distill` and `loss_features`.
    """
    of_labels = label_loss(outputs["class"], targets, **labels)
    pieces = {"loss_bce" if labels.get("label_kind") == "bce" else "loss_ce": of_labels}
    if kind == "none":
        return {"loss": of_labels} | pieces
    token = "distill" if head == "token" else "class"
    distill = distillation_loss(kind, outputs[token], teacher.logits, tau)
    if reduction == "numel":
        distill = distill / targets.shape[-1]
    pieces["loss_distill"] = distill
    loss = (1 - alpha) * of_labels + alpha * distill
    if kind == "features":
        read = "patch_mean" if features_student == "mean" else f"{token}_token"
        pieces["loss_features"] = features.distance(
            outputs[read], teacher.features, projector, features_distance
        )
        loss = loss + features_weight * pieces["loss_features"]
    return {"loss": loss} | pieces
