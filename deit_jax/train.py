"""The host loop, in reading order: check, build, restore, step, log, evaluate, save."""

import contextlib
import functools
import json
import math
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from deit_jax import pretrained
from deit_jax.data import batches, grid, sources, views
from deit_jax.data.host_pipeline import HostPipeline
from deit_jax.data.pictures import open_pictures
from deit_jax.distillation import losses, teacher_logits, teacher_views
from deit_jax.errors import InputError
from deit_jax.files import replace_file
from deit_jax.models import variants
from deit_jax.reporting import confusion
from deit_jax.student import student_views
from deit_jax.training import (
    cost,
    evaluation,
    model_card,
    optimizer,
    state,
    step,
    summary,
    writers,
)
from deit_jax.training.checkpoint import Checkpoints
from deit_jax.training.progress import Progress

GRID = 6  # images and views in the picture of the augmentation


def train_and_evaluate(config, workdir, *, config_file: str = "<config>") -> dict:
    """Trains the model that `config` describes, or resumes it, in `workdir`.

    Args:
      config: A `ConfigDict` as in configs/deit.py.
      workdir: The run directory: config.json, metrics.jsonl, TensorBoard events,
        checkpoints/ and, at the end, summary.json.
      config_file: Where the config came from, for messages and the summary.

    Returns:
      The summary, as in summary.json.

    Raises:
      InputError: The config, the data, the teacher cache or the run directory do not
        go together, or the loss is no longer finite.
    """
    workdir = Path(workdir)
    devices = jax.local_devices()
    _check_ranges(config)
    pretrained.check(config.init_from, workdir)
    batches.check_batch_size(
        config.batch_size,
        devices=len(devices),
        accumulation=config.optimizer.accumulation,
    )

    # Data, and the order in which it comes.
    train_source, eval_source = (
        sources.load(
            config.dataset.name, split, data_dir=config.dataset.data_dir or None
        )
        for split in (config.dataset.train_split, config.dataset.eval_split)
    )
    student = student_views(config, train_source)
    taught = config.distillation.kind != "none"
    cached_views = taught and config.distillation.view == "same"
    plan = views.BatchPlan(
        length=len(train_source),
        batch_size=config.batch_size,
        seed=config.seed,
        augment_seed=student.augment_seed,
        # Without a cache of views each epoch has a new one.
        num_views=config.distillation.num_views if cached_views else 0,
        repeats=student.repeats,
    )
    total_steps = math.ceil(config.epochs * plan.steps_per_epoch)
    if total_steps < 1:
        raise InputError(f"epochs={config.epochs} leaves nothing to train.")

    # Model, teacher and loss.
    model = variants.create(
        config.model.variant,
        num_classes=train_source.num_classes,
        image_size=config.dataset.image_size or None,
        drop_path=config.model.drop_path,
        dropout=config.model.dropout,
        position_std=config.model.position_std,
        dtype=config.model.dtype,
    )
    teacher, mixing = _open_teacher(config, train_source, model, student, config_file)

    # Optimizer and state.
    peak = optimizer.resolve_learning_rate(
        config.optimizer.learning_rate,
        batch_size=config.batch_size,
        reference_batch_size=config.optimizer.reference_batch_size,
    )
    schedule = optimizer.warmup_cosine(
        peak,
        total_steps=total_steps,
        warmup_steps=round(config.schedule.warmup_epochs * plan.steps_per_epoch),
        warmup_learning_rate=config.schedule.warmup_learning_rate,
        min_learning_rate=config.schedule.min_learning_rate,
    )
    gradient_transformation = optimizer.create(
        config.optimizer.name,
        schedule,
        weight_decay=config.optimizer.weight_decay,
        b1=config.optimizer.b1,
        b2=config.optimizer.b2,
        momentum=config.optimizer.momentum,
        clip_norm=config.optimizer.clip_norm,
        layer_decay=config.optimizer.layer_decay,
    )
    train_state = state.create(
        model, gradient_transformation, seed=config.seed, ema=config.ema.decay > 0
    )

    # Restore: the parameters, then everything that follows from the step. What they
    # started from is not read again.
    saved_config = json.loads(config.to_json_best_effort())
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    if checkpoints.latest_step is not None:
        train_state = checkpoints.restore(train_state, saved_config)
    elif config.init_from:
        params, sentences = pretrained.initial_params(
            config.init_from,
            model,
            jax.device_get(train_state.params),
            class_names=train_source.class_names,
            mean=config.dataset.mean,
            std=config.dataset.std,
            position_resize=config.model.position_resize,
            keep_heads=config.model.keep_heads,
        )
        # The optimizer's state is that of step 0, whatever the parameters are.
        train_state = train_state.replace(
            params=params,
            ema_params=jax.tree.map(np.copy, params) if config.ema.decay > 0 else None,
        )
        print("\n".join(sentences), flush=True)
    start = int(train_state.step)
    train_state = step.replicate(train_state, devices)
    finished = summary.read(workdir)
    if start >= total_steps and finished:
        checkpoints.close()
        print(
            f"{workdir} holds this run, finished. To train it again, delete the "
            "directory or give another --workdir."
        )
        summary.show(finished, workdir)
        return finished

    # Pictures: in memory, or read by a pipeline that has to be closed.
    pipelines = contextlib.ExitStack()
    train_pictures = pipelines.enter_context(
        student.open_pictures(train_source, workers=config.dataset.workers)
    )
    eval_pictures = pipelines.enter_context(
        open_pictures(
            eval_source,
            size=student.size,
            workers=config.dataset.workers,
            crop_ratio=config.dataset.eval_crop_ratio,
        )
    )

    # The run directory.
    replace_file(workdir / "config.json", json.dumps(saved_config, indent=1) + "\n")
    whole = eval_source.image_shape == (student.size, student.size, 3)
    model_card.write(
        workdir,
        model_card.ModelCard(
            variant=config.model.variant,
            image_size=student.size,
            class_names=tuple(train_source.class_names),
            mean=tuple(config.dataset.mean),
            std=tuple(config.dataset.std),
            crop_ratio=1.0 if whole else config.dataset.eval_crop_ratio,
            dtype=config.model.dtype,
        ),
    )
    metrics_file = writers.MetricsFile(workdir, start)
    tensorboard = writers.create(workdir)
    if start == 0:
        text = f"```\n{json.dumps(saved_config, indent=1)}\n```"
        tensorboard.write_texts(0, {"config": text})
        picture = grid.draw(
            student,
            train_source,
            index=grid.spread(GRID, len(train_source)),
            views=range(min(GRID, plan.num_views or GRID)),
            title=f"recipe {config.augment.recipe}, seed {student.augment_seed}",
        )
        tensorboard.write_images(0, {"augmentation": picture[None]})

    parameters = state.count_parameters(train_state.params)
    described = _describe(
        config, train_source, eval_source, devices, student, teacher, mixing
    )
    if isinstance(train_pictures, HostPipeline):
        described += f"\npictures are read by {config.dataset.workers} worker processes"
    print(
        f"{config.model.variant}: {parameters:,} parameters\n{described}\n"
        f"{total_steps:,} steps of {config.batch_size} images "
        f"({plan.steps_per_epoch} an epoch), peak learning rate {peak:g}\n"
        f"run directory {workdir}" + (f", resumed at step {start}" if start else ""),
        flush=True,
    )

    inputs = functools.partial(
        step.inputs,
        num_classes=train_source.num_classes,
        label_smoothing=config.loss.label_smoothing,
        augment_seed=student.augment_seed,
        augmentation=student.settings,
        mix_teacher=functools.partial(
            losses.mix_teacher_logits,
            tau=losses.teacher_temperature(
                config.distillation.kind, config.distillation.tau
            ),
        )
        if mixing == "linear"
        else None,
    )
    train_step = step.pmap_train_step(
        devices,
        model=model,
        optimizer=gradient_transformation,
        inputs=inputs,
        loss=functools.partial(losses.training_loss, **_loss_settings(config)),
        seed=config.seed,
        ema_decay=config.ema.decay,
        accumulation=config.optimizer.accumulation,
    )
    eval_step = step.pmap_eval_step(
        devices,
        model=model,
        mean=config.dataset.mean,
        std=config.dataset.std,
        token_cosine=True,
    )
    collect_logits = functools.partial(
        evaluation.collect_logits,
        eval_step,
        source=eval_pictures,
        batch_size=config.eval.batch_size,
        devices=len(devices),
    )

    def write(done: int, values: dict[str, float]) -> None:
        metrics_file.write(done, {"epoch": done / plan.steps_per_epoch, **values})
        tensorboard.write_scalars(done, values)

    def evaluate_and_write(done: int) -> tuple[dict, dict]:
        params = {"eval": train_state.params}
        if train_state.ema_params is not None:
            params["eval_ema"] = train_state.ema_params
        last = done == total_steps
        results, tables = evaluation.score(
            *collect_logits(params), everything=True if last else None
        )
        write(done, flatten_dict(results, sep="/"))
        if last:
            tensorboard.write_images(
                done, _confusions(tables, train_source.class_names)
            )
        return results, tables

    # The loop. Everything is written before the checkpoint that covers it is saved.
    log = Progress(start, total_steps, plan, config.batch_size, schedule)
    every_eval = round(config.eval.every_epochs * plan.steps_per_epoch)
    every_save = config.checkpoint.every_steps
    stream = batches.prefetch(
        batches.train_batches(
            train_pictures,
            plan,
            start=start,
            stop=total_steps,
            devices=len(devices),
            teacher=teacher,
        )
    )
    results = None
    began = time.monotonic()
    try:
        for done, batch in enumerate(stream, start=start + 1):
            train_state, metrics = train_step(train_state, batch)
            log.dispatched(done, metrics)
            last = done == total_steps
            if last or done % config.log.every_steps == 0:
                write(done, log.interval())
            if last or (every_eval and done % every_eval == 0):
                log.pause()
                results, tables = evaluate_and_write(done)
                log.resume(summary.headline(results))
            if last or (every_save and done % every_save == 0):
                log.drain()  # a state that is not finite must not be saved
                checkpoints.save(train_state, saved_config)
        if results is None:  # killed between the last checkpoint and the summary
            results, tables = evaluate_and_write(total_steps)
    except FloatingPointError as error:
        checkpoints.wait()
        kept = checkpoints.latest_step
        raise InputError(
            f"{error} Lower --config.optimizer.learning_rate, lengthen the warm-up, or "
            "set --config.optimizer.clip_norm=1. "
            + (f"The checkpoint of step {kept} is kept." if kept else "No checkpoint.")
        ) from error
    finally:
        pipelines.close()  # first: what the stream waits for will not come
        stream.close()
        log.close()
        checkpoints.close()  # waits for the saves under way
        metrics_file.close()
        tensorboard.close()
    seconds = time.monotonic() - began

    return summary.write(
        workdir,
        {
            "config_file": config_file,
            "variant": config.model.variant,
            "dataset": config.dataset.name,
            "class_names": list(train_source.class_names),
            "eval_split": eval_source.split,
            "eval_images": len(eval_source),
            "seed": config.seed,
            "steps": total_steps,
            "epochs": config.epochs,
            "batch_size": config.batch_size,
            "parameters": parameters,
            "flops_per_image": cost.forward_flops(model),
            "seconds": round(seconds, 1),
            "images_per_sec": log.images_per_sec,
            "resumed_at_step": start,
            **results,
            "teacher": teacher.manifest["teacher"] if teacher else None,
            "devices": [device.device_kind for device in devices],
            "absent_classes": evaluation.absent_classes(
                eval_source.labels, train_source.class_names
            ),
            "tables": tables,
        },
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


def _check_ranges(config) -> None:
    """Refuses numbers that nothing further down would explain."""
    for field, low, high in (
        ("optimizer.accumulation", 1, math.inf),
        ("optimizer.reference_batch_size", 0, math.inf),
        ("optimizer.clip_norm", 0, math.inf),
        ("loss.label_smoothing", 0, 1),
        ("distillation.num_views", 1, math.inf),
        ("ema.decay", 0, 1),
        ("eval.batch_size", 1, math.inf),
        ("eval.every_epochs", 0, math.inf),
        ("log.every_steps", 1, math.inf),
        ("checkpoint.every_steps", 0, math.inf),
    ):
        section, name = field.split(".")
        value = config[section][name]
        if not low <= value <= high:
            expected = f"{low} .. {high}" if high < math.inf else f"at least {low}"
            raise InputError(f"{field}={value}: expected {expected}.")


def _loss_settings(config) -> dict:
    names = ("kind", "head", "alpha", "tau", "reduction")
    return {name: config.distillation[name] for name in names}


def _open_teacher(config, source, model, student, config_file: str):
    """The teacher cache of the run and how it mixes; refuses what cannot be distilled.

    Returns:
      (`TeacherLogits`, `teacher_views.resolve_mixing`), or (None, "none").
    """
    losses.check(
        **_loss_settings(config),
        student_heads=model.heads,
        variant=config.model.variant,
    )
    distillation = config.distillation
    if distillation.kind == "none":
        return None, "none"
    mixing = teacher_views.resolve_mixing(
        distillation.view, distillation.mixing, student
    )
    directory = distillation.logits_dir
    try:
        tau = losses.teacher_temperature(distillation.kind, distillation.tau)
        teacher = teacher_logits.open_cache(directory, tau=tau)
    except InputError as error:
        if directory and (Path(directory) / teacher_logits.MANIFEST).exists():
            raise  # it is there and damaged: the message says how
        commands = teacher_logits.export_commands(
            source.name, directory or "runs/logits", config_file
        )
        raise InputError(
            f"distillation.kind={distillation.kind!r} needs the logits of a "
            f"teacher: {error} Make them with\n{commands}\n"
            "or train without a teacher: --config=configs/vit.py"
        ) from error
    teacher_views.check(
        teacher,
        source,
        student,
        view=distillation.view,
        mixing=mixing,
        num_views=distillation.num_views,
        config=config_file,
    )
    teacher_views.check_examples(teacher, source, student, mixing=mixing)
    return teacher, mixing


def _views_in_words(config, mixing: str) -> str:
    if config.distillation.view == "plain":
        seen = "it saw the plain images"
    else:
        seen = f"it saw the same images, {config.distillation.num_views} cached views"
    return seen + {"exact": ", mixed", "linear": ", mixed linearly", "none": ""}[mixing]


def _describe(
    config, train_source, eval_source, devices, student, teacher, mixing
) -> str:
    lines = [
        f"{config.dataset.name}: {len(train_source):,} training images "
        f"({train_source.split}), {len(eval_source):,} for evaluation "
        f"({eval_source.split}), {train_source.num_classes} classes: "
        + textwrap.shorten(
            ", ".join(train_source.class_names), 200, placeholder=" ..."
        ),
        f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}, "
        f"{config.model.dtype}",
        f"augmentation {config.augment.recipe}: {student.settings}",
    ]
    for source in (train_source, eval_source):
        # Silently without the HEIC files of a phone, a class could be half of itself.
        if passed_over := getattr(source, "passed_over", None):
            counted = ", ".join(f"{n:,} {ending}" for ending, n in passed_over.items())
            lines.append(f"{source.split}: files passed over, not pictures: {counted}")
    if teacher is not None:
        about = teacher.manifest["teacher"]
        lines.append(
            f"teacher {about['arch']}, top-1 {about['top1']:.4f} on "
            f"{about['top1_split']}; {_views_in_words(config, mixing)}, "
            f"{config.distillation.kind} distillation of the "
            f"{config.distillation.head} head, alpha {config.distillation.alpha}, "
            f"tau {config.distillation.tau}"
        )
    return "\n".join(lines)
