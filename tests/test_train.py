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
import sys
from pathlib import Path

import caches
import jax
import numpy as np
import pytest
import same_run
import steps
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import deit
from deit_jax import dry_run, experiment
from deit_jax.data import sources
from deit_jax.errors import InputError
from deit_jax.train import train_and_evaluate
from deit_jax.training import predictions, run_lock, signals, writers
from deit_jax.training.cadence import Cadence

pytestmark = pytest.mark.usefixtures("small_nano")

SPLIT = "train[:128]"
WITHOUT_A_TEACHER = {
    "model.variant": "vit_nano_patch8_32",
    "distillation.kind": "none",
    "distillation.head": "class",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A teacher that knows the labels."""
    directory = tmp_path_factory.mktemp("teacher") / "cache"
    caches.write_oracle(directory, sources.load("digits", SPLIT))
    return directory


def make_config(cache):
    """A run of 12 steps in 3 epochs, with everything on."""
    config = deit.get_config("digits")
    config.dataset.update(train_split=SPLIT, eval_split="test[:50]")
    config.epochs = 3.0
    config.schedule.warmup_epochs = 0.0
    config.model.update(drop_path=0.1, dropout=0.1)
    # Lines of the log are means over steps before and after a checkpoint.
    config.log.every_steps = 3
    config.checkpoint.every_steps = 5
    config.eval.every_epochs = 1.0
    config.distillation.update(view="plain", logits_dir=str(cache))
    return config


@pytest.fixture
def small(cache):
    return make_config(cache)


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
    """A finished run, to be read or copied."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    train_and_evaluate(make_config(cache), workdir)
    return workdir


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


@pytest.mark.slow
def test_a_run_leaves_what_the_readme_says(finished):
    run, summary = finished, summary_of(finished)
    assert json.loads((run / "config.json").read_text())["batch_size"] == 32
    assert (run / "checkpoints" / "12").is_dir()
    assert (summary["steps"], summary["eval_images"]) == (12, 50)
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
    fingerprint, answers = predictions.read(run)
    assert fingerprint == sources.load("digits", "test[:50]").fingerprint
    scored = {head: one.right.mean() for head, one in answers.items()}
    assert scored == {head: summary["eval"][head]["top1"] for head in heads}

    rows = writers.read(run)
    trained = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in trained] == [3, 6, 9, 12]
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


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(small, finished, capsys):
    with steps.stopped_after(0):
        assert train_and_evaluate(small, finished) == summary_of(finished)
    assert "finished" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "resumed"),
    [
        ({"number": 11}, 10),
        ({"number": 4, "signal": signal.SIGINT}, 4),
        # Within the evaluations after steps 8 and 12.
        ({"number": 3, "signal": signal.SIGTERM, "made": "pmap_eval_step"}, 8),
        ({"number": 5, "signal": signal.SIGTERM, "made": "pmap_eval_step"}, 12),
    ],
    ids=["killed", "between steps", "in an evaluation", "in the last evaluation"],
)
def test_a_stopped_run_resumes_to_the_same_bits(
    small, finished, tmp_path, ctrl_c, stop, resumed
):
    """Evaluations are at 4, 8, 12 and checkpoints at 5, 10, 12."""
    kind, said = KeyboardInterrupt, None
    if "signal" in stop:
        kind, said = signals.Stopped, f"step {resumed} is saved"
    with steps.stopped_after(**stop), pytest.raises(kind, match=said):
        train_and_evaluate(small, tmp_path / "run")
    summary = train_and_evaluate(small, tmp_path / "run")
    assert summary["resumed_at_step"] == resumed
    assert not same_run.differences(finished, tmp_path / "run")


def stopped(config, workdir, dispatch, saved):
    """Trains until SIGTERM comes before a dispatch."""
    with (
        steps.stopped_after(dispatch, signal.SIGTERM),
        pytest.raises(signals.Stopped, match=f"step {saved} is saved"),
    ):
        train_and_evaluate(config, workdir)


@pytest.mark.slow
def test_several_steps_a_dispatch(small, finished, tmp_path):
    """The same training; stopped and resumed to the same bits as if it never was."""
    small.steps_per_dispatch = 3
    small.dataset.on_device = True
    whole = tmp_path / "whole"
    train_and_evaluate(small, whole)
    singly, together = (
        [row for row in writers.read(run) if "train/loss" in row]
        for run in (finished, whole)
    )
    assert [row["step"] for row in together] == [3, 6, 9, 12]
    for one, other in zip(singly, together, strict=True):
        for name in ("train/loss", "train/top1", "train/teacher_kl"):
            assert one[name] == pytest.approx(other[name], rel=1e-3), name
    # Dispatches end at 3, 4, 5, 6, 8, 9, 10, 12: the third is of one step.
    stopped(small, tmp_path / "parts", 3, saved=5)
    summary = train_and_evaluate(small, tmp_path / "parts")
    assert summary["resumed_at_step"] == 5
    assert not same_run.differences(whole, tmp_path / "parts")


@pytest.mark.slow
def test_no_step_is_listed_long_before_it_is_due(small, tmp_path, monkeypatch):
    small.epochs = 1e9
    ends = Cadence.ends

    def first_ends(self, start):
        yield from itertools.islice(ends(self, start), 20)
        pytest.fail("the ends of all dispatches were asked for")

    monkeypatch.setattr(Cadence, "ends", first_ends)
    stopped(small, tmp_path / "run", 2, saved=2)


@pytest.mark.slow
def test_the_host_may_augment(small, tmp_path):
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
    stopped(small, tmp_path / "parts", 7, saved=7)
    train_and_evaluate(small, tmp_path / "parts")
    assert not same_run.differences(tmp_path / "host", tmp_path / "parts")


@pytest.mark.slow
def test_a_run_killed_before_its_summary_gets_it(small, finished, tmp_path, capsys):
    killed = shutil.copytree(finished, tmp_path / "run")
    (killed / "summary.json").unlink()
    summary = train_and_evaluate(small, killed)
    assert summary["seconds"] >= summary_of(finished)["seconds"] - 1  # of all starts
    assert summary["images_per_sec"] > 0
    assert not same_run.differences(finished, killed)


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
def test_a_full_disk_stops_the_run_which_goes_on_later(small, finished, small_disk):
    disk, fill = small_disk
    # A checkpoint, a row of metrics, the end. The save of step 10 may not have been
    # done at step 12.
    for full_at, resumed_at in ((5, [0]), (6, [0, 5]), (12, [5, 10])):
        with (
            steps.before_each(lambda n, *_, at=full_at: fill() if n == at else None),
            pytest.raises(InputError, match="no space is left on the disk of"),
        ):
            train_and_evaluate(small, disk / "run")
        (disk / "ballast").unlink()
        summary = train_and_evaluate(small, disk / "run")
        assert summary["resumed_at_step"] in resumed_at
        assert not same_run.differences(finished, disk / "run")
        shutil.rmtree(disk / "run")


def test_a_run_in_use_is_refused(small, tmp_path):
    with (
        run_lock.hold(tmp_path / "run"),
        pytest.raises(InputError, match=f"in use by process {os.getpid()}"),
    ):
        train_and_evaluate(small, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_another_config_does_not_resume(small, finished):
    small.optimizer.learning_rate = 0.5
    small.log.every_steps = 4
    with pytest.raises(InputError, match="another config") as caught:
        train_and_evaluate(small, finished)
    assert "optimizer.learning_rate: 0.002 -> 0.5" in str(caught.value)
    assert "log" not in str(caught.value)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(small, tmp_path, capsys):
    small.optimizer.learning_rate = 1e30
    small.optimizer.clip_norm = 0.0
    small.optimizer.max_consecutive_skips = 3
    small.checkpoint.every_steps = 1
    said = (
        r"(?s)(loss|grad_norm) is \w+ at step 4 .*gone back once already.*"
        r"learning_rate.*checkpoint of step 1 is kept"
    )
    with pytest.raises(InputError, match=said):
        train_and_evaluate(small, tmp_path / "run")
    assert "Once more from the checkpoint of step 1." in capsys.readouterr().out
    kept = same_run.final_state(tmp_path / "run")
    assert np.isfinite(np.concatenate([x.ravel() for x in jax.tree.leaves(kept)])).all()
    assert not (tmp_path / "run" / "summary.json").exists()


def broken(*numbers):
    """Gives these steps logits that are no numbers, the first time they run."""
    left = set(numbers)

    def act(_, state, batch):
        number = int(state.step) + 1
        if number in left:
            left.remove(number)
            nans = np.full_like(batch["teacher_logits"], np.nan)
            return batch | {"teacher_logits": nans}

    return steps.before_each(act)


def assert_same_state(*runs):
    jax.tree.map(np.testing.assert_array_equal, *map(same_run.final_state, runs))


@pytest.mark.slow
def test_a_fault_that_passes_leaves_no_trace(small, tmp_path, capsys):
    """A step is skipped; and three in a row are taken again from the checkpoint."""
    small.optimizer.max_consecutive_skips = 3
    small.eval.every_epochs = 0.0
    with broken(3):
        skipped = train_and_evaluate(small, tmp_path / "skipped")
    assert "at step 3 (learning rate" in capsys.readouterr().out
    with broken(3, 7, 8, 9):
        repaired = train_and_evaluate(small, tmp_path / "repaired")
    assert "Once more from the checkpoint of step 5." in capsys.readouterr().out
    assert skipped["skipped_steps"] == repaired["skipped_steps"] == 1
    assert repaired["eval_ema"] == skipped["eval_ema"]
    assert_same_state(tmp_path / "skipped", tmp_path / "repaired")

    def rows(run):
        return [
            {k: v for k, v in row.items() if k != "train/images_per_sec"}
            for row in writers.read(tmp_path / run)
            if row["step"] != 6  # the interval that the checkpoint of step 5 cuts
        ]

    assert rows("skipped") == rows("repaired")
    assert [row.get("train/skipped") for row in rows("skipped")[:2]] == [1, 0]
    assert "NaN" not in (tmp_path / "skipped" / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_without_a_checkpoint_there_is_no_way_back(small, tmp_path):
    small.optimizer.max_consecutive_skips = 1
    with broken(2), pytest.raises(InputError, match=r"at step 2 .* No checkpoint"):
        train_and_evaluate(small, tmp_path / "run")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.variant", "deit_tiny_distiled_patch16_224", "deit_tiny_distilled"),
        ("model.variant", "deit_nano_patch8_32", "needs a model with a distillation"),
        ("dataset.name", "digitz", "digits"),
        ("dataset.train_split", "training", "unknown split 'training'"),
        ("dataset.image_size", 30, "patch"),
        ("distillation.logits_dir", "", "needs the logits of a teacher"),
        ("distillation.logits_dir", "nowhere", "python -m teacher.finetune"),
        ("distillation.view", "same", "saw 'plain' images"),
        ("augment.recipe", "diet", "Did you mean deit"),
        ("augment.mixup", 0.8, "the teacher has to answer for both halves"),
        ("batch_size", 30, "not a multiple of 8"),
        ("optimizer.accumulation", 3, "not a multiple of 24"),
        ("epochs", 0.0, "epochs=0.0"),
        ("model.attention", "cudnn", "it computes in 16 bits"),
        (
            ("model.attention", "model.dtype"),
            ("cudnn", "bfloat16"),
            "'cudnn' on cpu: it needs an NVIDIA GPU",
        ),
        (
            ("dataset.on_device", "dataset.image_size", *WITHOUT_A_TEACHER),
            (True, 24, *WITHOUT_A_TEACHER.values()),
            "on_device=True: the images of digits are",
        ),
        ("init_from", "nowhere", "nowhere does not exist"),
        ("dataset.eval_crop_ratio", 0.0, "eval_crop_ratio=0.0: expected a number"),
    ],
)
def test_a_run_and_its_plan_refuse_bad_settings_in_one_message(
    small, tmp_path, field, value, message
):
    if isinstance(field, str):
        field, value = [field], [value]
    small.update_from_flattened_dict(dict(zip(field, value, strict=True)))
    messages = []
    for start in (dry_run.show, train_and_evaluate):
        with pytest.raises(InputError) as caught:
            start(small, tmp_path / "run")
        messages.append(str(caught.value))
        assert not (tmp_path / "run").exists()
    assert messages[0] == messages[1]
    assert message in messages[0]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "cifar10", "name='cifar10'"),
        ("length", 127, "its manifest says float16 (127, 10)"),
        ("num_classes", 9, "10 names of classes"),
        ("class_names", list("abcdefghij"), "other classes (missing: '0', '1'"),
        ("fingerprint", "0" * 64, "other images"),
        (None, None, "truncated"),
    ],
)
def test_a_cache_of_other_data_or_a_damaged_one_is_refused(
    small, tmp_path, cache, field, value, message
):
    copy = Path(shutil.copytree(cache, tmp_path / "cache"))
    if field:
        caches.edit_manifest(copy, lambda m: m["source"].update({field: value}))
    else:
        os.truncate(copy / "view-000.npy", 1000)
    small.distillation.logits_dir = str(copy)
    with pytest.raises(InputError) as caught:
        train_and_evaluate(small, tmp_path / "run")
    assert message in str(caught.value)
    assert "python -m teacher.export_logits" in str(caught.value)


@pytest.mark.slow
def test_without_tensorflow_a_run_goes_on(small, tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] in ("tensorflow", "clu")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    small.epochs = 1.0
    train_and_evaluate(small, tmp_path / "run")
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


@pytest.mark.slow
def test_a_folder_trains_to_the_same_bits_with_any_workers(
    folder_config, folder, tmp_path, capsys
):
    Path(folder[7:], "train", "dark", "IMG_1.HEIC").write_bytes(b"heic")
    Path(folder[7:], "val").rename(Path(folder[7:], "valid"))
    folder_config.checkpoint.every_steps = 2
    alone = train_and_evaluate(folder_config, tmp_path / "alone")
    assert (alone["steps"], alone["eval_images"]) == (4, 8)
    out = capsys.readouterr().out
    assert "pictures/valid is taken for val\n" in out
    assert "train: files passed over, no images: 1 .heic" in out

    folder_config.dataset.workers = 2
    with steps.stopped_after(3), pytest.raises(KeyboardInterrupt):
        train_and_evaluate(folder_config, tmp_path / "workers")
    assert not multiprocessing.active_children()
    folder_config.dataset.workers = 1
    resumed = train_and_evaluate(folder_config, tmp_path / "workers")
    assert resumed["resumed_at_step"] == 2
    assert not multiprocessing.active_children()
    assert_same_state(tmp_path / "alone", tmp_path / "workers")
    assert resumed["eval"] == alone["eval"]
    assert resumed["eval_ema"] == alone["eval_ema"]


@pytest.mark.slow
def test_an_error_costs_no_finished_step(folder_config, tmp_path, monkeypatch):
    """A damaged image ends the run; repaired, the run goes on to the same bits."""
    monkeypatch.setattr("deit_jax.train.GRID", 1)  # shows few images at the start
    folder_config.epochs = 2.0
    folder_config.checkpoint.every_steps = 0
    folder_config.eval.every_epochs = 1.0
    whole = tmp_path / "whole"
    train_and_evaluate(folder_config, whole)
    monkeypatch.setattr("deit_jax.train.CHECK_SECONDS", -1)  # it would be found at once
    run = experiment.create(folder_config, devices=jax.devices())
    third = run.plan.batch(2)[0][0]
    # The first evaluation follows step 4.
    for source, index, done in ((run.train_source, third, 2), (run.eval_source, 5, 4)):
        workdir = tmp_path / source.split
        path = Path(source.where(index))
        content = path.read_bytes()
        path.write_bytes(content[:100])
        with pytest.raises(InputError) as ended:
            train_and_evaluate(folder_config, workdir)
        assert str(path) in str(ended.value)
        assert f"Step {done} is saved, and the same command goes on" in str(ended.value)
        path.write_bytes(content)
        assert train_and_evaluate(folder_config, workdir)["resumed_at_step"] == done
        assert not same_run.differences(whole, workdir)


@pytest.mark.slow
def test_a_bug_in_an_evaluation_costs_no_state(small, tmp_path, monkeypatch, capfd):
    small.checkpoint.every_steps = 0
    with monkeypatch.context() as patch:
        patch.setattr("deit_jax.training.evaluation.score", None)
        with pytest.raises(TypeError):
            train_and_evaluate(small, tmp_path / "run")
    assert "step 4 is saved, and the same command goes on" in capfd.readouterr().err
    assert train_and_evaluate(small, tmp_path / "run")["resumed_at_step"] == 4
