"""Trains one model.

    python -m deit_jax.main --config=configs/deit.py:digits
    python -m deit_jax.main --config=configs/deit.py:digits --config.epochs=100 \\
        --workdir=runs/longer

A rerun of the same command resumes from the last checkpoint in the run directory.
"""

import functools
import re
import shlex
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from deit_jax import command, config_flag
from deit_jax.errors import InputError
from deit_jax.training import signals


def default_workdir(config_file: str, dataset: str) -> str:
    """`configs/deit.py:digits` on digits trains in `runs/deit-digits`."""
    path, _, argument = config_file.partition(":")
    parts = [Path(path).stem, dataset]
    if not dataset.startswith(argument):
        parts.insert(1, argument)
    return "runs/" + re.sub(r"[^\w.-]+", "_", "-".join(parts)).strip("_")


def config_arguments(flag) -> str:
    """What follows `--config=` in a command with the same config, for a shell."""
    changes = config_flags.get_override_values(flag)
    # Where another command has another default.
    changes = {"dataset.eval_split": flag.value.dataset.eval_split} | changes
    if changes["dataset.eval_split"] == "test":
        del changes["dataset.eval_split"]
    words = [f"--config.{field}={value}" for field, value in changes.items()]
    return shlex.join([config_flags.get_config_filename(flag), *words])


def define_flags() -> None:
    """Defines the command's flags; an import defines none."""
    config_flag.define()
    flags.DEFINE_string(
        "workdir", None, "Run directory; runs/<config>-<data set> if not given."
    )
    flags.DEFINE_bool(
        "dry_run", False, "Check everything, print the plan, and train nothing."
    )
    flags.DEFINE_string(
        "target", None, "With --dry_run: a machine to plan for, as h100 or v5e:4."
    )


def main(_) -> None:
    config = flags.FLAGS.config
    if config is None:
        raise InputError("give a recipe, e.g. --config=configs/deit.py:digits")
    target = flags.FLAGS.target
    if target is not None and not flags.FLAGS.dry_run:
        raise InputError(
            f"--target={target} plans a run on a machine that is not there: give "
            "--dry_run too"
        )
    with signals.importing():
        from deit_jax import dry_run, teaching, train
        from deit_jax.training import processes

    flag = flags.FLAGS["config"]
    given = config_flags.get_override_values(flag)
    teaching.check_given(given, config.distillation.source)
    config_file = config_flags.get_config_filename(flag)
    workdir = flags.FLAGS.workdir or default_workdir(config_file, config.dataset.name)
    do, distributed = train.train_and_evaluate, config.distributed
    if flags.FLAGS.dry_run:
        do = functools.partial(dry_run.show, target=target)
    if target is not None:  # one process compiles for all of its chips
        distributed = {"auto": False}
    with processes.joined(**distributed), command.reported():
        do(config, workdir, config_file=config_arguments(flag))


if __name__ == "__main__":
    define_flags()
    command.run(main)
