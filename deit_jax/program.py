"""What the program `deit-jax` can do, and how its messages name it."""

import re
import sys
from pathlib import Path

NAME = "deit-jax"
# Each command, and the module that does it.
COMMANDS = {
    "train": "deit_jax.main",
    "evaluate": "deit_jax.evaluate",
    "predict": "deit_jax.predict",
    "embed": "deit_jax.embed",
    "attention": "deit_jax.attention",
    "report": "deit_jax.report",
    "convert": "deit_jax.convert",
    "export": "deit_jax.export",
    "show_augmentations": "deit_jax.show_augmentations",
    "teacher finetune": "teacher.finetune",
    "teacher export_logits": "teacher.export_logits",
}


def as_started(text: str) -> str:
    """`text` with its `python -m MODULE` as `deit-jax COMMAND`, where that was typed.

    Both work wherever the package is installed; the second also without its Python on
    the path.
    """
    if Path(*sys.orig_argv[1:2]).stem != NAME:
        return text
    names = {module: name for name, module in COMMANDS.items()}
    return re.sub(
        r"python -m ([\w.]*\w)",
        lambda match: f"{NAME} {names[match[1]]}" if match[1] in names else match[0],
        text,
    )
