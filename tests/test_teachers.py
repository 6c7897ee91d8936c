"""Teachers that run in JAX: opened, and asked for logits."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import run_directories

from deit_jax import teachers, trained_model
from deit_jax.data import sources
from deit_jax.distillation import teacher as jax_teacher
from deit_jax.distillation.teacher import average, match_classes
from deit_jax.errors import InputError
from deit_jax.models import convnets
from deit_jax.models.params import abstract_params
from deit_jax.weights import download, tensor_files, timm, torchvision

# Images of one size, so that every size compiles once.
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    run_directories.make(workdir)
    return workdir


def answers(teacher):
    return jax.jit(functools.partial(jax_teacher.answers, teacher))(
        teacher.params, IMAGES
    ).logits


@pytest.mark.slow
def test_a_run_answers_with_the_mean_of_its_heads(run):
    teacher = teachers.open_teacher(run)
    found = answers(teacher)
    expected = trained_model.load(run).logits(IMAGES)["mean"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert teacher.class_names == run_directories.DIGITS
    assert teacher.sha256 == teachers.open_teacher(run, dtype="bfloat16").sha256


def test_a_run_in_bfloat16_is_near(run):
    teacher = teachers.open_teacher(run, dtype="bfloat16")
    found = answers(teacher)
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
    np.testing.assert_array_equal(answers(turned), answers(teacher)[:, ::-1])


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


# Files


def weights_of(arch, num_classes=10):
    """A state dict with torchvision's names, of a network that is near nothing."""
    module = convnets.create(arch, num_classes=num_classes)
    rng = np.random.default_rng(0)
    return {
        name: np.abs(rng.standard_normal(x.shape)).astype(x.dtype) / 10
        for name, x in torchvision._state_dict(abstract_params(module, 32)).items()
    }


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    path = tmp_path_factory.mktemp("bare") / "weights.safetensors"
    tensor_files.write_safetensors(path, weights_of("resnet18"))
    return path


def describe(path, **about):
    config = {"architecture": "resnet18", "pretrained_cfg": about}
    path.with_name("config.json").write_text(json.dumps(config))


def test_a_file_is_described_by_what_is_given_or_by_a_config_beside_it(bare, tmp_path):
    given = teachers.open_teacher(bare, arch="resnet18", image_size=48)
    path = Path(shutil.copy(bare, tmp_path))
    describe(path, input_size=[3, 48, 48], mean=[0.1] * 3, label_names=list("abc"))
    found = teachers.open_teacher(path)
    assert found.sha256 == given.sha256
    assert (given.image_size, found.image_size) == (48, 48)
    assert (given.mean[0], found.mean[0]) == (0.485, 0.1)
    assert (given.class_names, found.class_names) == (None, tuple("abc"))
    assert teachers.open_teacher(path, image_size=64).image_size == 64


def test_a_vit_of_timm_or_the_hub_is_a_teacher(run, tmp_path, monkeypatch):
    ours = teachers.open_teacher(run)
    path = tmp_path / "model.safetensors"
    tensor_files.write_safetensors(path, timm.from_flax(ours.params))
    monkeypatch.setattr(
        download, "hugging_face_directory", lambda name, configs: tmp_path / name
    )
    for spec in (path, tmp_path, "hf:."):
        found = teachers.open_teacher(spec)
        assert found.sha256 == ours.sha256
        assert found.arch == "deit_nano_distilled_patch8_32"
        assert found.class_names is None  # the file only numbers them


def test_a_network_of_timm_has_the_data_sets_classes(monkeypatch):
    tensors = weights_of("resnet18", 1000)
    config = {
        "architecture": "resnet18",
        "label_names": ["tench"] * 1000,
        "pretrained_cfg": {"input_size": (3, 288, 288), "crop_pct": 0.95},
    }
    monkeypatch.setattr(
        download,
        "timm_model",
        lambda name: (tensor_files.arrays(tensors), config),
    )
    found = teachers.open_teacher("timm:resnet18.a1_in1k")
    assert (found.image_size, found.crop_ratio) == (288, 0.95)
    assert (found.num_classes, found.class_names) == (1000, None)


def wide(tmp_path):
    path = tmp_path / "wide.safetensors"
    tensors = weights_of("resnet18") | {"conv1.weight": np.zeros((65, 3, 7, 7))}
    tensor_files.write_safetensors(path, tensors)
    return path


GIVEN = {"arch": "resnet18", "image_size": 32}


@pytest.mark.parametrize(
    ("spec", "given", "message"),
    [
        ("nowhere", {}, "there is no teacher nowhere. Expected a run directory"),
        ("bare", {}, "is a bare state dict: say what it was trained as, with --arch"),
        ("bare", {"arch": "resnet18"}, "is a bare state dict"),
        ("bare", GIVEN | {"arch": "vgg11"}, "vgg11 does not run in JAX.*backend=torch"),
        ("bare", GIVEN | {"arch": "resnet34"}, "not quite those of resnet34"),
        ("bare", GIVEN | {"arch": "regnet_y_400mf"}, "not quite|holds no regnet_y"),
        ("wide", GIVEN, r"conv1.weight: \(65, 3, 7, 7\), expected \(64, 3, 7, 7\)"),
        ("run", GIVEN, "is a run directory, which says what it is.*Leave --arch out"),
        ("empty", {}, "has no teacher.pt or model.safetensors"),
        ("broken", {}, "config.json is damaged"),
    ],
)
def test_what_is_no_teacher_is_refused(
    bare, run, tmp_path, monkeypatch, spec, given, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    if spec == "broken":
        bare = Path(shutil.copy(bare, tmp_path))
        bare.with_name("config.json").write_text("{")
    paths = {"bare": bare, "broken": bare, "run": run, "wide": wide(tmp_path)}
    with pytest.raises(InputError, match=f"(?s){message}"):
        teachers.open_teacher(paths.get(spec, spec), **given)
