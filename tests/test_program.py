"""The program `deit-jax`: its commands, and what messages call them."""

import sys

import pytest

from deit_jax import __main__ as start
from deit_jax import __version__, program
from deit_jax.errors import InputError


@pytest.mark.parametrize(
    ("typed", "module", "rest"),
    [
        ("train --config=deit:digits", "deit_jax.main", ["--config=deit:digits"]),
        ("predict predict.png", "deit_jax.predict", ["predict.png"]),
        ("show-augmentations", "deit_jax.show_augmentations", []),
        ("teacher export_logits --top_k=3", "teacher.export_logits", ["--top_k=3"]),
    ],
)
def test_the_first_words_choose_a_command(typed, module, rest):
    assert start.choose(typed.split()) == (module, rest)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("trian --help", "trian: there .* mean deit-jax train. Commands: train, eval"),
        (
            "teacher finetun",
            "teacher finetun: .*deit-jax teacher finetune. Commands: t",
        ),
        ("teacher", "teacher: .* Commands: teacher finetune, teacher export_logits"),
        ("finetune", "finetune: .* mean deit-jax teacher finetune"),
        ("--workdir=x", "--workdir=x: there is no such command. Commands"),
    ],
)
def test_another_word_is_refused_with_what_there_is(typed, message):
    with pytest.raises(InputError, match=message):
        start.choose(typed.split())


def test_help_has_a_line_for_each_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["deit-jax", "--help"])
    with pytest.raises(SystemExit) as exited:
        start.main()
    assert exited.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for name in program.COMMANDS:
        assert any(line.startswith(f"  {name}  ") for line in lines), name


def test_the_version(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["deit-jax", "--version"])
    start.main()
    assert capsys.readouterr().out == f"deit_jax {__version__}\n"


MESSAGE = (
    "run python -m teacher.export_logits, python -m deit_jax.main or python -m pip."
)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("python -m deit_jax.main --config=x", MESSAGE),
        ("python -c 1", MESSAGE),
        ("python", MESSAGE),
        (
            "python /opt/bin/deit-jax train",
            "run deit-jax teacher export_logits, deit-jax train or python -m pip.",
        ),
    ],
)
def test_a_message_names_commands_as_they_were_started(monkeypatch, typed, expected):
    monkeypatch.setattr(sys, "orig_argv", typed.split())
    assert program.as_started(MESSAGE) == expected
