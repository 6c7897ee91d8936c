"""The whole loop on digits: outputs, resume, and what it refuses."""

import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
from pathlib import Path

import caches
import jax
import numpy as np
import pytest
import same_run
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deit_jax import experiment
from deit_jax.data import sources
from deit_jax.distillation import teacher_cache
from deit_jax.errors import InputError
from deit_jax.train import train_and_evaluate
from deit_jax.training import run_lock, signals, step, writers


@pytest.fixture
def cache(tmp_path):
    """A teacher that knows the labels, for any source."""

    def make(source, directory=tmp_path / "cache", described_as=None):
        caches.write_oracle(directory, source)
        if described_as:
            path = directory / teacher_cache.MANIFEST
            manifest = json.loads(path.read_text()) | {"source": described_as}
            path.write_text(json.dumps(manifest))
        return directory

    return make


@pytest.fixture
def small(digits_config, cache):
    """A run of 12 steps in 3 epochs, with everything on."""
    config = digits_config
    config.dataset.train_split = "train[:128]"
    config.dataset.eval_split = "test[:50]"
    config.epochs = 3.0
    config.model.drop_path = 0.1
    config.model.dropout = 0.1
    config.log.every_steps = 2
    config.checkpoint.every_steps = 5
    config.eval.every_epochs = 1.0
    config.distillation.view = "plain"
    config.distillation.logits_dir = str(cache(sources.load("digits", "train[:128]")))
    return config


@pytest.fixture
def stop_after(monkeypatch):
    """Makes the run die, as if killed, when it dispatches its n-th step.

    With a `signal` the process gets it there instead, and does the step.
    """

    def arm(number, signal=None, made="pmap_train_step"):
        real = getattr(step, made)

        def counting(*args, **kwargs):
            mapped = real(*args, **kwargs)
            calls = itertools.count(1)

            def one(*step_args):
                call = next(calls)
                if signal and call == number:
                    os.kill(os.getpid(), signal)
                elif not signal and call > number:
                    raise KeyboardInterrupt
                return mapped(*step_args)

            return one

        monkeypatch.setattr(step, made, counting)
        return lambda: monkeypatch.setattr(step, made, real)

    return arm


@pytest.mark.slow
def test_a_run_leaves_what_the_readme_says(small, tmp_path, capsys):
    summary = train_and_evaluate(small, tmp_path / "run", config_file="a.py")
    run = tmp_path / "run"
    assert json.loads((run / "summary.json").read_text()) == summary
    assert json.loads((run / "config.json").read_text())["batch_size"] == 32
    assert (run / "checkpoints" / "12").is_dir()
    assert list(run.glob("events.out.tfevents.*"))
    assert summary["steps"] == 12
    assert summary["eval_images"] == 50
    assert summary["flops_per_image"] > summary["parameters"]
    assert summary["absent_classes"] == []
    heads = {"class", "distill", "mean"}
    for name in ("eval", "eval_ema"):
        assert set(summary[name]) == heads | {"token_cosine"}
        assert set(summary["tables"][name]) == heads
        confusion = np.array(summary["tables"][name]["mean"]["confusion"])
        assert confusion.sum() == 50
        assert confusion.trace() / 50 == pytest.approx(summary[name]["mean"]["top1"])
    averages = {"precision", "recall", "f1", "auc", "ece"}
    assert set(summary["eval"]["mean"]) == {"loss", "top1", "top5"} | averages

    rows = writers.read(run)
    trained = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in trained] == [2, 4, 6, 8, 10, 12]
    evaluated = [row for row in rows if "eval/mean/top1" in row]
    assert [row["step"] for row in evaluated] == [4, 8, 12]
    assert evaluated[-1]["eval_ema/class/loss"] == summary["eval_ema"]["class"]["loss"]
    assert all("eval_ema/mean/auc" in row for row in evaluated)
    assert [row["epoch"] for row in evaluated] == [1, 2, 3]
    for row in trained:
        assert 0 <= row["train/teacher_agreement"] <= 1
        assert row["train/teacher_kl"] > 0
        assert 0 < row["train/teacher_cosine"] < 1
        mix = 0.5 * row["train/loss_ce"] + 0.5 * row["train/loss_distill"]
        assert row["train/loss"] == pytest.approx(mix, abs=1e-5)
    events = EventAccumulator(str(run)).Reload()
    drawn = {"augmentation", "eval/mean/confusion", "eval_ema/mean/confusion"}
    assert drawn <= set(events.Tags()["tensors"])
    out = capsys.readouterr().out
    assert "step 12/12" in out
    assert "top-1" in out


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(small, tmp_path, capsys, stop_after):
    first = train_and_evaluate(small, tmp_path / "run")
    stop_after(0)
    assert train_and_evaluate(small, tmp_path / "run") == first
    assert "finished" in capsys.readouterr().out


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bits(small, tmp_path, stop_after, ctrl_c):
    # Evaluations are at 4, 8, 12 and checkpoints at 5, 10, 12. What is logged every 3
    # steps is the mean of steps before and after them.
    small.log.every_steps = 3
    whole = tmp_path / "whole"
    train_and_evaluate(small, whole)
    for number, (stop, resumed) in enumerate(
        [
            ({"number": 3}, 0),
            ({"number": 11}, 10),
            ({"number": 7, "signal": signal.SIGTERM}, 7),
            ({"number": 4, "signal": signal.SIGINT}, 4),
            # Within the evaluations after steps 8 and 12.
            ({"number": 3, "signal": signal.SIGTERM, "made": "pmap_eval_step"}, 8),
            ({"number": 5, "signal": signal.SIGTERM, "made": "pmap_eval_step"}, 12),
        ]
    ):
        parts = tmp_path / f"parts-{number}"
        undo = stop_after(**stop)
        kind = signals.Stopped if "signal" in stop else KeyboardInterrupt
        with pytest.raises(kind) as stopped:
            train_and_evaluate(small, parts)
        undo()
        if kind is signals.Stopped:
            assert f"step {resumed} is saved" in str(stopped.value)
        summary = train_and_evaluate(small, parts)
        assert summary["resumed_at_step"] == resumed
        assert not same_run.differences(whole, parts)


@pytest.mark.slow
def test_several_steps_a_dispatch(small, tmp_path, stop_after, capsys):
    """The same training; stopped and resumed to the same bits as if it never was."""
    small.checkpoint.every_steps = 6
    small.log.every_steps = 4
    train_and_evaluate(small, tmp_path / "single")
    small.steps_per_dispatch = 3
    small.dataset.on_device = True
    whole = tmp_path / "whole"
    train_and_evaluate(small, whole)
    singly, together = (
        [row for row in writers.read(tmp_path / name) if "train/loss" in row]
        for name in ("single", "whole")
    )
    assert [row["step"] for row in together] == [4, 8, 12]
    for one, other in zip(singly, together, strict=True):
        for name in ("train/loss", "train/top1", "train/teacher_kl"):
            assert one[name] == pytest.approx(other[name], rel=1e-3), name
    # Dispatches end at 3, 4, 5, 6, 7, 8, 11, 12: the third is of one step.
    undo = stop_after(3, signal.SIGTERM)
    with pytest.raises(signals.Stopped, match="step 5 is saved"):
        train_and_evaluate(small, tmp_path / "parts")
    undo()
    summary = train_and_evaluate(small, tmp_path / "parts")
    assert summary["resumed_at_step"] == 5
    assert not same_run.differences(whole, tmp_path / "parts")


@pytest.mark.slow
def test_the_host_may_augment(small, tmp_path, stop_after):
    """As the train step does, but for fusions that round otherwise; and resumes."""
    small.augment.update(mixup=0.8, cutmix=1.0, erase_probability=0.25)
    small.distillation.mixing = "linear"
    small.optimizer.name, small.optimizer.learning_rate = "sgd", 0.05
    small.eval.every_epochs = 0.0
    ends = {}
    for place in ("device", "host"):
        small.augment.place = place
        train_and_evaluate(small, tmp_path / place)
        ends[place] = same_run.final_state(tmp_path / place)["params"]
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(close, ends["device"], ends["host"])
    undo = stop_after(7, signal.SIGTERM)
    with pytest.raises(signals.Stopped, match="step 7 is saved"):
        train_and_evaluate(small, tmp_path / "parts")
    undo()
    train_and_evaluate(small, tmp_path / "parts")
    assert not same_run.differences(tmp_path / "host", tmp_path / "parts")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "steps_per_dispatch",
            0,
            "steps_per_dispatch=0: expected a whole number at least 1",
        ),
        ("attention", "cudnn", "cuDNN computes attention in 16 bits"),
        ("attention", "flash", "model.attention='flash': expected one of xla, cudnn"),
    ],
)
def test_ways_to_compute_that_are_refused(small, tmp_path, field, value, message):
    (small.model if field == "attention" else small)[field] = value
    with pytest.raises(InputError, match=message):
        train_and_evaluate(small, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_cudnn_is_refused_where_it_is_not(small, tmp_path):
    small.model.attention, small.model.dtype = "cudnn", "bfloat16"
    with pytest.raises(InputError, match="'cudnn' on cpu: it needs an NVIDIA GPU"):
        train_and_evaluate(small, tmp_path / "run")


def test_streamed_pictures_are_not_held_by_devices(small, tmp_path):
    small.dataset.image_size = 24
    small.dataset.on_device = True
    small.distillation.kind = "none"
    small.model.variant = "vit_nano_patch8_32"
    with pytest.raises(InputError, match="on_device=True: the images of digits are"):
        train_and_evaluate(small, tmp_path / "run")


@pytest.mark.slow
def test_a_run_killed_before_its_summary_gets_it(small, tmp_path, monkeypatch):
    train_and_evaluate(small, tmp_path / "run")
    whole = tmp_path / "whole"
    (tmp_path / "run").rename(whole)
    killed = shutil.copytree(whole, tmp_path / "run")
    (killed / "summary.json").unlink()
    before = json.loads((whole / "summary.json").read_text())["seconds"]
    summary = train_and_evaluate(small, killed)
    assert summary["seconds"] >= before - 1  # of all starts
    assert summary["images_per_sec"] > 0
    assert not same_run.differences(whole, killed)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and a function that fills it and returns the file."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no permission to mount")

    def fill():
        with contextlib.suppress(OSError), open(path / "ballast", "wb") as file:
            while True:
                os.write(file.fileno(), bytes(4096))

    yield path, fill
    subprocess.run(["umount", "--lazy", path], check=True)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_which_goes_on_later(
    small, tmp_path, small_disk, monkeypatch
):
    disk, fill = small_disk
    small.log.every_steps = 3
    train_and_evaluate(small, tmp_path / "whole")
    real = step.pmap_train_step
    for full_at in (5, 6, 12):  # a checkpoint, a row of metrics, the end

        def filling(*args, full_at=full_at, **kwargs):
            mapped, calls = real(*args, **kwargs), itertools.count(1)

            def one(*step_args):
                if next(calls) == full_at:
                    fill()
                return mapped(*step_args)

            return one

        monkeypatch.setattr(step, "pmap_train_step", filling)
        with pytest.raises(InputError, match="no space is left on the disk of"):
            train_and_evaluate(small, disk / "run")
        monkeypatch.setattr(step, "pmap_train_step", real)
        (disk / "ballast").unlink()
        summary = train_and_evaluate(small, disk / "run")
        # The save of step 10 may not have been done at step 12.
        assert summary["resumed_at_step"] in {5: [0], 6: [0, 5], 12: [5, 10]}[full_at]
        assert not same_run.differences(tmp_path / "whole", disk / "run")
        shutil.rmtree(disk / "run")


def test_a_run_in_use_is_refused(small, tmp_path):
    with (
        run_lock.hold(tmp_path / "run"),
        pytest.raises(InputError, match=f"in use by process {os.getpid()}"),
    ):
        train_and_evaluate(small, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_start_that_is_refused_leaves_nothing(small, tmp_path):
    small.init_from = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="it does not exist"):
        train_and_evaluate(small, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_config_does_not_resume(small, tmp_path, stop_after):
    undo = stop_after(6)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(small, tmp_path / "run")
    undo()
    small.optimizer.learning_rate = 0.5
    small.log.every_steps = 3
    with pytest.raises(InputError, match="another config") as caught:
        train_and_evaluate(small, tmp_path / "run")
    assert "optimizer.learning_rate: 0.002 -> 0.5" in str(caught.value)
    assert "log" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hard", "cosine", "none"])
def test_every_kind_trains(small, tmp_path, kind):
    small.distillation.kind = kind
    if kind == "none":
        small.model.variant = "vit_nano_patch8_32"
    small.epochs = 1.0
    summary = train_and_evaluate(small, tmp_path / kind)
    assert ("mean" in summary["eval"]) == (kind != "none")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(small, tmp_path, capsys):
    small.optimizer.learning_rate = 1e30
    small.optimizer.clip_norm = 0.0
    small.optimizer.max_consecutive_skips = 3
    small.checkpoint.every_steps = 1
    with pytest.raises(
        InputError, match=r"(loss|grad_norm) is \w+ at step 4"
    ) as caught:
        train_and_evaluate(small, tmp_path / "run")
    assert "gone back once already" in str(caught.value)
    assert "learning_rate" in str(caught.value)
    assert "checkpoint of step 1 is kept" in str(caught.value)
    assert "Once more from the checkpoint of step 1." in capsys.readouterr().out
    kept = same_run.final_state(tmp_path / "run")
    assert np.isfinite(np.concatenate([x.ravel() for x in jax.tree.leaves(kept)])).all()
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.fixture
def break_steps(monkeypatch):
    """Gives the steps `broken` labels that are no numbers, the first time they run."""
    real = step.pmap_train_step

    def arm(broken):
        broken = set(broken)

        def breaking(*args, **kwargs):
            mapped = real(*args, **kwargs)

            def one(state, batch, images):
                number = int(state.step) + 1
                if number in broken:
                    broken.remove(number)
                    nans = np.full_like(batch["teacher_logits"], np.nan)
                    batch = batch | {"teacher_logits": nans}
                return mapped(state, batch, images)

            return one

        monkeypatch.setattr(step, "pmap_train_step", breaking)

    return arm


@pytest.mark.slow
def test_a_fault_that_passes_leaves_no_trace(small, tmp_path, break_steps, capsys):
    """A step is skipped; and three in a row are taken again from the checkpoint."""
    small.optimizer.max_consecutive_skips = 3
    small.eval.every_epochs = 0.0
    break_steps([3])
    skipped = train_and_evaluate(small, tmp_path / "skipped")
    assert "at step 3 (learning rate" in capsys.readouterr().out
    break_steps([3, 7, 8, 9])
    repaired = train_and_evaluate(small, tmp_path / "repaired")
    assert "Once more from the checkpoint of step 5." in capsys.readouterr().out
    assert skipped["skipped_steps"] == repaired["skipped_steps"] == 1
    assert repaired["eval_ema"] == skipped["eval_ema"]
    jax.tree.map(
        np.testing.assert_array_equal,
        same_run.final_state(tmp_path / "skipped"),
        same_run.final_state(tmp_path / "repaired"),
    )

    def rows(run):
        return [
            {k: v for k, v in row.items() if k != "train/images_per_sec"}
            for row in writers.read(tmp_path / run)
            if row["step"] != 6  # the interval that the checkpoint of step 5 cuts
        ]

    assert rows("skipped") == rows("repaired")
    assert [row.get("train/skipped") for row in rows("skipped")[:2]] == [0, 1]
    assert "NaN" not in (tmp_path / "skipped" / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_without_a_checkpoint_there_is_no_way_back(small, tmp_path, break_steps):
    small.optimizer.max_consecutive_skips = 1
    break_steps([2])
    with pytest.raises(InputError, match=r"at step 2 .* No checkpoint"):
        train_and_evaluate(small, tmp_path / "run")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.variant", "deit_tiny_distiled_patch16_224", "deit_tiny_distilled"),
        ("model.variant", "deit_nano_patch8_32", "needs a model with a distillation"),
        ("model.dtype", "float64", "dtype"),
        ("dataset.name", "digitz", "digits"),
        ("dataset.train_split", "training", "unknown split 'training'"),
        ("dataset.image_size", 30, "patch"),
        ("distillation.kind", "softt", "expected one of none, soft, hard, cosine"),
        ("distillation.logits_dir", "", "needs the logits of a teacher"),
        ("distillation.logits_dir", "nowhere", "python -m teacher.finetune"),
        ("distillation.view", "same", "saw 'plain' images"),
        ("distillation.view", "some", "expected one of same, plain"),
        ("distillation.mixing", "exactly", "expected one of exact, linear, none"),
        ("augment.recipe", "diet", "Did you mean deit"),
        ("augment.mixup", 0.8, "the teacher has to answer for both halves"),
        ("batch_size", 30, "not a multiple of 8"),
        ("optimizer.accumulation", 3, "not a multiple of 24"),
        ("optimizer.name", "lamb", "adam, adamw, sgd"),
        ("epochs", 0.0, "epochs=0.0"),
        ("optimizer.accumulation", 0, "a whole number at least 1"),
    ],
)
def test_bad_settings_end_in_a_message(small, tmp_path, field, value, message):
    section, _, name = field.rpartition(".")
    node = small[section] if section else small
    node[name] = value
    with pytest.raises(InputError) as caught:
        train_and_evaluate(small, tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_cache_of_other_data_is_refused(small, tmp_path, cache):
    source = sources.load("digits", "train[:128]")
    described = teacher_cache.describe_source(source)

    for number, (field, value, message) in enumerate(
        [
            ("name", "cifar10", "name='cifar10'"),
            ("length", 127, "its manifest says float16 (127, 10)"),
            ("num_classes", 9, "10 names of classes"),
            ("class_names", list("abcdefghij"), "class 0 of the teacher cache"),
            ("fingerprint", "0" * 64, "other images"),
        ]
    ):
        directory = tmp_path / f"cache-{number}"
        cache(source, directory, described_as=described | {field: value})
        small.distillation.logits_dir = str(directory)
        with pytest.raises(InputError) as caught:
            train_and_evaluate(small, tmp_path / "run")
        assert message in str(caught.value)
        assert "python -m teacher.export_logits" in str(caught.value)


def test_a_truncated_cache_is_refused(small, tmp_path):
    path = Path(small.distillation.logits_dir) / "view-000.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated") as caught:
        train_and_evaluate(small, tmp_path / "run")
    assert "teacher.export_logits" in str(caught.value)


@pytest.mark.slow
def test_without_tensorflow_a_run_goes_on(small, tmp_path, monkeypatch):
    import sys

    for name in [n for n in sys.modules if n.split(".")[0] in ("tensorflow", "clu")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    small.epochs = 1.0
    train_and_evaluate(small, tmp_path / "run")
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


@pytest.fixture
def pictures(tmp_path, digits_config):
    """An epoch on 60 images as people have them: streamed, and without a teacher."""
    random = np.random.RandomState(0)
    kinds = [("RGB", "JPG"), ("L", "png"), ("RGBA", "webp"), ("RGB", "bmp")]
    for number in range(60):
        mode, ending = kinds[number % 4]
        height, width = random.randint(8, 80, 2)
        pixels = random.randint(0, 256, (height, width, 4)).astype(np.uint8)
        split, name = (
            ("train", "val")[number % 5 == 0],
            ("cat", "dog", "owl")[number % 3],
        )
        path = tmp_path / "pictures" / split / name / f"{number}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(path)
    (tmp_path / "pictures" / "train" / "owl" / "IMG_1.HEIC").write_bytes(b"heic")
    config = digits_config
    config.dataset.name = f"folder:{tmp_path / 'pictures'}"
    config.dataset.eval_split = "val"
    config.dataset.workers = 0
    config.epochs = 1.0
    config.batch_size = 8
    config.eval.batch_size = 8
    config.checkpoint.every_steps = 2
    config.model.variant = "vit_nano_patch8_32"
    config.distillation.kind = "none"
    config.distillation.head = "class"
    config.distillation.logits_dir = ""
    return config


@pytest.mark.slow
def test_a_folder_trains_to_the_same_bits_with_any_workers(
    pictures, tmp_path, capsys, stop_after
):
    alone = train_and_evaluate(pictures, tmp_path / "alone")
    assert alone["steps"] == 6
    assert alone["eval_images"] == 12
    out = capsys.readouterr().out
    assert "3 classes" in out
    assert "train: files passed over, no images: 1 .heic" in out

    pictures.dataset.workers = 2
    undo = stop_after(3)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(pictures, tmp_path / "workers")
    undo()
    assert not multiprocessing.active_children()
    pictures.dataset.workers = 1
    resumed = train_and_evaluate(pictures, tmp_path / "workers")
    assert resumed["resumed_at_step"] == 2
    assert not multiprocessing.active_children()
    jax.tree.map(
        np.testing.assert_array_equal,
        same_run.final_state(tmp_path / "alone"),
        same_run.final_state(tmp_path / "workers"),
    )
    assert resumed["eval"] == alone["eval"]
    assert resumed["eval_ema"] == alone["eval_ema"]


def test_a_damaged_picture_ends_the_run_by_its_name(pictures, tmp_path):
    path = next((tmp_path / "pictures" / "train" / "cat").iterdir())
    path.write_bytes(path.read_bytes()[:200])
    pictures.dataset.workers = 2
    with pytest.raises(InputError, match="Replace or remove it") as caught:
        train_and_evaluate(pictures, tmp_path / "run")
    assert str(path) in str(caught.value)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("broken", ["train", "val"])
def test_an_error_costs_no_finished_step(pictures, tmp_path, broken, monkeypatch):
    """A damaged image ends the run; repaired, the run goes on to the same bits."""
    pictures.epochs = 2.0
    pictures.checkpoint.every_steps = 0
    pictures.eval.every_epochs = 1.0
    whole = tmp_path / "whole"
    train_and_evaluate(pictures, whole)
    source = sources.load(pictures.dataset.name, broken)
    index, done = 5, 6  # the first evaluation follows step 6
    if broken == "train":
        run = experiment.create(pictures, devices=jax.devices())
        index, done = run.plan.batch(4)[0][0], 4
    path = Path(source.where(index))
    content = path.read_bytes()
    path.write_bytes(content[:100])
    monkeypatch.setattr("deit_jax.train.CHECK_SECONDS", -1)  # it would be found at once
    with pytest.raises(InputError) as ended:
        train_and_evaluate(pictures, tmp_path / "run")
    assert str(path) in str(ended.value)
    assert f"Step {done} is saved, and the same command goes on" in str(ended.value)
    path.write_bytes(content)
    summary = train_and_evaluate(pictures, tmp_path / "run")
    assert summary["resumed_at_step"] == done
    assert not same_run.differences(whole, tmp_path / "run")


def test_a_bug_in_an_evaluation_costs_no_state(small, tmp_path, monkeypatch, capfd):
    small.checkpoint.every_steps = 0
    with monkeypatch.context() as patch:
        patch.setattr("deit_jax.training.evaluation.score", None)
        with pytest.raises(TypeError):
            train_and_evaluate(small, tmp_path / "run")
    assert "step 4 is saved, and the same command goes on" in capfd.readouterr().err
    assert train_and_evaluate(small, tmp_path / "run")["resumed_at_step"] == 4
