"""The host loop, in reading order: build, restore, step, log, evaluate, save."""

import contextlib
import json
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from deit_jax import experiment, files, pretrained
from deit_jax.data import batches
from deit_jax.data.pipeline import HostPipeline
from deit_jax.errors import InputError
from deit_jax.experiment import Experiment
from deit_jax.models import cost
from deit_jax.models.params import count_parameters, parameter_names
from deit_jax.reporting import confusion, grid
from deit_jax.training import (
    checkpoint,
    evaluation,
    processes,
    run_directory,
    run_lock,
    signals,
    step,
    summary,
)
from deit_jax.training.checkpoint import Checkpoints
from deit_jax.training.progress import Progress
from deit_jax.training.run_directory import RunDirectory

GRID = 6  # images and views in the picture of the augmentation
MEND = (
    "Lower --config.optimizer.learning_rate, lengthen the warm-up, or set "
    "--config.optimizer.clip_norm=1."
)


class _NotFinite(Exception):
    """Too many steps in a row are not finite; `kept`: the newest checkpoint's step."""

    def __init__(self, message: str, kept: int | None):
        super().__init__(message)
        self.kept = kept


def train_and_evaluate(config, workdir, *, config_file: str = "<config>") -> dict:
    """Trains the model that `config` describes, or resumes it, in `workdir`.

    Args:
      config: A `ConfigDict` as in configs/deit.py.
      workdir: The run directory: config.json, metrics.jsonl, TensorBoard events,
        checkpoints/, run.lock and, at the end, summary.json.
      config_file: Where the config came from, for messages and the summary.

    Returns:
      The summary, as in summary.json; of several processes in the first.

    Raises:
      InputError: The config, the data, the teacher cache or the run directory do not
        go together, the run directory is in use, its disk is full, or the loss is no
        longer finite.
      signals.Stopped: By SIGTERM or SIGINT; the state is saved.
    """
    workdir = Path(workdir)
    pretrained.check(config.init_from, workdir)
    processes.on_first(run_directory.check, workdir)
    run = experiment.create(
        config, devices=processes.devices(), config_file=config_file
    )
    with (
        files.explain_full_disk(workdir),
        signals.caught() as stop,
        processes.on_first(run_lock.claim, workdir),
    ):
        try:
            return _train(run, workdir, stop)
        except _NotFinite as error:
            if error.kept is None:
                raise InputError(f"{error} {MEND} No checkpoint.") from error
            print(
                f"{error} Once more from the checkpoint of step {error.kept:,}.",
                flush=True,
            )
        # Where a device had failed, the same steps succeed. Otherwise they end as
        # before.
        try:
            return _train(run, workdir, stop)
        except _NotFinite as error:
            raise InputError(
                f"{error} The run has gone back once already. {MEND} The checkpoint of "
                f"step {error.kept} is kept."
            ) from error


def _train(run: Experiment, workdir: Path, stop: signals.Stop) -> dict:
    """From the newest checkpoint, if there is one, to the end; returns the summary."""
    with contextlib.ExitStack() as closing:
        return _train_until_closed(run, workdir, stop, closing)


def _train_until_closed(
    run: Experiment, workdir: Path, stop: signals.Stop, closing: contextlib.ExitStack
) -> dict:
    """As `_train`; what it opens, `closing` closes, the last first."""
    config = run.config
    own = processes.own(run.devices)
    saved_config = json.loads(config.to_json_best_effort())
    processes.check_same(run.identity(saved_config))
    checkpoints, train_state, carried = _start(run, workdir, saved_config)
    closing.callback(checkpoints.close)  # waits for the saves under way
    start = int(train_state.step)
    finished = processes.gather_json(summary.read(workdir))[0]
    if start >= run.total_steps and finished:
        print(
            f"{workdir} holds this run, finished. To train it again, delete the "
            "directory or give another --workdir."
        )
        summary.show(finished, workdir)
        return finished

    directory = processes.on_first(RunDirectory, workdir, start)
    closing.callback(directory.close)
    directory.describe(saved_config, run.model_card)
    if start == 0 and processes.is_first():
        directory.write_images(0, {"augmentation": _augmentation(run)[None]})

    # Pictures: in memory, or read by a pipeline that has to be closed.
    pipelines = closing.enter_context(contextlib.ExitStack())
    train_pictures = pipelines.enter_context(run.open_train_pictures())
    eval_pictures = pipelines.enter_context(run.open_eval_pictures())

    parameters = count_parameters(train_state.params)
    print(f"{config.model.variant}: {parameters:,} parameters\n{run.describe()}")
    if isinstance(train_pictures, HostPipeline):
        print(f"pictures are read by {config.dataset.workers} worker processes")
    resumed = f", resumed at step {start}" if start else ""
    print(f"run directory {workdir}{resumed}", flush=True)

    train_state = step.replicate(train_state, run.devices)
    resident = None
    if run.resident:
        resident = step.place_whole(train_pictures.images, run.devices)
    train_step, eval_step = run.train_step(), run.eval_step()

    def write(done: int, values: dict[str, float]) -> None:
        directory.write(done, values, epoch=done / run.plan.steps_per_epoch)

    def stoppable_eval_step(params, images):
        if processes.count() == 1:  # several have to stop at the same place
            stop.check()
        return eval_step(params, images)

    def evaluate(done: int) -> tuple[dict, dict]:
        params = {"eval": train_state.params}
        if train_state.ema_params is not None:
            params["eval_ema"] = train_state.ema_params
        outputs, labels = evaluation.collect_logits(
            stoppable_eval_step,
            params,
            source=eval_pictures,
            batch_size=config.eval.batch_size,
            devices=len(run.devices),
            own=own,
        )
        return evaluation.score(
            outputs, labels, everything=True if done == run.total_steps else None
        )

    def evaluate_and_write(done: int) -> tuple[dict, dict]:
        results, tables = evaluate(done)
        write(done, flatten_dict(results, sep="/"))
        if done == run.total_steps:
            directory.write_images(
                done, _confusions(tables, run.train_source.class_names)
            )
        return results, tables

    # The loop. Everything is written before the checkpoint that covers it is saved,
    # but for the evaluation of a step at which the run was stopped: it comes after.
    log = Progress(
        start,
        run.total_steps,
        run.plan,
        config.batch_size,
        run.schedule,
        max_consecutive_skips=config.optimizer.max_consecutive_skips,
        parameters=parameter_names(train_state.params),
        carried=carried,
        rates=tuple(directory.rates),
    )
    closing.callback(log.close)
    every_eval = round(config.eval.every_epochs * run.plan.steps_per_epoch)
    every_save = config.checkpoint.every_steps

    def evaluation_due(done: int) -> bool:
        return done == run.total_steps or bool(every_eval and done % every_eval == 0)

    def stop_wanted(done: int) -> bool:
        if processes.count() > 1:
            # Where they wait for each other anyway: it ends what runs ahead.
            if done % config.log.every_steps:
                return False
            caught = processes.gather_json(stop.signal)
            stop.signal = next((name for name in caught if name), None)
        return bool(stop.signal)

    ends = list(
        batches.dispatch_ends(
            start,
            run.total_steps,
            size=config.steps_per_dispatch,
            periods=(config.log.every_steps, every_eval, every_save),
        )
    )
    steps = batches.train_batches(
        train_pictures,
        run.plan,
        start=start,
        stop=run.total_steps,
        devices=len(run.devices),
        own=own,
        teacher=run.teacher,
        images=not run.resident,
    )
    dispatches = batches.together(steps, np.diff([start, *ends]))
    stream = batches.prefetch(step.on_devices(dispatches, run.devices))
    closing.callback(stream.close)
    closing.callback(pipelines.close)  # before: what the stream waits for will not come
    results = None
    evaluated = processes.gather_json(bool(directory.evaluated))[0]
    try:
        if start and evaluation_due(start) and not evaluated:
            log.pause()
            results, tables = evaluate_and_write(start)
            log.resume(summary.headline(results))
        if processes.count() == 1:
            stop.check()
        for done, batch in zip(ends, stream, strict=True):
            train_state, metrics = train_step(train_state, batch, resident)
            log.dispatched(done, metrics)
            last = done == run.total_steps
            if last or done % config.log.every_steps == 0:
                write(done, log.interval())
                checkpoints.check()  # not only when the next one is due
            if evaluation_due(done):
                log.pause()
                results = None
                with contextlib.suppress(signals.Stopped):
                    results, tables = evaluate_and_write(done)
                    log.resume(summary.headline(results))
            stopping = stop_wanted(done)
            if last or (every_save and done % every_save == 0) or stopping:
                carried = log.carried()
                # Nothing is gained by a checkpoint among steps that are skipped, and
                # the last good one would make room for it.
                if last or stopping or not log.consecutive_skips:
                    directory.flush()
                    checkpoints.save(train_state, saved_config, carried)
            if stopping:
                stop.check()
        if results is None:  # killed between the last checkpoint and the summary
            results, tables = evaluate(run.total_steps)
        checkpoints.wait()
    except signals.Stopped as stopped:
        checkpoints.wait()
        kept = processes.gather_json(checkpoints.latest_step or None)[0]
        raise signals.Stopped(
            f"{stopped}; "
            + (f"step {kept} is saved, and" if kept else "no step was done:")
            + " the same command goes on from there"
        ) from stopped
    except FloatingPointError as error:
        checkpoints.wait()
        kept = processes.gather_json(checkpoints.latest_step or None)[0]
        raise _NotFinite(str(error), kept) from error
    closing.close()

    return directory.summarise(
        {
            "config_file": run.config_file,
            "variant": config.model.variant,
            "dataset": config.dataset.name,
            "class_names": list(run.train_source.class_names),
            "eval_split": run.eval_source.split,
            "eval_images": len(run.eval_source),
            "seed": config.seed,
            "steps": run.total_steps,
            "epochs": config.epochs,
            "batch_size": config.batch_size,
            "parameters": parameters,
            "flops_per_image": cost.forward_flops(run.model),
            "seconds": round(log.seconds, 1),
            "images_per_sec": log.images_per_sec,
            "resumed_at_step": start,
            "skipped_steps": directory.total("train/skipped"),
            **results,
            "teacher": run.teacher.manifest["teacher"] if run.teacher else None,
            "devices": [device.device_kind for device in run.devices],
            "absent_classes": evaluation.absent_classes(
                run.eval_source.labels, run.train_source.class_names
            ),
            "tables": tables,
        }
    )


def _start(run: Experiment, workdir: Path, saved_config: dict):
    """The checkpoints, and what the run goes on from.

    What a run that has a checkpoint once started from is not read again; what one that
    has none starts from is read before anything is written.

    Returns:
      `Checkpoints`; the state of the newest of them, of `init_from`, or from the seed,
      on the host or not: everything else that a step depends on follows from its step;
      and, of a checkpoint, the `Progress.carried` that was saved with it.
    """
    started, sentences, carried = run.initial_state(), [], None
    if processes.is_first() and run.config.init_from and not checkpoint.steps(workdir):
        started, sentences = run.starting_state()
    print("\n".join(sentences), end="\n" * bool(sentences), flush=True)
    checkpoints = processes.on_first(Checkpoints, workdir, run.config.checkpoint.keep)
    if processes.is_first() and checkpoints.latest_step is not None:
        try:
            started, carried = checkpoints.restore(started, saved_config)
        except BaseException:
            checkpoints.close()
            raise
    carried = processes.gather_json(carried)[0]
    return checkpoints, processes.from_first(started), carried


def _augmentation(run: Experiment) -> np.ndarray:
    """A picture [H, W, 3] of what the augmentation does to some training images."""
    return grid.draw(
        run.student,
        run.train_source,
        index=grid.spread(GRID, len(run.train_source)),
        views=range(min(GRID, run.plan.num_views or GRID)),
        title=f"recipe {run.config.augment.recipe}, seed {run.student.augment_seed}",
    )


def _confusions(tables: dict, class_names) -> dict:
    """By tag, a picture [1, H, W, 3] for what each set of parameters predicts with."""
    pictures = {}
    for name, per_head in tables.items():
        head = "mean" if "mean" in per_head else "class"
        if matrix := per_head.get(head, {}).get("confusion"):
            tag = f"{name}/{head}/confusion"
            pictures[tag] = confusion.picture(matrix, class_names, title=tag)[None]
    return pictures
