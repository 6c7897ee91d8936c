"""The plan of a run: its figures are those of the run, and it leaves nothing behind."""

import shutil
import types

import commands
import jax
import pytest

from deit_jax import dry_run, targets, train
from deit_jax.errors import InputError
from deit_jax.training import run_directory


@pytest.fixture
def tiny(digits_config):
    config = digits_config
    config.epochs = 0.1
    config.checkpoint.every_steps = 2
    config.eval.batch_size = 400
    return config


@pytest.mark.slow
def test_a_plan_is_what_the_run_does(tiny, tmp_path, capsys):
    planned = dry_run.show(tiny, tmp_path / "runs" / "a", config_file="a.py")
    assert not (tmp_path / "runs").exists()
    out = capsys.readouterr().out
    assert "model.variant = 'deit_nano_distilled_patch8_32'" in out
    assert "teacher resnet50" in out
    assert "5 steps, 160 images seen" in out
    assert "nothing written" in out
    # One state of float32: parameters, two moments and their average, three counters.
    assert planned["checkpoint"] == 4 * (4 * planned["parameters"] + 3)
    assert planned["checkpoints"] == 3 * planned["checkpoint"]
    batch = 8 * (32 * 32 * 3 + 3 * 4 + 10 * 4)  # of one of the four devices
    assert planned["device_memory"] > planned["checkpoint"] + batch

    ran = train.train_and_evaluate(tiny, tmp_path / "runs" / "a")
    assert ran["steps"] == planned["total_steps"]
    assert ran["parameters"] == planned["parameters"]
    assert planned["flops_per_step"] == 3 * 32 * ran["flops_per_image"]
    saved = tmp_path / "runs" / "a" / "checkpoints" / "5"
    on_disk = sum(f.stat().st_size for f in saved.rglob("*") if f.is_file())
    assert 0.8 < on_disk / planned["checkpoint"] < 1.05

    before = listing(tmp_path)
    finished = dry_run.show(tiny, tmp_path / "runs" / "a")
    assert finished["start"] == 5
    assert "The run is finished" in capsys.readouterr().out
    tiny.optimizer.weight_decay = 0.1
    with pytest.raises(InputError, match=r"optimizer.weight_decay: 0\.05 -> 0\.1"):
        dry_run.show(tiny, tmp_path / "runs" / "a")
    assert listing(tmp_path) == before


def nothing_to_compile(monkeypatch, memory=0, moved=0):
    """A step of so many bytes of memory, that moves so many."""
    program = targets.Program({("", ""): moved}, None, 0, memory, {}, 0.0)
    monkeypatch.setattr(targets, "devices", lambda _, chips: jax.devices()[:chips])
    monkeypatch.setattr(dry_run, "_lower", lambda *_: None)
    monkeypatch.setattr(targets, "compile_program", lambda _: program)


@pytest.mark.parametrize("dispatch", [1, 5])
def test_the_figures_of_a_target(tiny, tmp_path, monkeypatch, capsys, dispatch):
    tiny.steps_per_dispatch = dispatch
    # 32 images on two chips take what two thirds of a chip's memory are.
    nothing_to_compile(monkeypatch, memory=int(10.67e9), moved=int(0.82e10))
    planned = dry_run.show(tiny, tmp_path / "run", target="v5e:1")
    assert not (tmp_path / "run").exists()
    assert planned["largest"] == 46  # of 47.99, whole pairs
    assert planned["step_seconds"] == pytest.approx(0.01 / dispatch)
    out = capsys.readouterr().out
    assert "fits: 10.7 of 16 GB; about 46 images a chip" in out
    assert f"at most {3200 * dispatch:,} images/s" in out


@pytest.mark.parametrize("known", [True, False], ids=["compiled", "refused by XLA"])
def test_a_step_that_does_not_fit_is_planned_and_refused(
    tiny, tmp_path, monkeypatch, capsys, known
):
    nothing_to_compile(monkeypatch, memory=32 * 2**30)

    def refuse(_):
        raise targets.OutOfMemory("RESOURCE_EXHAUSTED: Used 32.00G of 15.75G hbm")

    if not known:
        monkeypatch.setattr(targets, "compile_program", refuse)
    message = r"^batch_size=32 does not fit on 1 x .*34\.4 GB.*accumulation.*remat=True"
    with pytest.raises(InputError, match=message):
        dry_run.show(tiny, tmp_path / "run", target="v5e")
    out = capsys.readouterr().out
    assert "does not fit: 34.4 of 16 GB; about 14 images a chip would fit" in out
    assert "images/s" not in out
    if not known:  # the devices at hand are refused alike
        with pytest.raises(InputError, match=r"does not fit on \d x cpu"):
            dry_run.show(tiny, tmp_path / "run")


def test_a_target_belongs_to_a_dry_run():
    refused = commands.refusal(
        "deit_jax.main", "--config=configs/deit.py:digits", "--target=h100"
    )
    assert refused.startswith("--target=h100 plans a run on a machine that is not")


def listing(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def test_a_directory_that_cannot_be_written_is_refused(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for command in (dry_run.show, train.train_and_evaluate):
        with pytest.raises(InputError, match="is a file, not a directory"):
            command(tiny, tmp_path / "file" / "run")
    # The superuser may write everywhere.
    monkeypatch.setattr(run_directory.os, "access", lambda *_: False)
    for command in (dry_run.show, train.train_and_evaluate):
        with pytest.raises(InputError, match="cannot be written by this user"):
            command(tiny, tmp_path / "new" / "run")


def test_a_disk_without_room_is_refused(tiny, tmp_path, monkeypatch, capsys):
    nothing_to_compile(monkeypatch)

    def planned(free):
        usage = types.SimpleNamespace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        return dry_run.show(tiny, tmp_path / "run")

    needed = planned(10**12)["checkpoints"]
    capsys.readouterr()
    with pytest.raises(InputError, match=r"lower --config\.checkpoint\.keep"):
        planned(needed - 1)
    assert "steps, " in capsys.readouterr().out  # the plan is there to be changed
    assert planned(needed)["checkpoints"] == needed
