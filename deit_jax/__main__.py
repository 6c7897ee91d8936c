"""Data-efficient image transformers in JAX: train, distil, evaluate, ship.

    deit-jax train --config=deit:digits
    deit-jax predict --workdir=runs/deit-digits seven.png
    deit-jax teacher export_logits --help

`python -m deit_jax` is the same program.
"""

import ast
import difflib
import importlib.util
import os
import runpy
import sys
from pathlib import Path

from deit_jax import __version__, command
from deit_jax.errors import InputError
from deit_jax.program import COMMANDS, NAME

WIDTH = max(map(len, COMMANDS))


def main() -> None:
    """Runs the command that the first words of `sys.argv` name."""
    if sys.argv[1:] == ["--version"]:
        print(f"deit_jax {__version__}")
        return
    if sys.argv[1:] in ([], ["--help"], ["-h"], ["help"]):
        print(_help())
        sys.exit(0 if sys.argv[1:] else 2)
    try:
        module, arguments = choose(sys.argv[1:])
    except InputError as error:
        command.fail(error)
    sys.argv[1:] = arguments
    sys.path.append(os.getcwd())  # for what a config imports; `python -m` has it too
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchvision"):
            raise
        command.fail(f"{module} needs {error.name}: pip install torch torchvision")


def choose(arguments: list[str]) -> tuple[str, list[str]]:
    """The module of the command that these words begin with, and the other words."""
    for words in (1, 2):
        name = " ".join(arguments[:words]).replace("-", "_")
        if name in COMMANDS:
            return COMMANDS[name], arguments[words:]
    group = [name for name in COMMANDS if name.split()[0] == arguments[0]]
    typed = " ".join(arguments[: 2 if group else 1])
    close = difflib.get_close_matches(typed, group or COMMANDS, n=1)
    raise InputError(
        f"{NAME} {typed}: there is no such command."
        + (f" Did you mean {NAME} {close[0]}?" if close else "")
        + f" Commands: {', '.join(group or COMMANDS)}."
    )


def _help() -> str:
    """The commands, each with the first line of its module."""
    lines = [__doc__, "Commands, each with a --help of its own:\n"]
    for name, module in COMMANDS.items():
        # Imported, the modules would bring JAX and torch along.
        source = Path(importlib.util.find_spec(module).origin).read_text("utf-8")
        about = ast.get_docstring(ast.parse(source)).splitlines()[0]
        lines.append(f"  {name:<{WIDTH}}  {about}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
