import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from timm.loss import BinaryCrossEntropy

from deit_jax.distillation import losses
from deit_jax.distillation.teacher import Answers
from deit_jax.errors import InputError

B, C = 16, 10
SETTINGS = {
    "kind": "soft",
    "head": "token",
    "alpha": 0.3,
    "tau": 3.0,
    "reduction": "batchmean",
}


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    logits = [rng.normal(0, 4, (B, C)).astype(np.float32) for _ in range(3)]
    return *logits, rng.integers(0, C, B)


def total(logits, targets, teacher, **changes):
    out = losses.training_loss(
        logits, targets, Answers(teacher), **(SETTINGS | changes)
    )
    return {name: float(value.mean()) for name, value in out.items()}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(batch, smoothing):
    student, _, _, labels = batch
    targets = losses.smooth_labels(jnp.asarray(labels), C, smoothing)
    expected = F.cross_entropy(
        torch.tensor(student), torch.tensor(labels), label_smoothing=smoothing
    )
    assert losses.cross_entropy(student, targets).mean() == pytest.approx(
        expected.item(), abs=1e-6
    )


@pytest.mark.parametrize("tau", [1.0, 3.0])
@pytest.mark.parametrize(
    ("reduction", "torchs"), [("batchmean", "batchmean"), ("numel", "sum")]
)
def test_soft_distillation_is_torchs(batch, tau, reduction, torchs):
    student, _, teacher, labels = batch
    expected = (
        F.kl_div(
            F.log_softmax(torch.tensor(student) / tau, dim=1),
            F.log_softmax(torch.tensor(teacher) / tau, dim=1),
            reduction=torchs,
            log_target=True,
        )
        * tau**2
    )
    if reduction == "numel":  # as facebookresearch/deit, losses.py
        expected = expected / (B * C)
    targets = jax.nn.one_hot(labels, C)
    logits = {"class": jnp.zeros((B, C)), "distill": student}
    got = total(logits, targets, teacher, tau=tau, reduction=reduction)
    assert got["loss_distill"] == pytest.approx(expected.item(), abs=1e-6)
    assert got["loss"] == pytest.approx(
        0.7 * np.log(C) + 0.3 * expected.item(), abs=1e-6
    )


def test_hard_distillation_is_torchs(batch):
    student, _, teacher, labels = batch
    expected = F.cross_entropy(
        torch.tensor(student), torch.tensor(teacher).argmax(dim=1)
    )
    logits = {"class": jnp.zeros((B, C)), "distill": student}
    got = total(logits, jax.nn.one_hot(labels, C), teacher, kind="hard")
    assert got["loss_distill"] == pytest.approx(expected.item(), abs=1e-6)


def test_cosine_distillation_is_torchs(batch):
    student, _, teacher, labels = batch
    expected = 1 - F.cosine_similarity(
        F.softmax(torch.tensor(student) / 3, dim=1),
        F.softmax(torch.tensor(teacher) / 3, dim=1),
    )
    logits = {"class": jnp.zeros((B, C)), "distill": student}
    got = total(logits, jax.nn.one_hot(labels, C), teacher, kind="cosine")
    assert got["loss_distill"] == pytest.approx(expected.mean().item(), abs=1e-6)


def test_gradient_of_soft_distillation_is_torchs(batch):
    student, _, teacher, _ = batch
    leaf = torch.tensor(student, requires_grad=True)
    F.kl_div(
        F.log_softmax(leaf / 3, dim=1),
        F.log_softmax(torch.tensor(teacher) / 3, dim=1),
        reduction="batchmean",
        log_target=True,
    ).mul(9).backward()
    gradient = jax.grad(lambda s: losses.soft_distillation(s, teacher, 3.0).mean())
    np.testing.assert_allclose(gradient(student), leaf.grad.numpy(), atol=1e-6)


@pytest.mark.parametrize("threshold", [None, 0.0, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "mixed"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_bce_and_its_gradient_are_timms(batch, threshold, smoothing, mixed, reduction):
    student, _, _, labels = batch
    targets = losses.smooth_labels(jnp.asarray(labels), C, smoothing)
    if mixed:
        share = np.random.default_rng(1).uniform(size=(B, 1)).astype(np.float32)
        targets = share * targets + (1 - share) * targets[::-1]
    leaf = torch.tensor(student, requires_grad=True)
    reference = BinaryCrossEntropy(
        target_threshold=threshold, sum_classes=reduction == "sum"
    )(leaf, torch.tensor(np.asarray(targets)))
    reference.backward()

    def ours(logits):
        return losses.binary_cross_entropy(
            logits, targets, threshold=threshold, reduction=reduction
        ).mean()

    value, gradient = jax.value_and_grad(ours)(student)
    assert value == pytest.approx(reference.item(), rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", sorted({*losses.KINDS} - {"features"}))
def test_every_distillation_takes_bce_in_place_of_the_cross_entropy(batch, kind):
    student, other, teacher, labels = batch
    logits, targets = {"class": student, "distill": other}, jax.nn.one_hot(labels, C)
    ce = total(logits, targets, teacher, kind=kind)
    bce = total(logits, targets, teacher, kind=kind, label_kind="bce")
    expected = losses.binary_cross_entropy(student, targets).mean()
    assert bce["loss_bce"] == pytest.approx(float(expected))
    assert bce.keys() - ce.keys() == {"loss_bce"}
    assert ce.get("loss_distill") == bce.get("loss_distill")
    share = 1.0 if kind == "none" else 0.7
    difference = share * (ce["loss_ce"] - bce["loss_bce"])
    assert ce["loss"] - bce["loss"] == pytest.approx(difference, abs=1e-6)


@pytest.mark.parametrize("label_kind", losses.LABEL_KINDS)
def test_class_weights_scale_the_loss_of_the_labels_alone(batch, label_kind):
    student, other, teacher, labels = batch
    weights = np.linspace(0.5, 2, C, dtype=np.float32)
    logits, targets = {"class": student, "distill": other}, jax.nn.one_hot(labels, C)
    plain, weighted = (
        losses.training_loss(
            logits,
            targets,
            Answers(teacher),
            label_kind=label_kind,
            class_weights=given,
            **SETTINGS,
        )
        for given in (None, weights)
    )
    name = "loss_ce" if label_kind == "softmax" else "loss_bce"
    np.testing.assert_allclose(weighted[name], plain[name] * weights[labels], rtol=1e-6)
    np.testing.assert_array_equal(weighted["loss_distill"], plain["loss_distill"])
    if label_kind == "softmax":
        torchs = F.cross_entropy(
            torch.tensor(student),
            torch.tensor(labels),
            weight=torch.tensor(weights),
            reduction="none",
        )
        np.testing.assert_allclose(weighted[name], torchs.numpy(), rtol=1e-6)


def test_balanced_weights_are_scikit_learns_and_have_mean_one():
    labels = np.repeat(np.arange(5), [1, 2, 4, 30, 63])
    weights = losses.balanced_weights(labels, 5)
    expected = compute_class_weight("balanced", classes=np.arange(5), y=labels)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1)
    # A class without images changes nothing for the others.
    np.testing.assert_array_equal(losses.balanced_weights(labels, 6), [*weights, 0])


def test_head_says_what_the_teacher_teaches(batch):
    student, other, teacher, labels = batch
    targets = jax.nn.one_hot(labels, C)
    logits = {"class": student, "distill": other}
    token = total(logits, targets, teacher, head="token")
    usual = total(logits, targets, teacher, head="class")
    assert token["loss_ce"] == usual["loss_ce"]
    assert token["loss_distill"] == pytest.approx(
        float(losses.soft_distillation(other, teacher, 3.0).mean())
    )
    assert usual["loss_distill"] == pytest.approx(
        float(losses.soft_distillation(student, teacher, 3.0).mean())
    )


def test_none_is_the_plain_cross_entropy(batch):
    student, _, _, labels = batch
    got = total({"class": student}, jax.nn.one_hot(labels, C), None, kind="none")
    assert got["loss"] == got["loss_ce"]
    assert set(got) == {"loss", "loss_ce"}


def test_float16_teacher_logits_are_computed_in_float32(batch):
    student, _, teacher, _ = batch
    teacher = (teacher * 1000).astype(np.float16)  # exp overflows float16
    assert np.isfinite(losses.soft_distillation(student, teacher, 1.0)).all()


@pytest.mark.parametrize(
    ("kind", "head", "heads", "message"),
    [
        ("soft", "token", ("class",), "needs a model with a distillation token"),
        ("none", "token", ("class", "distill"), "which nothing would train"),
        ("soft", "token", ("class", "distill"), None),
        ("soft", "class", ("class",), None),
        ("none", "token", ("class",), None),
    ],
)
def test_a_distillation_needs_its_head_and_a_head_its_distillation(
    kind, head, heads, message
):
    settings = {"kind": kind, "head": head, "student_heads": heads, "variant": "deit"}
    if message is None:
        losses.check_heads(**settings)
        return
    with pytest.raises(InputError, match=message):
        losses.check_heads(**settings)


def test_a_linear_teacher_mixes_probabilities_at_the_temperature():
    rng = np.random.default_rng(4)
    own, other = rng.normal(0, 4, (2, 5, 7)).astype(np.float16)
    weight = np.array([0.0, 0.25, 0.5, 0.9, 1.0], np.float32)
    tau = 3.0
    mixed = losses.mix_teacher_logits(own, other, weight, tau=tau)
    p, q = (jax.nn.softmax(x.astype(np.float32) / tau) for x in (own, other))
    expected = weight[:, None] * p + (1 - weight[:, None]) * q
    np.testing.assert_allclose(jax.nn.softmax(mixed / tau), expected, atol=1e-6)
    assert np.isfinite(mixed).all(), "with a weight of 0 or 1 too"
    swapped = losses.mix_teacher_logits(other, own, 1 - weight, tau=tau)
    np.testing.assert_allclose(mixed, swapped, atol=1e-4)
