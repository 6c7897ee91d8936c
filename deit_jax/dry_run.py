"""Checks and prints what a run would do, take and write; writes nothing."""

import contextlib
import math
import shutil
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from deit_jax import experiment, targets
from deit_jax.data import batches, image_check, sources
from deit_jax.distillation.features import without_projector
from deit_jax.errors import InputError
from deit_jax.experiment import Experiment
from deit_jax.models import cost
from deit_jax.models.params import count_parameters
from deit_jax.targets import Program
from deit_jax.training import checkpoint, processes, run_directory, step, summary
from deit_jax.training.progress import clock


def show(
    config, workdir, *, config_file: str = "<config>", target: str | None = None
) -> dict[str, float]:
    """Prints the plan of `train.train_and_evaluate` with the same arguments.

    It opens the data and the teacher, decodes every image of a folder, reads a first
    batch and what training starts from, and compiles the train step.

    Args:
      target: A machine that is not there (`targets.parse`), to compile for in place of
        the devices at hand.

    Returns:
      The figures that it prints: `parameters`, `flops_per_step`, `total_steps`,
      `images`, `start` (the step that the run would resume from), `teacher_flops` (of a
      live one, in `flops_per_step`), and in bytes `teacher_cache`, `teacher_memory`
      (parameters, per device), `checkpoint` (one), `checkpoints` (the most there are at
      once) and `device_memory` (per device). With a target, `largest` (about so many
      images of a batch fit on a chip) and `step_seconds` (at least).

    Raises:
      InputError: As the run would; or the disk has no room for the checkpoints, or the
        devices none for a step.
    """
    workdir, chip, devices, start = Path(workdir), None, None, None
    if target is not None:
        name, chips = targets.parse(target)
        chip, devices = targets.TARGETS[name], targets.devices(name, chips)
    run = experiment.open_run(config, workdir, config_file, devices=devices)
    if processes.is_first():
        start = checkpoint.resumable_step(workdir, run.saved_config, run.data)
        if start is None:
            run.starting_state()
        _check_images(run)
    program, figures = _compile(run)
    if chip is not None and figures["device_memory"] > chip.memory:
        program = None
    figures["start"] = start or 0
    for field, value in flatten_dict(run.saved_config, sep=".").items():
        print(f"{field} = {value!r}")
    print(f"\n{run.describe()}\n")
    _print_table(_rows(run, workdir, figures))
    if chip is not None:  # its disk is not this one
        _print_table(_estimate(run, target, chip, figures, program))
    elif processes.is_first():
        _check_room(workdir, figures)
    if start == run.total_steps and summary.read(workdir):
        print("\nThe run is finished: there is nothing to train.")
    print("\nDry run: nothing was trained and nothing written.", flush=True)
    if program is None:
        raise InputError(
            f"batch_size={run.plan.batch_size} does not fit on {len(run.devices)} x "
            f"{run.devices[0].device_kind}: a step takes about "
            f"{figures['device_memory'] / 1e9:,.1f} GB on each. Lower "
            "--config.batch_size, raise --config.optimizer.accumulation, or set "
            "--config.model.remat=True."
        )
    return figures


def _check_images(run: Experiment) -> None:
    """Decodes every image of a folder, which nobody has looked at before."""
    for source in (run.train_source, run.eval_source):
        if source.name.startswith(sources.PLACES):
            print(image_check.describe_classes(source), flush=True)
            image_check.check_images(source)


def _first_dispatch(run: Experiment) -> dict:
    """The batches that the devices are given first, as the loop would make them."""
    together = min(run.cadence.dispatch, run.total_steps)
    with run.open_train_images() as images, run.open_eval_images():
        steps = run.train_batches(images, 0, together)
        with contextlib.closing(batches.together(steps, [together])) as dispatches:
            return next(dispatches)


def _print_table(rows: dict[str, str]) -> None:
    print("\n".join(f"{title:<15}{text}" for title, text in rows.items()))


def _rows(run: Experiment, workdir: Path, figures: dict[str, float]) -> dict[str, str]:
    flops, start, steps = figures["flops_per_step"], figures["start"], run.total_steps
    rows = {
        "model": f"{run.card.variant}, {figures['parameters']:,} parameters",
        "compute": f"{flops / 1e9:,.1f} GFLOPs a step, {flops * steps / 1e15:,.3f} "
        "PFLOPs in all (matrix products; the backward pass is two forward ones)",
        "length": f"{steps:,} steps, {figures['images']:,} images seen, "
        f"{steps / run.plan.steps_per_epoch:g} epochs",
        "device memory": f"{_megabytes(figures['device_memory'])} on each of "
        f"{len(run.devices)}, as the train step is compiled",
        "checkpoints": f"{_megabytes(figures['checkpoint'])} each, "
        f"{_megabytes(figures['checkpoints'])} at most, keep={run.keep} and the one "
        "that is being written",
    }
    if run.teacher is not None:
        size = _megabytes(figures["teacher_cache"])
        rows["teacher cache"] = f"{size} in {run.teacher.directory}"
    if run.live is not None:
        rows["live teacher"] = (
            f"{figures['teacher_flops'] / 1e9:,.1f} of the GFLOPs of a step, "
            f"{_megabytes(figures['teacher_memory'])} of the device memory"
        )
    resumes = f"resumes at step {start:,}: {steps - start:,} steps to go"
    rows["run directory"] = f"{workdir}, {resumes if start else 'starts at step 0'}"
    return rows


def _compile(run: Experiment) -> tuple[Program | None, dict[str, float]]:
    """The train step, compiled, or None where XLA finds no memory; what it takes."""
    train_state = jax.eval_shape(run.initial_state)
    state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(train_state))
    batch_size = run.plan.batch_size
    student = 3 * cost.forward_flops(run.model) * batch_size
    teacher = run.live.flops * batch_size if run.live and not run.teacher else 0
    figures = {
        "parameters": count_parameters(without_projector(train_state.params)),
        "flops_per_step": student + teacher,
        "total_steps": run.total_steps,
        "images": run.total_steps * batch_size,
        "teacher_cache": run.teacher.bytes if run.teacher else 0,
        "teacher_flops": teacher,
        "teacher_memory": run.live.bytes if run.live else 0,
        "checkpoint": state_bytes,
        # The oldest goes when the newest is there.
        "checkpoints": state_bytes * (run.keep + 1),
    }
    try:
        program = targets.compile_program(_lower(run, train_state))
    except targets.OutOfMemory as error:
        return None, figures | {"device_memory": error.memory}
    return program, figures | {"device_memory": program.memory}


def _lower(run: Experiment, train_state) -> jax.stages.Lowered:
    # The shapes alone, as the state would have them on the devices.
    sharding = step.state_sharding(run.devices)
    shape = (len(run.train_source), *(run.train_source.image_shape or ()))
    images = jax.ShapeDtypeStruct(shape, np.uint8)
    shapes = (train_state, run.resident_arrays(images))
    train_state, resident = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
    )
    return run.train_step().lower(train_state, _first_dispatch(run), resident)


def _estimate(
    run: Experiment,
    target: str,
    chip: targets.Target,
    figures: dict[str, float],
    program: Program | None,
) -> dict[str, str]:
    """Whether a step fits into a chip, and the least time; adds both to `figures`."""
    chips, memory = len(run.devices), figures["device_memory"]
    # From one program: state and resident images have their size, the rest grows with
    # the batch.
    fixed = figures["checkpoint"] + figures["teacher_memory"]
    if run.resident:
        fixed += len(run.train_source) * math.prod(run.train_source.image_shape)
    unit = 2 * run.saved_config["optimizer"]["accumulation"]
    fitting = (chip.memory - fixed) / (memory - fixed) * run.plan.batch_size / chips
    figures["largest"] = largest = max(0, int(fitting // unit * unit))
    rows = {
        f"on {target}": f"{'fits' if program else 'does not fit'}: {memory / 1e9:.1f} "
        f"of {chip.memory / 1e9:.0f} GB; about {largest:,} images a chip would fit"
    }
    if program:
        together = min(run.cadence.dispatch, run.total_steps)
        flops = figures["flops_per_step"] / chips
        seconds = program.roofline(chip, flops * together) / together
        figures["step_seconds"] = seconds
        rows["time"] = (
            f"at least {1e3 * seconds:,.3f} ms a step, "
            f"{clock(seconds * run.total_steps)} in all, by the chip's data sheet; "
            "evaluations come on top"
        )
        rows["speed"] = (
            f"at most {run.plan.batch_size / seconds:,.0f} images/s; products alone "
            f"are {100 * flops / chip.flops / seconds:.0f} % of the time"
        )
    return rows


def _check_room(workdir: Path, figures: dict[str, float]) -> None:
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


def _megabytes(number: float) -> str:
    return f"{number / 1e6:,.1f} MB"
