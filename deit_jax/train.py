"""The host loop, in reading order: open, restore, step, log, save, evaluate."""

import contextlib
import itertools
import sys
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from deit_jax import experiment, files, teaching
from deit_jax.data import batches, image_check
from deit_jax.distillation.features import without_projector
from deit_jax.errors import InputError
from deit_jax.experiment import Experiment
from deit_jax.models import cost
from deit_jax.models.params import count_parameters, parameter_names
from deit_jax.training import (
    checkpoint,
    evaluation,
    processes,
    run_directory,
    run_lock,
    signals,
    step,
    summary,
    trainable,
)
from deit_jax.training.evaluation import Evaluator
from deit_jax.training.progress import Progress

# A damaged evaluation image is found now and not after an epoch, or in a short time.
CHECK_SECONDS = 10
GRID = 6  # images and views in the image of the augmentation
ADVICE = (
    "Lower --config.optimizer.learning_rate, lengthen the warm-up, or set "
    "--config.optimizer.clip_norm=1."
)


def train_and_evaluate(config, workdir, *, config_file: str = "<config>") -> dict:
    """Trains the model that `config` describes in `workdir`, or resumes its training.

    Args:
      config: A `ConfigDict` as in configs/deit.py.
      workdir: The run directory.
      config_file: What followed `--config=`, for messages and the summary.

    Returns:
      The summary, as in summary.json; None in all processes but the first.

    Raises:
      InputError: The config, the data, the teacher cache or the run directory do not
        go together, the run directory is in use, its disk is full, or the loss is no
        longer finite.
      signals.Stopped: A signal stopped the run; the state is saved.
    """
    workdir = Path(workdir)
    run = experiment.open_run(config, workdir, config_file)
    lock = run_lock.hold(workdir) if processes.is_first() else contextlib.nullcontext()
    with files.explain_full_disk(workdir), signals.caught() as stop, lock:
        for again in (True, False):
            try:
                return _train(run, workdir, stop)
            except FloatingPointError as error:
                kept = processes.broadcast_json(checkpoint.steps(workdir)[-1:])
                if not kept:
                    raise InputError(f"{error} {ADVICE} No checkpoint.") from error
                if not again:
                    raise InputError(
                        f"{error} The run has gone back once already. {ADVICE} The "
                        f"checkpoint of step {kept[0]} is kept."
                    ) from error
                # If a device failed, the same steps succeed now. Otherwise they end as
                # before.
                again_from = f"Once more from the checkpoint of step {kept[0]:,}."
                print(f"{error} {again_from}", flush=True)


def _train(run: Experiment, workdir: Path, stop: signals.Stop) -> dict:
    """Trains from the newest checkpoint, if there is one, to the end."""
    with contextlib.ExitStack() as closing:
        checkpoints, train_state, resume_state = _start(run, workdir, closing)
        finished = processes.broadcast_json(summary.read(workdir))
        if int(train_state.step) >= run.total_steps and finished:
            print(
                f"{workdir} holds this run, finished. To train it again, delete the "
                "directory or give another --workdir."
            )
            summary.show(finished, workdir)
            return finished
        training = Training(
            run, workdir, stop, closing, checkpoints, train_state, resume_state
        )
        training.finish()
        closing.close()
        training.directory.keep_predictions(
            training.final.logits,
            training.final.labels,
            fingerprint=run.eval_source.fingerprint,
        )
        return training.directory.summarise(training.facts())


def _start(run: Experiment, workdir: Path, closing: contextlib.ExitStack):
    """Opens the checkpoints, and finds what the run goes on from.

    A run that has a checkpoint does not read again what it once started from; a run
    without one reads it before anything is written.

    Returns:
      The checkpoints; the state, from whose step the data order and all randomness
      follow; and the `Progress.resume_state` that was saved with it, or None.
    """
    state, sentences, resume_state = run.initial_state(), [], None
    if processes.is_first() and not checkpoint.steps(workdir):
        if run.start:
            state, sentences = run.starting_state()
        if run.streams_eval:
            image_check.check_images(run.eval_source, seconds=CHECK_SECONDS)
    for sentence in sentences:
        print(sentence, flush=True)
    checkpoints = checkpoint.open_checkpoints(workdir, run.keep)
    closing.callback(checkpoints.close)  # waits for the saves under way
    if checkpoints.latest_step is not None:
        state, resume_state = checkpoints.restore(state, run.saved_config, run.data)
    resume_state = processes.broadcast_json(resume_state)
    return checkpoints, processes.broadcast(state), resume_state


class Training:
    """One start of a run: what it has open, and its `state` after step `done`."""

    def __init__(
        self, run, workdir, stop, closing, checkpoints, train_state, resume_state
    ):
        self.run, self.checkpoints, self.stop = run, checkpoints, stop
        self.start = self.done = int(train_state.step)
        self.directory = run_directory.open_directory(workdir, self.start)
        closing.callback(self.directory.close)
        self.directory.describe(run.saved_config, run.card)
        if self.start == 0 and processes.is_first():
            self.directory.write_images(0, {"augmentation": _augmentation(run)[None]})

        opened = closing.enter_context(contextlib.ExitStack())
        images = opened.enter_context(run.open_train_images())
        self.evaluator = Evaluator(
            eval_step=run.eval_step(),
            source=opened.enter_context(run.open_eval_images()),
            batch_size=run.eval_batch_size,
            devices=run.devices,
            total_steps=run.total_steps,
            stop=stop,
        )
        self.parameters = count_parameters(without_projector(train_state.params))
        trained, _ = trainable.split(train_state.params, run.settings["trainable"])
        self._announce(
            workdir,
            getattr(images, "workers", None),
            count_parameters(without_projector(trained)),
        )
        self.state = step.replicate(train_state, run.devices)
        self.resident = step.place_whole(
            run.resident_arrays(getattr(images, "images", None)), run.devices
        )
        self.train_step = run.train_step()
        self.compare = teaching.comparison(run)
        self.log = Progress(
            self.start,
            run.cadence,
            run.plan,
            run.schedule,
            max_consecutive_skips=run.max_consecutive_skips,
            parameters=parameter_names(trained),
            resume_state=resume_state,
            rates=tuple(self.directory.rates),
        )
        closing.callback(self.log.close)
        self.stream = self._open_stream(images)
        closing.callback(self.stream.close)
        closing.callback(opened.close)  # first: what the stream waits for will not come
        self.evaluated = processes.broadcast_json(bool(self.directory.evaluated))
        self.final = None

    def _announce(self, workdir: Path, workers: int | None, trained: int) -> None:
        run, which = self.run, self.run.settings["trainable"]
        frozen = ""
        if trained < self.parameters:
            frozen = f", {trained:,} of them trained (optimizer.trainable={which!r})"
        print(f"{run.card.variant}: {self.parameters:,} parameters{frozen}")
        print(run.describe())
        if workers:
            print(f"images are read by {workers} worker processes")
        resumed = f", resumed at step {self.start}" if self.start else ""
        print(f"run directory {workdir}{resumed}", flush=True)

    def _open_stream(self, images):
        """The batches of each dispatch, placed on the devices ahead of their step."""
        run = self.run
        steps = run.train_batches(images, self.start, run.total_steps)
        ends = itertools.chain([self.start], run.cadence.ends(self.start))
        numbers = (end - before for before, end in itertools.pairwise(ends))
        dispatches = batches.together(steps, numbers)
        return batches.prefetch(step.on_devices(dispatches, run.devices))

    def finish(self) -> None:
        """Runs the steps that are left; a stop or an error costs no finished step."""
        try:
            self._loop()
            self.checkpoints.wait()
        except signals.Stopped as stopped:
            if self.done > self.start:
                self._save()
            self.checkpoints.wait()
            newest = processes.broadcast_json(self.checkpoints.latest_step)
            raise signals.Stopped(f"{stopped}; {_saved_in_words(newest)}") from stopped
        except FloatingPointError:
            raise
        except Exception as error:
            self._rescue(error)
            raise

    def _loop(self) -> None:
        """Saves before it evaluates: an evaluation that fails costs no state.

        A run that resumes begins with the evaluation that its checkpoint lacks.
        """
        cadence, log = self.run.cadence, self.log
        if self.start and cadence.evaluates(self.start) and not self.evaluated:
            self._evaluate()
        if processes.count() == 1:
            self.stop.check()
        for done, batch in zip(cadence.ends(self.start), self.stream, strict=True):
            self.state, metrics = self.train_step(self.state, batch, self.resident)
            self.done = done
            log.dispatched(done, metrics)
            if cadence.logs(done):
                self._write(log.interval())
                self.checkpoints.check()  # not only when the next one is due
            if cadence.verifies(done):
                self._compare(batch)
            if self._stop_requested():
                self.stop.check()
            if cadence.saves(done):
                # A checkpoint among skipped steps gains nothing, and would push the
                # last good one out.
                log.drain()
                if done == self.run.total_steps or not log.consecutive_skips:
                    self._save()
            if cadence.evaluates(done):
                self._evaluate()
        if self.final is None:  # killed between the evaluation and the summary
            self.final = self.evaluator(self.state, self.done)

    def _write(self, values: dict, *, flush: bool = False) -> None:
        epoch = self.done / self.run.plan.steps_per_epoch
        self.directory.write(self.done, values, epoch=epoch, flush=flush)

    def _save(self) -> None:
        resume_state = self.log.resume_state()
        self.directory.flush()
        self.checkpoints.save(
            self.state, self.run.saved_config, data=self.run.data, progress=resume_state
        )

    def _compare(self, batch) -> None:
        """Compares the cached logits of the step that is done with the teacher's."""
        self.log.pause()
        gap, words = self.compare(batch, self.resident)
        self._write({"train/cache_gap": gap})
        self.log.resume(f"step {self.done}  {words}")

    def _evaluate(self) -> None:
        self.log.pause()
        found = self.evaluator(self.state, self.done)
        if self.done == self.run.total_steps:
            self.final = found
            names = self.run.card.class_names
            self.directory.write_images(self.done, _confusions(found.tables, names))
        self._write(flatten_dict(found.results, sep="/"), flush=True)
        self.log.resume(summary.headline(found.results))

    def _stop_requested(self) -> bool:
        """Whether a signal came, to any of the processes."""
        if processes.count() > 1:
            # They wait for each other there anyway: it ends what runs ahead.
            if not self.run.cadence.logs(self.done):
                return False
            caught = processes.gather_json(self.stop.signal)
            self.stop.signal = next((name for name in caught if name), None)
        return bool(self.stop.signal)

    def _rescue(self, error: Exception) -> None:
        """Saves the newest finished step before `error` ends the run."""
        if self.done == self.start or files.is_full_disk(error):
            return
        try:
            self.log.drain()
            if not self.log.consecutive_skips:
                self._save()
            self.checkpoints.wait()
        except Exception:  # the state is lost, or cannot be written: `error` says more
            return
        # No broadcast: the other processes do not know of the error.
        saved = _saved_in_words(self.checkpoints.latest_step)
        if isinstance(error, InputError):
            raise InputError(f"{error} {saved[0].upper()}{saved[1:]}.") from error
        print(saved, file=sys.stderr, flush=True)

    def facts(self) -> dict:
        """The content of summary.json, but for the versions."""
        run, config = self.run, self.run.saved_config
        return {
            "config_file": run.config_file,
            "variant": run.card.variant,
            "dataset": run.train_source.name,
            "class_names": list(run.card.class_names),
            "eval_split": run.eval_source.split,
            "eval_images": len(run.eval_source),
            "seed": config["seed"],
            "steps": run.total_steps,
            "epochs": config["epochs"],
            "batch_size": run.plan.batch_size,
            "parameters": self.parameters,
            "flops_per_image": cost.forward_flops(run.model),
            "seconds": round(self.log.seconds, 1),
            "images_per_sec": self.log.images_per_sec,
            "resumed_at_step": self.start,
            "skipped_steps": self.directory.total("train/skipped"),
            **self.final.results,
            "teacher": teaching.facts(run),
            "devices": [device.device_kind for device in run.devices],
            "absent_classes": evaluation.absent_classes(
                run.eval_source.labels, run.card.class_names
            ),
            "tables": self.final.tables,
        }


def _saved_in_words(step: int | None) -> str:
    done = f"step {step} is saved, and" if step else "no step was done:"
    return f"{done} the same command goes on from there"


def _augmentation(run: Experiment) -> np.ndarray:
    """An image [H, W, 3] of what the augmentation does to some training images."""
    from deit_jax.reporting import grid  # matplotlib: a resumed run needs none yet

    return grid.draw(
        run.student,
        run.train_source,
        index=grid.spread(GRID, len(run.train_source)),
        views=range(min(GRID, run.plan.num_views or GRID)),
        title=f"recipe {run.saved_config['augment']['recipe']}, seed "
        f"{run.student.augment_seed}",
    )


def _confusions(tables: dict, class_names) -> dict:
    """By tag, an image [1, H, W, 3] of the head that each set of parameters uses."""
    from deit_jax.reporting import confusion

    images = {}
    for name, per_head in tables.items():
        head = "mean" if "mean" in per_head else "class"
        if matrix := per_head.get(head, {}).get("confusion"):
            tag = f"{name}/{head}/confusion"
            images[tag] = confusion.image(matrix, class_names, title=tag)[None]
    return images
