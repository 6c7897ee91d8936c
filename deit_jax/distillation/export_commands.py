"""The commands that make a teacher and its cache, for messages."""

import shlex
from pathlib import Path

from deit_jax.data.sources import PLACES

EXPORT_COMMANDS = """\
  python -m teacher.finetune --dataset={name} --arch=resnet50 --out={teacher}{data}
  python -m teacher.export_logits --config={config} --teacher={teacher} --out={out}\
{more}"""
# Fields of a config's `dataset` that are flags of teacher.finetune too.
DATA_FLAGS = "--config.dataset.", ("data_dir", "train_split", "eval_split")


def export_commands(
    name: str, logits_dir: str, config: str = "configs/deit.py:<data set>"
) -> str:
    """The two commands that make a cache for the data set `name`.

    Args:
      config: What follows `--config=`: a file, and the flags that change it.
    """
    prefix, known = DATA_FLAGS
    data = [
        f" {shlex.quote('--' + word.removeprefix(prefix))}"
        for word in shlex.split(config)[1:]
        if word.startswith(tuple(prefix + name for name in known))
    ]
    placed = name.startswith(PLACES)
    short = Path(name.partition(":")[2]).name if placed else name
    return EXPORT_COMMANDS.format(
        name=shlex.quote(name),
        config=config,
        teacher=shlex.quote(f"runs/teacher-{short}"),
        out=shlex.quote(logits_dir),
        data="".join(data),
        more=f" --config.dataset.name={shlex.quote(name)}"
        if placed and "config.dataset.name=" not in config
        else "",
    )
