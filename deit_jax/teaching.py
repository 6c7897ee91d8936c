"""What teaches a run: a cache of a teacher's logits, or the teacher itself.

A live teacher is asked in the train step, about the very images that the student sees
there. One at hand beside a cache is asked now and then whether the cache is right.
"""

import dataclasses
import functools
import os
import urllib.parse
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from deit_jax import recipe, teachers
from deit_jax.data import batches
from deit_jax.data.rng import host_device
from deit_jax.distillation import cache_format, classes, losses, match, teacher_cache
from deit_jax.distillation import teacher as teacher_lib
from deit_jax.distillation.encoding import TOLERANCE
from deit_jax.distillation.export_commands import export_commands
from deit_jax.distillation.live_teacher import LiveTeacher
from deit_jax.distillation.teacher import check_number
from deit_jax.distillation.teacher_cache import TeacherCache
from deit_jax.errors import InputError
from deit_jax.models import variants
from deit_jax.training import inputs, processes, step

FIELD = "--config.distillation."
# Fields that only a cache has a use for: on the command line of a live run, a mistake.
OF_A_CACHE = ("logits_dir", "num_views")
# What a bare state dict does not say, behind its path.
OPTIONS = {"arch": str, "stem": str, "image_size": int}
# May be beyond the rounding of float16 where the cache was computed in half precision:
# this share of the largest logit. In bfloat16 a number has 8 bits, in all layers.
HALF = 2**-5
# Images that a live teacher's accuracy is measured on, at each start.
MEASURED = 1024
BLOCK = 64  # of them, at once


def check_given(fields: Iterable[str], source: str) -> None:
    """Refuses what a command line says of a cache where the teacher is live.

    Args:
      fields: The fields of the config that the command line sets.
      source: `distillation.source`.
    """
    if source != "live":
        return
    for name in OF_A_CACHE:
        if f"distillation.{name}" in fields:
            raise InputError(
                f"{FIELD}{name} belongs to a cache, and distillation.source='live' has "
                "none: the teacher sees each image that the student sees, and no view "
                f"comes back. Leave it out, or set {FIELD}source=cache."
            )


def check(distillation) -> None:
    """Refuses fields of `config.distillation` that do not go together."""
    live, every = distillation.source == "live", distillation.verify_every
    wanted = "source=live" if live else f"verify_every={every}"
    if distillation.kind == "none" or not (live or every):
        return
    if live and every:
        raise InputError(
            f"distillation.verify_every={every} compares a cache with its teacher, and "
            f"distillation.source='live' has no cache. Leave it out."
        )
    if not distillation.teacher:
        raise InputError(
            f"distillation.{wanted} asks the teacher itself: say with {FIELD}teacher= "
            "which, a run directory or a file of weights."
        )
    if distillation.view != "same":
        raise InputError(
            f"distillation.{wanted} with distillation.view={distillation.view!r}: in "
            "the train step the teacher sees the student's images. Set "
            f"{FIELD}view=same."
        )


def open_teachers(config, run):
    """The `Experiment` `run` with its teacher.

    Raises:
      InputError: The teacher cannot be opened, or does not belong to the run.
    """
    distillation = config.distillation
    cache = live = None
    if distillation.source == "cache":
        cache = _open_cache(config, run)
    if distillation.source == "live":
        live = _measured(_open_live(config, run, config.model.dtype), config, run)
    elif distillation.verify_every:
        # As the export computed, as far as JAX does.
        precision = cache.manifest["teacher"].get("precision")
        dtype = precision if precision in variants.DTYPES else "float32"
        live = _open_live(config, run, dtype)
    return with_teachers(run, cache, live)


def with_teachers(run, cache: TeacherCache | None, live: LiveTeacher | None):
    """The `Experiment` `run` with its teacher: a cache, a live one or both."""
    prepare = run.settings["inputs"]
    linear = prepare.keywords["mix_teacher"] is not None
    prepare = functools.partial(
        prepare,
        # It sees the images before they are mixed: that is left to the step.
        unmixed=live is not None and linear,
        ask=live.ask if live and not cache else None,
    )
    settings = {**run.settings, "inputs": prepare}
    return dataclasses.replace(run, teacher=cache, live=live, settings=settings)


def _open_cache(config, run) -> TeacherCache:
    """The teacher's cache; refuses one that does not belong to the run."""
    distillation, source = config.distillation, run.train_source
    directory = distillation.logits_dir
    try:
        tau = losses.teacher_temperature(distillation.kind, distillation.tau)
        cache = teacher_cache.open_cache(
            directory, tau=tau, features=distillation.kind == "features"
        )
    except InputError as error:
        found = teacher_cache.find(directory) / cache_format.MANIFEST
        if directory and found.exists():
            raise  # it is there and damaged: the message says how
        commands = export_commands(
            source.name, directory or "runs/logits", run.config_file
        )
        raise InputError(
            f"distillation.kind={distillation.kind!r} needs the logits of a "
            f"teacher: {error} Make them with\n{commands}\n"
            f"or ask the teacher itself ({FIELD}source=live), or train without one: "
            "--config=configs/vit.py"
        ) from error
    mixing = recipe.mixing(config, run.student)
    match.check(
        cache,
        source,
        run.student,
        view=distillation.view,
        mixing=mixing,
        num_views=distillation.num_views,
        config=run.config_file,
    )
    match.check_examples(cache, source, run.student, mixing=mixing)
    return cache


def _open_live(config, run, dtype: str) -> LiveTeacher:
    """The teachers of the config, with the classes of the run."""
    members = []
    for spec in config.distillation.teacher.split(","):
        path, options = _parse(spec)
        opened = teachers.open_teacher(path, dtype=dtype, **options)
        try:
            member, words = teacher_lib.match_classes(opened, run.train_source)
        except InputError as error:
            raise InputError(f"{spec}: {error}") from error
        if words:
            print(f"note: {words}", flush=True)
        members.append(member)
    kind, tau = config.distillation.kind, config.distillation.tau
    check_number(kind, len(members))
    live = LiveTeacher(
        tuple(members),
        losses.teacher_temperature(kind, tau),
        features=kind == "features",
    )
    return dataclasses.replace(live, flops=flops(live, run.student.size))


def _parse(spec: str) -> tuple[str, dict]:
    """`resnet50.pt?arch=resnet50&image_size=64` to its path and what is behind it."""
    path, _, query = spec.strip().partition("?")
    try:
        given = urllib.parse.parse_qsl(query, strict_parsing=bool(query))
        options = {name: OPTIONS[name](value) for name, value in given}
    except (KeyError, ValueError) as error:
        raise InputError(
            f"distillation.teacher={spec!r}: expected {' and '.join(OPTIONS)} behind "
            "the ?, as in resnet50.pt?arch=resnet50&image_size=64"
        ) from error
    return os.path.expanduser(path), options


def flops(live: LiveTeacher, size: int) -> float:
    """Floating-point operations for one image of `size` pixels, by XLA's count."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    with jax.default_device(host_device()):  # not every kind of device can count
        lowered = jax.jit(live.ask).lower(live.params, image)
    return lowered.cost_analysis()["flops"]


def _measured(live: LiveTeacher, config, run) -> LiveTeacher:
    """`live` with its accuracy on images of the evaluation; refuses one near chance.

    They are those that the student is evaluated on, of its size, spread over the split.
    """
    length = len(run.eval_source)
    count = min(MEASURED, length)
    index = np.linspace(0, length - 1, count).round().astype(np.int32)
    ask, params = jax.jit(live.ask), jax.device_put(live.params)
    predicted, labels = [], []
    with run.open_eval_images() as images:
        for batch, own in batches.eval_batches(
            images, batch_size=BLOCK, devices=1, index=index
        ):
            answers = ask(params, batch["image"][0])
            predicted.append(np.asarray(answers.logits).argmax(axis=1))
            labels.append(own)
    predicted, labels = (np.concatenate(x)[:count] for x in (predicted, labels))
    top1 = float((predicted == labels).mean())
    split = run.eval_source.split
    if count < length:
        split += f", {count:,} images"
    if not config.distillation.allow_weak_teacher:
        classes.check_strength(
            top1,
            np.bincount(labels, minlength=run.eval_source.num_classes),
            f"{run.eval_source.name} {split}",
            f"Check {FIELD}teacher, or set {FIELD}allow_weak_teacher=True.",
        )
    return dataclasses.replace(live, top1=top1, split=split)


def comparison(run) -> Callable:
    """Compares the cached logits of a step with those of the teacher at hand.

    Returns:
      (batch, resident), as for `step.pmap_train_step` -> the largest |cached - live|,
      and a sentence about it.
    """
    if not (run.live and run.teacher):
        return processes.nothing
    mixing = run.settings["inputs"].keywords
    ask = step.pmap_teacher(
        run.devices,
        ask=run.live.ask,
        images=functools.partial(
            inputs.student_images,
            augment_seed=run.student.augment_seed,
            augmentation=run.student.settings,
            mixed=not mixing["unmixed"],
        ),
    )
    return functools.partial(_compare, ask, run.teacher)


def _compare(ask: Callable, cache: TeacherCache, batch, resident) -> tuple[float, str]:
    live = jax.tree.map(
        lambda x: np.asarray(x).reshape(-1, x.shape[-1]), ask(batch, resident)
    )
    view, index = (np.asarray(batch[name]) for name in ("view", "index"))
    if view.ndim == 3:  # of several steps the last
        view, index = view[:, -1], index[:, -1]
    stored = cache.rows(view.reshape(-1), index.reshape(-1))
    found = cache.encoding.compare(stored, live)
    if cache.manifest["teacher"].get("precision", "float32") == "float32":
        tolerance = TOLERANCE
    else:
        tolerance = max(TOLERANCE, float(np.abs(live.logits).max()) * HALF)
    gap, beyond = np.max(processes.gather_json([float(x) for x in found]), axis=0)
    words = f"max |cached - live| {gap:.3g}, "
    if beyond <= tolerance:  # not a number is not
        return float(gap), words + "as float16 rounds and the tolerance allows"
    return float(gap), words + (
        f"{beyond:.3g} more than float16 rounds, ABOVE the tolerance of {tolerance:g}: "
        f"{cache.directory} was not made with this teacher or these images"
    )


def facts(run) -> Mapping | None:
    """The summary's `teacher`."""
    if run.teacher:
        return run.teacher.manifest["teacher"]
    if not run.live:
        return None
    return run.live.describe() | {
        "source": "live",
        "flops_per_image": run.live.flops,
        "bytes": run.live.bytes,
    }


def describe(run) -> list[str]:
    """The teacher of a run, for the terminal."""
    distillation = run.saved_config["distillation"]
    mixed = ""
    if run.student.settings.mixes:
        linear = run.settings["inputs"].keywords["mix_teacher"] is not None
        mixed = ", mixed linearly" if linear else ", mixed"
    about = facts(run)
    seen = f"it saw the same images, {distillation['num_views']} cached views"
    if distillation["view"] == "plain":
        seen = "it saw the plain images"
    if not run.teacher:
        seen = "it sees the student's images in each step"
    lines = [
        f"teacher {about['arch']}, top-1 {about['top1']:.4f} on "
        f"{about['top1_split']}; {seen}{mixed}, {distillation['kind']} "
        f"distillation of the {distillation['head']} head, alpha "
        f"{distillation['alpha']}, tau {distillation['tau']}"
    ]
    if run.teacher_width:
        how = distillation["features"]
        lines.append(
            f"its {run.teacher_width:,} features too: {how['distance']} distance of "
            f"the student's {how['student']}, weight {how['weight']:g}"
        )
    if run.live:
        does = f"is compared with the cache every {distillation['verify_every']} steps"
        does = does if run.teacher else "is live"
        lines.append(
            f"the teacher {does}: {run.live.flops / 1e9:,.2f} GFLOPs an "
            f"image, {run.live.bytes / 1e6:,.1f} MB on each device, "
            f"{run.live.members[0].dtype}"
        )
    return lines
