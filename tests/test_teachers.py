"""Teachers that run in JAX: opened, and asked for logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import run_directories

from deit_jax import teachers, trained_model
from deit_jax.data import sources
from deit_jax.distillation import teacher as jax_teacher
from deit_jax.distillation.teacher import average, logits, match_classes

# Images of one size, so that every size compiles once.
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    run_directories.make(workdir)
    return workdir


def test_a_run_answers_with_the_mean_of_its_heads(run):
    teacher = teachers.open_teacher(run)
    found = jax.jit(lambda params: logits(teacher, params, IMAGES))(teacher.params)
    expected = trained_model.load(run).logits(IMAGES)["mean"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert teacher.class_names == run_directories.DIGITS
    assert teacher.sha256 == teachers.open_teacher(run, dtype="bfloat16").sha256


def test_a_run_in_bfloat16_is_near(run):
    teacher = teachers.open_teacher(run, dtype="bfloat16")
    found = logits(teacher, teacher.params, IMAGES)
    expected = trained_model.load(run).logits(IMAGES)["mean"]
    assert found.dtype == jnp.float32
    assert 0 < np.abs(found - expected).max() < 0.1


def test_classes_are_put_into_the_order_of_the_data(run):
    source = sources.load("digits", "train[:8]")
    teacher = teachers.open_teacher(run)
    assert match_classes(teacher, source)[0].columns is None
    names = tuple(reversed(teacher.class_names))
    turned, words = match_classes(
        dataclasses.replace(teacher, class_names=names), source
    )
    assert "order of digits by name" in words
    np.testing.assert_array_equal(
        logits(turned, teacher.params, IMAGES),
        logits(teacher, teacher.params, IMAGES)[:, ::-1],
    )


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_several_teachers_give_the_mean_of_their_probabilities(tau):
    three = jax.random.normal(jax.random.key(0), (3, 5, 7)) * 4
    expected = jax.nn.softmax(three / tau).mean(0)
    found = jax.nn.softmax(average(three, tau) / tau)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(average(three[:1], tau), three[0])


@pytest.mark.parametrize(
    ("side", "size"), [(32, 32), (32, 64), (32, 75), (48, 20), (40, 32)]
)
def test_images_are_resized_as_for_torch(side, size):
    torch = pytest.importorskip("torch")
    from teacher import classifier

    images = np.random.default_rng(1).integers(0, 256, (2, side, side, 3), np.uint8)
    about = size, (0.1, 0.2, 0.3), (0.3, 0.2, 0.1)
    expected = classifier.preprocess(images, *about, torch.device("cpu"))
    found = jax_teacher.preprocess(images, *about)
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), atol=2e-5)
