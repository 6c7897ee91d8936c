"""The wheel as a user has it: installed, and run from an empty directory."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from commands import ROOT
from PIL import Image

PACKAGES = ("deit_jax", "teacher", "configs")
FILES = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Where the wheel of this tree is installed; what it needs is there already."""
    tree, site = (tmp_path_factory.mktemp(name) for name in ("tree", "site"))
    for name in PACKAGES:
        shutil.copytree(
            ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    _pip("wheel", "--no-build-isolation", f"--wheel-dir={tree}/dist", tree)
    _pip("install", f"--target={site}", *(tree / "dist").glob("deit_jax-*.whl"))
    return site


def _pip(command, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, "--no-deps", *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def run(site, tmp_path):
    """Runs `deit-jax` and some words in an empty directory."""

    def run(*words, code=0):
        done = subprocess.run(
            [site / "bin" / "deit-jax", *map(str, words)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


CONFIG = "\nget_config = vit.get_config\n"
OWN = {
    "ours, as a package": ("mine.py", "from deit_jax.configs import vit"),
    "ours, as in the repository": ("mine.py", "from configs import vit"),
    "beside other configs": ("configs/mine.py", "from configs import vit"),
    "a module beside it": ("mine.py", "import other\nfrom configs import vit"),
}


@pytest.mark.parametrize(("file", "imports"), OWN.values(), ids=OWN)
def test_a_config_of_ones_own_finds_what_it_imports(run, tmp_path, file, imports):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(imports + CONFIG)
    (tmp_path / "other.py").touch()
    # The next complaint: the config has been read.
    said = run("show_augmentations", f"--config={file}:digits", code=2)
    assert said.startswith("error: --out is missing")


@pytest.mark.parametrize(
    "config",
    ["finetune:folder", "configs/deit3.py:imagenet", f"{ROOT}/configs/vit.py:digits"],
)
def test_a_recipe_is_found(run, config):
    said = run("show_augmentations", f"--config={config}", code=2)
    assert said.startswith("error: --out is missing")


@pytest.mark.slow
def test_an_epoch_of_the_demo_and_what_follows(run, tmp_path):
    train = ("train", "--config=deit:digits", "--config.epochs=1")
    train += ("--config.schedule.warmup_epochs=0",)
    assert "run directory runs/deit-digits" in run(*train)
    # Another spelling of the cache is the same run.
    cache = f"--config.distillation.logits_dir={ROOT}/teacher/logits/digits"
    assert "holds this run, finished" in run(*train, cache)

    Image.new("RGB", (40, 32)).save(tmp_path / "seven.png")
    workdir = "--workdir=runs/deit-digits"
    assert re.match(r"seven.png +\d", run("predict", workdir, "seven.png"))
    assert json.loads(run("evaluate", workdir, "--split=test[:9]", "--json"))
    run("convert", workdir, "--to=hf", "--out=exported")
    assert (tmp_path / "exported/model.safetensors").is_file()

    check = ("teacher", "export_logits", "--config=deit:digits")
    said = run(*check, "--check=teacher/logits/digits")
    assert said.startswith("teacher/logits/digits belongs to this config: 20 same")


@pytest.mark.slow
def test_the_commands_that_a_message_prints_are_of_this_program(run):
    changed = "--config.augment.recipe=crop_flip"
    said = run("train", "--config=deit:digits", changed, "--dry_run", code=2)
    advised = said.splitlines()[-1]
    assert advised.startswith(
        f"  deit-jax teacher export_logits --config=deit:digits {changed} "
    )
    assert advised.endswith(" --out=teacher/logits/digits-new")
    assert "site" not in advised
