"""The command as a user types it: exit codes and messages, never a traceback."""

import subprocess
import sys

import commands
import pytest

from deit_jax.main import default_workdir

DIGITS = "--config=configs/deit.py:digits"


def main(*flags, **environment):
    return commands.run("deit_jax.main", DIGITS, *flags, **environment)


@pytest.mark.slow
def test_a_short_run(tmp_path):
    epoch = ("--config.epochs=1", "--config.schedule.warmup_epochs=0")
    done = main(*epoch, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").exists()
    assert "teacher resnet50" in done.stdout


@pytest.mark.slow
def test_a_dry_run_leaves_nothing(tmp_path):
    done = main("--dry_run", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "3,150 steps" in done.stdout
    assert not (tmp_path / "run").exists()


def test_default_workdir_names_config_and_data_set():
    assert default_workdir("configs/deit.py:digits", "digits") == "runs/deit-digits"
    assert default_workdir("configs/deit.py", "cifar10") == "runs/deit-cifar10"
    assert default_workdir("configs/study.py:vit", "digits") == "runs/study-vit-digits"
    assert default_workdir("a.py:folder", "folder:/my pets") == "runs/a-folder_my_pets"


ENVIRONMENTS = {
    "no home": ({"HOME": None}, [], 0, "Dry run: nothing was trained"),
    "no GPU": ({"JAX_PLATFORMS": "cuda"}, [], 2, "no device for JAX_PLATFORMS=cuda"),
    "a misspelt device": ({"JAX_PLATFORMS": "cpuu"}, [], 2, "JAX_PLATFORMS=cpuu"),
    "a C locale": (
        {"LC_ALL": "C", "PYTHONUTF8": "0"},
        ["--workdir=Ünïcode"],
        0,
        "Dry run: nothing was trained",
    ),
    "a home in a path": (
        {"HOME": "{tmp_path}"},
        ["--config.distillation.logits_dir=~/logits"],
        2,
        "no teacher cache at {tmp_path}/logits",
    ),
}


@pytest.mark.parametrize(
    ("changes", "arguments", "code", "message"),
    ENVIRONMENTS.values(),
    ids=ENVIRONMENTS,
)
def test_unusual_environments_work_or_end_in_one_line(
    tmp_path, changes, arguments, code, message
):
    changes = {
        name: value and value.replace("{tmp_path}", str(tmp_path))
        for name, value in changes.items()
    }
    message = message.replace("{tmp_path}", str(tmp_path))
    done = main("--dry_run", f"--workdir={tmp_path}/run", *arguments, **changes)
    assert done.returncode == code, done.stderr
    assert message in (done.stdout if code == 0 else done.stderr)
    assert "Traceback" not in done.stderr


def test_a_closed_stdout_is_no_error(tmp_path):
    command = (
        f"{sys.executable} -m deit_jax.main --dry_run {DIGITS} "
        f"--workdir={tmp_path}/run >&-"
    )
    done = subprocess.run(
        command, shell=True, cwd=commands.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
