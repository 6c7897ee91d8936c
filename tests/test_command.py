"""What commands do for themselves before they begin."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deit_jax import command

COMMAND = """
import os
from deit_jax import command
names = ["GLIBC_TUNABLES", "JAX_COMPILATION_CACHE_DIR"]
command.run(lambda argv: print([os.environ.get(n) for n in names], argv[1:]), takes="")
"""


def run(before="", **environment):
    """What the command prints, with these variables and no others of its own.

    Args:
      before: Lines of Python that it begins with.
    """
    own = ("GLIBC_TUNABLES", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in own}
    return subprocess.run(
        [sys.executable, "-c", before + COMMAND, "one", "two words"],
        env=kept | environment,
        cwd=Path(__file__).parent.parent,
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
