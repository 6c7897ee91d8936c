"""Checks and prints what a run would do, take and write; writes nothing."""

import contextlib
import shutil
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from deit_jax import experiment
from deit_jax.data import batches, image_check
from deit_jax.data.sources import folder
from deit_jax.errors import InputError
from deit_jax.experiment import Experiment
from deit_jax.models import cost
from deit_jax.models.params import count_parameters
from deit_jax.training import checkpoint, processes, run_directory, step, summary


def show(config, workdir, *, config_file: str = "<config>") -> dict[str, int]:
    """Prints the plan of `train.train_and_evaluate` with the same arguments.

    It opens the data and the teacher's cache, decodes every image of a folder, reads a
    first batch and what training
    starts from, and compiles the train step for the devices at hand.

    Returns:
      The figures that it prints: `parameters`, `flops_per_step`, `total_steps`,
      `images`, `start` (the step of the checkpoint that the run would resume from, or
      0), and in bytes `teacher_cache`, `checkpoint` (one), `checkpoints` (the most
      there are at once) and `device_memory` (per device).

    Raises:
      InputError: As the run would; or the disk has no room for the checkpoints.
    """
    workdir = Path(workdir)
    run = experiment.open_run(config, workdir, config_file)
    start = None
    if processes.is_first():
        start = checkpoint.resumable_step(workdir, run.saved_config, run.data)
        if start is None:
            run.starting_state()
    if processes.is_first():
        _check_images(run)
    train_state = jax.eval_shape(run.initial_state)
    batch = _first_dispatch(run)
    figures = {
        "parameters": count_parameters(train_state.params),
        "flops_per_step": 3 * cost.forward_flops(run.model) * run.plan.batch_size,
        "total_steps": run.total_steps,
        "images": run.total_steps * run.plan.batch_size,
        "start": start or 0,
        "teacher_cache": _cache_bytes(run),
        "checkpoint": sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(train_state)
        ),
        "device_memory": _device_bytes(run, train_state, batch),
    }
    # The oldest goes when the newest is there.
    figures["checkpoints"] = figures["checkpoint"] * (run.keep + 1)
    for field, value in flatten_dict(run.saved_config, sep=".").items():
        print(f"{field} = {value!r}")
    print(f"\n{run.describe()}\n")
    print(_table(run, workdir, figures))
    if processes.is_first():
        _check_room(workdir, figures)
    if start == run.total_steps and summary.read(workdir):
        print("\nThe run is finished: there is nothing to train.")
    print("\nDry run: nothing was trained and nothing written.", flush=True)
    return figures


def _check_images(run: Experiment) -> None:
    """Decodes every image of a folder, which nobody has looked at before."""
    for source in (run.train_source, run.eval_source):
        if source.name.startswith(folder.PREFIX):
            print(image_check.describe_classes(source), flush=True)
            image_check.check_images(source)


def _first_dispatch(run: Experiment) -> dict:
    """The batches that the devices are given first, as the loop would make them."""
    together = min(run.cadence.dispatch, run.total_steps)
    with run.open_train_images() as images, run.open_eval_images():
        steps = run.train_batches(images, 0, together)
        with contextlib.closing(batches.together(steps, [together])) as dispatches:
            return next(dispatches)


def _table(run: Experiment, workdir: Path, figures: dict[str, int]) -> str:
    plan, keep = run.plan, run.keep
    lines = [
        ("model", f"{run.card.variant}, {figures['parameters']:,} parameters"),
        (
            "compute",
            f"{figures['flops_per_step'] / 1e9:,.1f} GFLOPs a step, "
            f"{figures['flops_per_step'] * run.total_steps / 1e15:,.3f} PFLOPs in all "
            "(matrix products; the backward pass is two forward ones)",
        ),
        (
            "length",
            f"{run.total_steps:,} steps, {figures['images']:,} images seen, "
            f"{run.total_steps / plan.steps_per_epoch:g} epochs",
        ),
        (
            "device memory",
            f"{_megabytes(figures['device_memory'])} on each of {len(run.devices)}, as "
            "the train step is compiled",
        ),
        (
            "checkpoints",
            f"{_megabytes(figures['checkpoint'])} each, "
            f"{_megabytes(figures['checkpoints'])} at most, keep={keep} and the one "
            "that is being written",
        ),
    ]
    if run.teacher is not None:
        lines.append(
            (
                "teacher cache",
                f"{_megabytes(figures['teacher_cache'])} in {run.teacher.directory}",
            )
        )
    left = run.total_steps - figures["start"]
    resumed = (
        f", resumes at step {figures['start']:,}: {left:,} steps to go"
        if figures["start"]
        else ", starts at step 0"
    )
    lines.append(("run directory", f"{workdir}{resumed}"))
    return "\n".join(f"{title:<15}{text}" for title, text in lines)


def _device_bytes(run: Experiment, train_state, batch) -> int:
    """Bytes of one device in a step: arguments, results, and temporaries."""
    # The shapes alone, as the state would have them on the devices.
    sharding = step.state_sharding(run.devices)
    train_state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), train_state
    )
    images = None
    if run.resident:
        shape = (len(run.train_source), *run.train_source.image_shape)
        images = jax.ShapeDtypeStruct(shape, np.uint8, sharding=sharding)
    lowered = run.train_step().lower(train_state, batch, images)
    memory = lowered.compile().memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes  # the new state lies where the old one did
        + memory.temp_size_in_bytes
    )


def _cache_bytes(run: Experiment) -> int:
    return run.teacher.bytes if run.teacher else 0


def _check_room(workdir: Path, figures: dict[str, int]) -> None:
    """Refuses a disk that cannot hold the checkpoints, but for those there already."""
    there = sum(
        path.stat().st_size
        for path in (workdir / "checkpoints").rglob("*")
        if path.is_file()
    )
    needed = figures["checkpoints"] - there
    free = shutil.disk_usage(run_directory.nearest_existing(workdir)).free
    if free < needed:
        raise InputError(
            f"{workdir}: the checkpoints take {_megabytes(needed)} more, its disk has "
            f"{_megabytes(free)} left. Make room, give another --workdir, or lower "
            "--config.checkpoint.keep."
        )


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"
