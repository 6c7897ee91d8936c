"""Exports by torch and by JAX, and by several teachers."""

import dataclasses
import hashlib
import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import run_directories
from absl import flags
from absl.testing import flagsaver

from configs import deit
from deit_jax import teachers
from deit_jax.data import sources
from deit_jax.distillation import cache_format, cache_writer, teacher_cache
from deit_jax.distillation.teacher import answers as answers_of
from deit_jax.errors import InputError
from deit_jax.recipe import student_views
from deit_jax.weights import tensor_files
from teacher import accuracy, export_logits
from teacher import classifier as classifiers
from teacher import export as exporting
from teacher.export import Export
from teacher.jax_backend import JaxBackend, choose_precision
from teacher.verify import verify

ROOT = Path(__file__).parents[1]
FLOAT16 = 2e-2  # what rounding may change of these logits
BATCH = 6  # on four devices: filled up
TORCH = classifiers.TorchBackend(device="cpu")
JAX = JaxBackend("float32", BATCH)
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def train():
    return sources.load("digits", "train[:21]")


@pytest.fixture(scope="module")
def held_out():
    return sources.load("digits", "test[:12]")


@pytest.fixture(scope="module")
def seen(train):
    config = deit.get_config("digits")
    config.augment.update(mixup=0.8, cutmix=1.0)
    return student_views(config, train)


@pytest.fixture(scope="module")
def in_jax(teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    classifiers.save(path, teacher)
    return teachers.open_teacher(path)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A run directory: a teacher in JAX only."""
    path = tmp_path_factory.mktemp("run")
    run_directories.make(path)
    return teachers.open_teacher(path)


def logits_of(cache):
    return np.stack([np.load(p) for p in sorted(cache.directory.glob("view-???.npy"))])


def export(job, out):
    assert exporting.export(job, out, allow_weak_teacher=True)
    return teacher_cache.open_cache(out, tau=job.tau)


@pytest.mark.slow
def test_torch_and_jax_write_the_same_cache(
    teacher, in_jax, train, held_out, seen, tmp_path
):
    options = {"seen": seen, "num_views": 2, "batch_size": BATCH, "features": True}
    jobs = {
        "torch": Export([teacher], train, held_out, TORCH, **options),
        "jax": Export([in_jax], train, held_out, JAX, **options),
    }
    caches = {name: export(job, tmp_path / name) for name, job in jobs.items()}
    one, two = map(logits_of, caches.values())
    assert one.shape == (2, 21, 10)
    np.testing.assert_allclose(one, two, atol=FLOAT16)
    assert (one.argmax(-1) == two.argmax(-1)).mean() > 0.999
    one, two = (
        np.load(cache.directory / "view-001-features.npy") for cache in caches.values()
    )
    assert one.shape == (21, in_jax.num_features) == (21, teacher.num_features)
    np.testing.assert_allclose(one, two, atol=FLOAT16)
    assert np.ptp(one) > 0.1
    stated = [cache.manifest["teacher"] for cache in caches.values()]
    assert [about.pop("backend") for about in stated] == ["torch", "jax"]
    assert stated[0] == stated[1]
    # Each computes the other's entries again.
    for name, other in (("torch", "jax"), ("jax", "torch")):
        cache = teacher_cache.open_cache(tmp_path / other)
        assert verify(jobs[name], cache, 10)[1] < 1e-3
    # One cache is by one of them.
    message = "teacher.backend is 'torch' there and 'jax' here"
    with pytest.raises(InputError, match=message):
        exporting.export(jobs["jax"], tmp_path / "torch")


@pytest.mark.slow
def test_plain_images_are_filled_up_too(student, train, held_out, tmp_path):
    cache = export(Export([student], train, held_out, JAX, batch_size=BATCH), tmp_path)
    expected = answers_of(student, student.params, train.images).logits
    np.testing.assert_allclose(logits_of(cache)[0], expected, atol=FLOAT16)


@pytest.mark.slow
def test_several_teachers_are_averaged(
    student, train, held_out, tmp_path, tmp_path_factory, monkeypatch, capsys
):
    run_directories.make(path := tmp_path_factory.mktemp("other"), seed=1)
    names = tuple(reversed(student.class_names))
    three = [
        teachers.open_teacher(path),
        student,
        dataclasses.replace(student, class_names=names),
    ]
    job = Export(three, train, held_out, JAX, tau=3.0, batch_size=BATCH)
    cache = export(job, tmp_path)
    said = capsys.readouterr().out
    each = [JAX.answers(teacher, train.images[:BATCH]).logits for teacher in three]
    each[2] = each[2][:, ::-1]
    mean = np.mean([jax.nn.softmax(x / 3, axis=-1) for x in each], axis=0)
    stored = logits_of(cache)[0, :BATCH].astype(np.float32)
    np.testing.assert_allclose(jax.nn.softmax(stored / 3, axis=-1), mean, atol=1e-3)

    about = cache.manifest["teacher"]
    assert (about["tau"], about["arch"].count(" + ")) == (3.0, 2)
    assert [t["weights_sha256"] for t in about["teachers"]] == [t.sha256 for t in three]
    for teacher, stated in zip(three, about["teachers"], strict=True):
        [alone], _ = accuracy.evaluate([teacher], held_out, JAX, batch_size=BATCH)
        assert stated["top1"] == alone
        assert f"{teacher.arch}: top-1 {alone:.4f}" in said
    with pytest.raises(InputError, match=r"averaged at temperature 3, .* at 1\."):
        teacher_cache.open_cache(tmp_path, tau=1.0)
    assert export_logits.verified(job, tmp_path, 5, tolerance=1e-3) == 0

    # What is measured is not measured again, in a finished cache and in an unfinished.
    monkeypatch.setattr(accuracy, "evaluate", None)
    (tmp_path / "manifest.json").unlink()
    writer = cache_writer.ViewWriter(
        tmp_path,
        0,
        job.manifest(),
        [about["top1"], *(t["top1"] for t in about["teachers"])],
    )
    writer.entries_done = 21
    writer.finish()
    assert export(job, tmp_path).manifest["teacher"] == about
    export(job, tmp_path)


def test_records_of_earlier_versions_go_on(teacher, train, held_out, tmp_path):
    job = Export([teacher], train, held_out, TORCH, batch_size=BATCH)
    export(job, tmp_path / "whole")
    manifest = job.manifest()
    writer = cache_writer.ViewWriter(tmp_path / "old", 0, manifest)
    record = json.loads((tmp_path / "old/view-000.json").read_text())
    old = json.loads(json.dumps(manifest))
    del old["teacher"]["backend"]
    old["views"]["count"] = None
    text = json.dumps(old, sort_keys=True)
    assert record["identity"] == hashlib.sha256(text.encode()).hexdigest()
    assert writer.entries_done == 0
    record["top1"] = 0.125
    (tmp_path / "old/view-000.json").write_text(json.dumps(record))
    assert export(job, tmp_path / "old").manifest["teacher"]["top1"] == 0.125


def test_the_committed_cache_is_by_torch():
    manifest = cache_format.read_manifest(ROOT / "teacher/logits/digits")
    assert "backend" not in manifest["teacher"]
    assert cache_writer.identity(manifest)["teacher"]["backend"] == "torch"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ("a", "b")}, "teacher 2 of 2: the teacher does not have the"),
        (
            {"class_names": None, "num_classes": 7},
            r"teacher 2 of 2: .*digits \(it has 7, not 10\)",
        ),
    ],
)
def test_teachers_of_other_classes_are_refused(
    student, train, held_out, change, message
):
    other = dataclasses.replace(student, **change)
    with pytest.raises(InputError, match=message):
        Export([student, other], train, held_out, JAX)


def test_each_of_several_is_better_than_chance(student, train, held_out, tmp_path):
    job = Export([student, student], train, held_out, JAX, batch_size=BATCH)
    with pytest.raises(InputError, match="near chance"):
        exporting.export(job, tmp_path)


# Which of them computes


@pytest.fixture
def opened(in_jax, student):
    """Opens the teachers of a command's flags."""

    def run(*arguments):
        with flagsaver.flagsaver(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of config_flags
            export_logits.define_flags()
            config = f"--config={ROOT}/configs/deit.py:digits"
            flags.FLAGS(["export_logits", config, *arguments])
            return export_logits.open_teachers()

    return run


@pytest.mark.parametrize(
    ("specs", "platform", "torch_is_there", "expected"),
    [
        (["torchvision"], "cpu", True, "torch"),
        (["torchvision"], "gpu", True, "jax"),
        (["torchvision"], "cpu", False, "jax"),
        (["other"], "gpu", True, "torch"),
        (["run"], "cpu", True, "jax"),
        (["torchvision", "run"], "cpu", True, "jax"),
    ],
)
def test_the_backend_follows_from_networks_and_devices(
    student, in_jax, monkeypatch, specs, platform, torch_is_there, expected
):
    spec = importlib.util.find_spec("torchvision") if torch_is_there else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    described = teachers.find(in_jax.spec)
    known = {
        "torchvision": described,
        "run": student,
        "other": dataclasses.replace(described, arch="vgg11"),
    }
    assert export_logits.choose_backend([known[name] for name in specs]) == expected


def test_the_command_opens_teachers_for_either(opened, in_jax, student):
    [found], backend = opened(f"--teacher={in_jax.spec}")
    assert isinstance(found, classifiers.Classifier)
    assert (backend.name, backend.precision) == ("torch", "float32")
    found, backend = opened(
        f"--teacher={in_jax.spec}", f"--teacher={student.spec}", "--precision=bfloat16"
    )
    assert [one.dtype for one in found] == ["bfloat16"] * 2
    assert (backend.name, backend.precision) == ("jax", "bfloat16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher=RUN", "--backend=torch"], "runs in JAX only: --backend=jax"),
        (
            ["--teacher=RUN", "--precision=float16"],
            "--precision=float16 with --backend",
        ),
        (["--teacher=FILE", "--backend=jax", "--device=cuda"], "is of --backend=torch"),
        (["--teacher=nowhere"], "there is no teacher nowhere"),
    ],
)
def test_what_cannot_be_opened_is_refused(opened, in_jax, student, arguments, message):
    words = {"RUN": student.spec, "FILE": in_jax.spec}
    for word, spec in words.items():
        arguments = [a.replace(word, spec) for a in arguments]
    with pytest.raises(InputError, match=message):
        opened(*arguments)


def test_auto_precision_is_that_of_the_device(monkeypatch):
    assert choose_precision("auto") == "float32"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert choose_precision("auto") == "bfloat16"


WITHOUT_TORCH = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "torchvision", "timm"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from deit_jax import command
from teacher import export_logits
export_logits.define_flags()
command.run(export_logits.main)
"""


@pytest.mark.slow
def test_safetensors_are_exported_without_torch(teacher, tmp_path):
    state = {name: x.numpy() for name, x in teacher.model.state_dict().items()}
    tensor_files.write_safetensors(tmp_path / "weights.safetensors", state)
    done = subprocess.run(
        [
            *(sys.executable, "-c", WITHOUT_TORCH),
            "--config=configs/deit.py:digits",
            "--config.dataset.train_split=train[:20]",
            "--config.dataset.eval_split=test[:20]",
            *("--views=2", "--batch_size=10", "--allow_weak_teacher"),
            f"--teacher={tmp_path}/weights.safetensors",
            *("--arch=resnet18", "--image_size=32", "--backend=jax"),
            f"--out={tmp_path}/cache",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    cache = teacher_cache.open_cache(tmp_path / "cache")
    about = cache.manifest["teacher"]
    assert (about["backend"], about["weights_sha256"]) == ("jax", teacher.sha256)
