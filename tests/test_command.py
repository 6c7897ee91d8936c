"""What commands do for themselves before they begin, and flags that they refuse."""

import os
import re
import subprocess
import sys

import commands
import pytest

from deit_jax import command
from deit_jax.errors import InputError

COMMAND = """
import os
from deit_jax import command
from deit_jax.errors import InputError
names = ["GLIBC_TUNABLES", "JAX_COMPILATION_CACHE_DIR"]
command.run(lambda argv: print([os.environ.get(n) for n in names], argv[1:]), takes="")
"""


def run(before="", **environment):
    """What the command prints, with these variables and no others of its own."""
    own = ("GLIBC_TUNABLES", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in own}
    return subprocess.run(
        [sys.executable, "-c", before + COMMAND, "one", "two words"],
        env=kept | environment,
        cwd=commands.ROOT,
        text=True,
        capture_output=True,
        check=True,
    ).stdout


@pytest.mark.skipif(
    not command.HUGE_PAGES.exists() or "[never]" in command.HUGE_PAGES.read_text(),
    reason="this kernel has no huge pages to give",
)
def test_a_command_is_in_huge_pages():
    assert run().startswith("['glibc.malloc.hugetlb=1', ")
    assert run().endswith("] ['one', 'two words']\n")


def test_a_command_of_the_teacher_does_not_start_again():
    imported = "import sys\nsys.modules['torch'] = None"
    assert run(imported).startswith("[None, ")


def test_a_command_keeps_what_it_compiles(tmp_path):
    run(XDG_CACHE_HOME=str(tmp_path))
    assert (tmp_path / "deit_jax/compiled").is_dir()


def test_a_home_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    assert ", None]" in run(XDG_CACHE_HOME=str(tmp_path / "file"))


def test_what_the_user_has_set_stays():
    environment = {"GLIBC_TUNABLES": "", "JAX_COMPILATION_CACHE_DIR": ""}
    assert run(**environment).strip() == "['', ''] ['one', 'two words']"


DIGITS = "--config=configs/deit.py:digits"
SRC, RUN = "--src=w.pth", "--workdir=runs/x"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        ("main", [], "give a recipe, e.g. --config=configs/deit.py:digits"),
        ("main", ["--config=configs/nothing.py"], "configs/nothing.py"),
        ("main", ["--config=configs/deit.py:cifar11"], "'cifar11'. Known: "),
        ("main", [DIGITS, "--config.epoch=3"], "Did you mean config.epochs?"),
        (
            "main",
            [DIGITS, "--config.model.size=3"],
            "Fields of config.model: attention, drop_path",
        ),
        ("main", [DIGITS, "--config.seed.x=3"], "none, it is a value"),
        ("main", [DIGITS, "--config.epochs=many"], "could not convert"),
        ("main", [DIGITS, "--work_dir=x"], "workdir"),
        ("main", [DIGITS, "epochs=3"], "unexpected argument 'epochs=3'"),
        ("main", [DIGITS, "--config.batch_size=31"], "31 is not a multiple of 2"),
        ("export", ["--out=x"], "--workdir is missing, e.g. --workdir=runs/deit-digi"),
        ("export", ["--workdir=x"], "--out is missing, e.g. --out=digits-model"),
        ("predict", ["images"], "--workdir is missing"),
        ("predict", [RUN], "give images or folders"),
        ("report", [], "give run directories and where to write"),
        ("report", ["runs/a"], "give run directories and where to write"),
        ("report", ["--out=x"], "give run directories and where to write"),
        ("show_augmentations", [], f"--config is missing, e.g. {DIGITS}"),
        ("show_augmentations", [DIGITS], "--out is missing, e.g. --out=grid.png"),
        ("convert", ["--out=x"], "give either --src, .* or --workdir, a run"),
        ("convert", [SRC, RUN, "--out=x"], "give either --src"),
        ("convert", [SRC], "say where to write: --out"),
        ("convert", [SRC, "--out=x", "--to=hf"], "--to goes with --workdir, not with"),
        ("convert", [SRC, "--out=x", "--step=0"], "--step goes with --workdir, not"),
        ("convert", [SRC, "--out=x", "--push=a/b"], "--push goes with --workdir, not"),
        (
            "convert",
            [RUN, "--out=x", "--to=hf", "--mean=0,0,0"],
            "--mean goes with --src, not with --workdir",
        ),
        ("convert", [RUN, "--out=x"], "say for which program: --to=timm or --to=hf"),
        ("convert", [RUN, "--out=x", "--to=onnx"], re.escape("<timm|hf>")),
    ],
)
def test_flags_that_a_command_refuses(module, flags, message):
    assert re.search(message, commands.refusal(f"deit_jax.{module}", *flags))


@pytest.mark.parametrize(
    ("module", "shown"),
    [("predict", ("--workdir", "--top")), ("main", ("--config", "--target"))],
)
def test_help_shows_the_flags_of_a_command(module, shown):
    said = commands.run(f"deit_jax.{module}", "--help").stdout
    assert all(re.search(rf"^ +{flag}:", said, re.MULTILINE) for flag in shown), said


def test_lists_of_numbers():
    assert command.numbers("mean", None, float, "") is None
    assert command.numbers("mean", ["0", " 0.5", "1e-1"], float, "") == (0, 0.5, 0.1)
    assert command.numbers("indices", ["3", " 17"], int, "3,17") == (3, 17)


@pytest.mark.parametrize(
    ("kind", "texts"), [(float, "0 1"), (float, "0 1 x"), (int, "3 x"), (int, "")]
)
def test_lists_of_other_numbers_are_refused(kind, texts):
    what = {float: "three", int: "whole"}[kind]
    with pytest.raises(InputError, match=f"--a=.*: expected {what} numbers, s"):
        command.numbers("a", texts.split(), kind, "")


def test_flags_are_refused_without_waiting_for_jax():
    said = commands.refusal("deit_jax.export", "--out=x", JAX_PLATFORMS="none")
    assert "--workdir is missing" in said


@pytest.mark.parametrize("lines", [1, 10**5])
def test_a_reader_who_has_seen_enough_ends_a_command(lines):
    reading, writing = os.pipe()
    os.close(reading)  # as `| head -1` does
    printing = f"lambda argv: print('\\n'.join(['line'] * {lines}))"
    program = f"from deit_jax import command\ncommand.run({printing}, takes='')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=commands.ROOT,
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_file_names_are_utf8_in_a_c_locale():
    before = "import os, sys\nprint(sys.getfilesystemencoding())\n"
    lines = run(before, LC_ALL="C", PYTHONUTF8="0", GLIBC_TUNABLES="").splitlines()
    assert lines[-2] == "utf-8"


def test_an_unknown_home_is_refused(capsys):
    assert command._at_home("~/a") == os.path.expanduser("~/a")
    assert command._at_home("a/~b") == "a/~b"
    with pytest.raises(SystemExit):
        command._at_home("~nobody-of-this-name/a")
    assert "error: ~nobody-of-this-name/a: this user" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["", "folder:", "cifar:", "hf:", "tar:"])
def test_the_home_of_a_data_set_is_found(kind):
    config = {"dataset": {"name": f"{kind}~/a"}, "distillation": {}}
    command._expand_home(config)
    assert config["dataset"]["name"] == kind + os.path.expanduser("~/a")
