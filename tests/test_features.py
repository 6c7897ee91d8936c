"""Distillation of features: the loss of torch, and a projector that stays behind."""

import caches
import jax
import numpy as np
import pytest
import run_directories
import same_run
import torch
from steps import stopped_after
from torch.nn import functional as F

import deit_jax
from configs import deit
from deit_jax import experiment
from deit_jax.data import sources
from deit_jax.distillation import features, losses, teacher_cache
from deit_jax.distillation.teacher import Answers
from deit_jax.errors import InputError
from deit_jax.models.params import abstract_params, count_parameters
from deit_jax.train import train_and_evaluate
from deit_jax.training import saved_params, writers

pytestmark = pytest.mark.usefixtures("small_nano")

B, C = 24, 10
WIDTHS = {"a wider teacher": (48, 80), "a wider student": (80, 48)}


def arrays(width, teacher_width):
    rng = np.random.default_rng(0)
    shapes = {
        "student": (B, width),
        "teacher": (B, teacher_width),
        "basis": (width, teacher_width),
    }
    return {k: rng.normal(1, 2, s).astype(np.float32) for k, s in shapes.items()}


def torchs_distance(student, teacher, basis, kind):
    """As VkD states it; Q by torch's own QR."""
    wide = basis.shape[0] <= basis.shape[1]
    q, r = torch.linalg.qr(basis.T if wide else basis)
    q = q * torch.sign(torch.diagonal(r))
    projected = student @ (q.T if wide else q)
    teacher = F.layer_norm(teacher, teacher.shape[-1:], eps=1e-6)
    if kind == "cosine":
        return 1 - F.cosine_similarity(projected, teacher)
    return F.smooth_l1_loss(projected, teacher, reduction="none").mean(dim=1)


@pytest.mark.parametrize("kind", features.DISTANCES)
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
def test_loss_and_gradient_are_torchs(widths, kind):
    given = arrays(*widths)

    def ours(student, basis):
        distances = features.distance(student, given["teacher"], {"basis": basis}, kind)
        return distances.mean(), distances

    (_, found), gradients = jax.value_and_grad(ours, (0, 1), has_aux=True)(
        given["student"], given["basis"]
    )
    tensors = {k: torch.tensor(v, requires_grad=True) for k, v in given.items()}
    expected = torchs_distance(**tensors, kind=kind)
    expected.mean().backward()
    np.testing.assert_allclose(found, expected.detach(), atol=1e-6)
    for name, gradient in zip(("student", "basis"), gradients, strict=True):
        np.testing.assert_allclose(gradient, tensors[name].grad, atol=1e-6)
        assert np.abs(gradient).max() > 1e-4, name


@pytest.mark.parametrize("read", features.STUDENT)
@pytest.mark.parametrize("head", losses.HEADS)
def test_the_loss_is_that_of_the_logits_and_a_weight_of_the_features(head, read):
    given, rng = arrays(48, 80), np.random.default_rng(1)
    names = ("class_token", "distill_token", "patch_mean")
    outputs = {
        "class": rng.normal(size=(B, C)),
        "distill": rng.normal(size=(B, C)),
    } | {name: rng.normal(size=(B, 48)).astype(np.float32) for name in names}
    teacher = Answers(rng.normal(size=(B, C)), given["teacher"])
    targets = jax.nn.one_hot(rng.integers(0, C, B), C)
    projector = {"basis": given["basis"]}
    fixed = {"head": head, "alpha": 0.3, "tau": 2.0, "reduction": "batchmean"}
    soft = losses.training_loss(outputs, targets, teacher, kind="soft", **fixed)
    found = losses.training_loss(
        outputs,
        targets,
        teacher,
        projector,
        kind="features",
        features_weight=0.7,
        features_student=read,
        **fixed,
    )
    token = {"token": "distill_token", "class": "class_token"}[head]
    student = outputs["patch_mean" if read == "mean" else token]
    expected = torchs_distance(
        *map(torch.tensor, (student, given["teacher"], given["basis"])), "cosine"
    )
    np.testing.assert_allclose(found["loss_features"], expected, atol=1e-6)
    np.testing.assert_allclose(
        found["loss"], soft["loss"] + 0.7 * found["loss_features"], rtol=1e-6
    )


@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
def test_the_projection_is_orthogonal_whatever_the_matrix_is(widths):
    given = arrays(*widths)
    q = features.project(np.eye(widths[0]), {"basis": given["basis"]})
    product = q @ q.T if widths[0] <= widths[1] else q.T @ q
    np.testing.assert_allclose(product, np.eye(min(widths)), atol=1e-5)
    fresh = features.init_projector(0, *widths)
    q = features.project(np.eye(widths[0]), fresh)
    np.testing.assert_allclose(q, fresh["basis"], atol=1e-5)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Untrained, of 24 px and two tokens."""
    path = tmp_path_factory.mktemp("teacher") / "one"
    run_directories.make(path, image_size=24)
    return path


def make_config(teacher, **fields):
    """Five epochs of four steps, taught live."""
    config = deit.get_config("digits")
    config.dataset.train_split, config.dataset.eval_split = "train[:128]", "test[:50]"
    config.epochs, config.schedule.warmup_epochs = 5.0, 0.0
    config.eval.every_epochs, config.log.every_steps = 0.0, 1
    config.checkpoint.every_steps = 4
    config.distillation.update(
        kind="features",
        source="live",
        teacher=str(teacher),
        allow_weak_teacher=True,
    )
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.slow
def test_a_run_learns_features_resumes_and_leaves_its_projector_behind(
    teacher, tmp_path, capsys
):
    config = make_config(teacher)
    summary = train_and_evaluate(config, tmp_path / "whole")
    name = "train/loss_features"
    rows = [row[name] for row in writers.read(tmp_path / "whole") if name in row]
    assert len(rows) == 20
    assert np.mean(rows[-4:]) < np.mean(rows[:4]) - 0.05
    assert "its 24 features too: cosine distance" in capsys.readouterr().out
    with stopped_after(6), pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config, tmp_path / "parts")
    assert train_and_evaluate(config, tmp_path / "parts")["resumed_at_step"] == 4
    assert not same_run.differences(tmp_path / "whole", tmp_path / "parts")

    state = same_run.final_state(tmp_path / "whole")
    assert state["params"]["projector"]["basis"].shape == (24, 24)
    model = deit_jax.load(tmp_path / "whole")
    assert model.logits(np.zeros((1, 32, 32, 3), np.uint8))["mean"].shape == (1, 10)
    plain = abstract_params(model.card.create_model())
    params, _ = saved_params.load_params(tmp_path / "whole", model.card.create_model())
    assert jax.tree.structure(params) == jax.tree.structure(plain)
    assert summary["parameters"] == count_parameters(plain)
    config.init_from = str(tmp_path / "whole")
    config.epochs = 1.0
    train_and_evaluate(config, tmp_path / "tuned")
    assert "starts from" in capsys.readouterr().out


@pytest.mark.slow
def test_the_projector_is_trained_whatever_else_is_frozen(teacher):
    config = make_config(teacher, **{"optimizer.trainable": "heads"})
    run = experiment.create(config, devices=jax.devices()[:1])
    moments = run.initial_state().opt_state
    shapes = {leaf.shape for leaf in jax.tree.leaves(moments)}
    assert (24, 24) in shapes
    assert (24, 72) not in shapes


def test_features_that_are_not_there_are_refused(teacher, tmp_path):
    digits = sources.load("digits", "train[:30]")
    caches.write(tmp_path / "cache", digits)
    with pytest.raises(InputError, match="has logits alone, and distillation"):
        teacher_cache.open_cache(tmp_path / "cache", features=True)
    config = make_config(f"{teacher},{teacher}")
    with pytest.raises(InputError, match="features' with 2 teachers: their features"):
        experiment.create(config, devices=jax.devices()[:1])


def test_a_cache_with_features_serves_other_kinds_too(tmp_path):
    digits = sources.load("digits", "train[:30]")
    rng = np.random.default_rng(0)
    answers = Answers(rng.normal(size=(30, 10)), rng.normal(size=(30, 7)))
    manifest = caches.manifest_for(
        digits, logits={"top_k": None, "tau": None, "features": 7}, top1=1.0
    )
    writer = caches.cache_writer.ViewWriter(tmp_path, 0, manifest, top1=[1.0])
    writer.append(answers, np.arange(30))
    writer.finish()
    caches.cache_writer.finish(tmp_path, manifest, None)
    index = np.array([4, 2])
    for asked in (False, True):
        cache = teacher_cache.open_cache(tmp_path, features=asked)
        assert cache.num_features == (7 if asked else 0)
        assert cache.bytes == 30 * 2 * 17
        found = cache.batch(np.zeros(2, int), index)
        np.testing.assert_allclose(found.logits, answers.logits[index], atol=2e-3)
        assert (found.features is not None) == asked
    np.testing.assert_allclose(found.features, answers.features[index], atol=2e-3)
    stored = cache.rows(np.zeros(2, int), index)
    moved = Answers(answers.logits[index], answers.features[index] + 0.5)
    assert cache.encoding.compare(stored, moved)[0] > 0.4
