"""The command as a user types it: exit codes and messages, never a traceback."""

import shlex
import sys

import commands
import pytest
import run_directories
from absl import flags
from ml_collections import config_flags

from deit_jax.distillation import export_commands
from deit_jax.main import config_arguments, default_workdir

DIGITS = "--config=configs/deit.py:digits"


def test_default_workdir_names_config_and_data_set():
    assert default_workdir("configs/deit.py:digits", "digits") == "runs/deit-digits"
    assert default_workdir("configs/deit.py", "cifar10") == "runs/deit-cifar10"
    assert default_workdir("configs/study.py:vit", "digits") == "runs/study-vit-digits"
    assert default_workdir("a.py:folder", "folder:/my pets") == "runs/a-folder_my_pets"


def config_flag(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["run", *arguments])  # config_flags looks there
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    for name in ("teacher", "out"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    values(sys.argv)
    return values["config"]


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
def test_the_printed_commands_make_a_cache_for_this_very_run(monkeypatch):
    """A shell that reads the command gives the same fields to the config."""
    arguments = [
        "--config=configs/deit.py:folder",
        "--config.dataset.name=folder:/my 'pets'",
        "--config.dataset.train_split=train[:90%]",
        "--config.dataset.mean=0.5",
        "--config.augment.recipe=crop_flip",
        "--config.augment.crop_area=(0.5, 1.0)",
        "--config.augment.flip=False",
        "--config.distillation.num_views=3",
    ]
    flag = config_flag(monkeypatch, arguments)
    commands = export_commands.export_commands(
        "folder:/my 'pets'", "a cache", config_arguments(flag)
    )
    finetune, export = (shlex.split(line) for line in commands.splitlines())
    assert export[:3] == ["python", "-m", "teacher.export_logits"]
    assert "--out=a cache" in export
    again = config_flag(monkeypatch, export[3:])
    assert again.value.to_dict() == flag.value.to_dict()
    assert {"--train_split=train[:90%]", "--eval_split=val"} < set(finetune)
    assert "--dataset=folder:/my 'pets'" in finetune


PLANNED = "Dry run: nothing was trained"
ENVIRONMENTS = {
    "no home": ({"HOME": None}, [], 0, PLANNED),
    "no GPU": ({"JAX_PLATFORMS": "cuda"}, [], 2, "no device for JAX_PLATFORMS=cuda"),
    "a misspelt device": ({"JAX_PLATFORMS": "cpuu"}, [], 2, "JAX_PLATFORMS=cpuu"),
    "a C locale": (
        {"LC_ALL": "C", "PYTHONUTF8": "0"},
        ["--workdir=Ünïcode"],
        0,
        PLANNED,
    ),
    "a home in a path": (
        {"HOME": "/nowhere"},
        ["--config.distillation.logits_dir=~/logits"],
        2,
        "no teacher cache at /nowhere/logits",
    ),
    "a closed stdout": ({"shell": "{} >&-"}, [], 0, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "arguments", "code", "message"),
    ENVIRONMENTS.values(),
    ids=ENVIRONMENTS,
)
def test_unusual_environments_work_or_end_in_one_line(
    tmp_path, changes, arguments, code, message
):
    words = ("--dry_run", DIGITS, f"--workdir={tmp_path}/run", *arguments)
    done = commands.run("deit_jax.main", *words, **changes)
    assert done.returncode == code, done.stderr
    assert message in (done.stdout if code == 0 else done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


FEW_FILES = {
    "main": (
        "--config=configs/vit.py:folder",
        "--config.model.variant=vit_nano_patch8_32",
        "--config.batch_size=8",
        "--config.epochs=1",
        "--config.dataset.name={data}",
        "--workdir={new}",
    ),
    "evaluate": ("--workdir={run}", "--dataset={data}", "--split=val"),
    "predict": ("--workdir={run}", "{images}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW_FILES)
def test_few_open_files_suffice_or_end_in_one_line(tmp_path, folder, name):
    run_directories.make(tmp_path / "run", class_names=("bright", "dark"))
    places = {"data": folder, "images": folder[7:], "new": tmp_path / "new"}
    places["run"] = tmp_path / "run"
    words = [word.format(**places) for word in FEW_FILES[name]]
    done = commands.run(f"deit_jax.{name}", *words, shell="ulimit -n 24; exec {}")
    limit = "error: too many open files: raise the limit, e.g. ulimit -n 1024"
    assert (done.returncode, done.stderr.strip()) in [(0, ""), (2, limit)]
