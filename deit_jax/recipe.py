"""Turns a ConfigDict (configs/deit.py) into objects, and checks each of its fields.

No module below this one and `optimisation` sees a config.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence

import jax
import numpy as np

from deit_jax import optimisation, pretrained
from deit_jax.data import batches
from deit_jax.data.augment import erase, geometry, recipes
from deit_jax.data.plan import BatchPlan, mix_off_view
from deit_jax.data.student_views import PLACES, StudentViews
from deit_jax.distillation import cache_format, features, losses, match, teacher_cache
from deit_jax.errors import InputError
from deit_jax.models import position, variants
from deit_jax.models.model_card import MIN_STD, ModelCard
from deit_jax.models.vit import VisionTransformer
from deit_jax.rules import (
    FLAG,
    TEXT,
    bounds,
    channels,
    choice,
    number,
    optional,
    row,
    whole,
)
from deit_jax.training import inputs, optimizer, schedule
from deit_jax.training.cadence import Cadence

COUNT, SEED = whole(1), whole(0, 2**32 - 1)
SHARE, RATE, POSITIVE = number(0, 1), number(0, below=1), number(above=0)
MAX_ASPECT = erase.MAX_ASPECT

RULES = {
    "seed": SEED,
    "epochs": POSITIVE,
    "batch_size": COUNT,
    "steps_per_dispatch": COUNT,
    "init_from": optional(TEXT),
    "dataset.name": TEXT,
    "dataset.data_dir": TEXT,
    "dataset.train_split": TEXT,
    "dataset.eval_split": TEXT,
    "dataset.image_size": whole(0),
    "dataset.workers": whole(0),
    "dataset.on_device": optional(FLAG),
    "dataset.eval_crop_ratio": number(above=0, high=1),
    "dataset.mean": channels(number(0, 1)),
    "dataset.std": channels(number(MIN_STD)),
    "model.variant": TEXT,  # variants.create lists the names
    "model.dtype": choice(variants.DTYPES),
    "model.remat": FLAG,
    "model.attention": choice(variants.ATTENTIONS),
    "model.drop_path": RATE,
    "model.dropout": RATE,
    "model.position_std": number(0),
    "model.init_values": optional(POSITIVE),
    "model.pool": choice(variants.POOLS),
    "transfer.position_resize": choice(position.METHODS),
    "transfer.keep_heads": optional(FLAG),
    "augment.seed": SEED,
    "augment.repeats": COUNT,
    "augment.place": choice(PLACES),
    "augment.recipe": TEXT,  # recipes.resolve lists the names
    "augment.mix_off_epoch": whole(0),
    "loss.kind": choice(losses.LABEL_KINDS),
    "loss.label_smoothing": SHARE,
    "loss.bce_target_threshold": optional(RATE),
    "loss.bce_reduction": choice(losses.BCE_REDUCTIONS),
    "loss.class_weights": choice(losses.CLASS_WEIGHTS),
    "distillation.kind": choice(losses.KINDS),
    "distillation.head": choice(losses.HEADS),
    "distillation.alpha": SHARE,
    "distillation.tau": POSITIVE,
    "distillation.reduction": choice(losses.REDUCTIONS),
    "distillation.source": choice(teacher_cache.SOURCES),
    "distillation.logits_dir": TEXT,
    "distillation.teacher": TEXT,
    "distillation.allow_weak_teacher": FLAG,
    "distillation.verify_every": whole(0),
    "distillation.view": choice(cache_format.VIEWS),
    "distillation.num_views": COUNT,
    "distillation.mixing": choice(cache_format.MIXINGS),
    "distillation.features.weight": number(0),
    "distillation.features.distance": choice(features.DISTANCES),
    "distillation.features.student": choice(features.STUDENT),
    "optimizer.name": choice(optimizer.NAMES),
    "optimizer.trainable": TEXT,  # trainable.split says what it may be
    "optimizer.learning_rate": number(0),
    "optimizer.reference_batch_size": whole(0),
    "optimizer.weight_decay": number(0),
    "optimizer.layer_decay": number(above=0, high=1),
    "optimizer.b1": RATE,
    "optimizer.b2": RATE,
    "optimizer.momentum": RATE,
    "optimizer.clip_norm": number(0),
    "optimizer.accumulation": COUNT,
    "optimizer.max_consecutive_skips": COUNT,
    "schedule.name": choice(schedule.NAMES),
    "schedule.warmup_epochs": number(0),
    "schedule.cooldown_epochs": number(0),
    "schedule.warmup_learning_rate": number(0),
    "schedule.min_learning_rate": number(0),
    "ema.decay": SHARE,
    "checkpoint.every_steps": whole(0),
    "checkpoint.keep": COUNT,
    "eval.every_epochs": number(0),
    "eval.batch_size": COUNT,
    "log.every_steps": COUNT,
    "distributed.coordinator": TEXT,
    "distributed.num_processes": whole(0),
    "distributed.process_id": whole(-1),
    "distributed.auto": optional(FLAG),
} | {
    # Unset, a field of the recipe's has its value there.
    f"augment.{name}": optional(rule)
    for name, rule in {
        "crop_area": bounds(number(above=0, high=1)),
        "crop_aspect": bounds(number(1 / MAX_ASPECT, MAX_ASPECT)),
        "crop_padding": whole(0),
        "flip": FLAG,
        "color_jitter": row(SHARE, SHARE, SHARE, number(0, 0.5)),
        "randaugment": TEXT,
        "three_augment": FLAG,
        "interpolation": choice(geometry.INTERPOLATIONS),
        "erase_probability": SHARE,
        "erase_area": bounds(number(above=0, high=1)),
        "erase_aspect": bounds(number(1 / MAX_ASPECT, MAX_ASPECT)),
        "erase_mode": choice(erase.MODES),
        "mixup": number(0),
        "cutmix": number(0),
        "mix_probability": SHARE,
        "mix_switch_probability": SHARE,
    }.items()
}


def check(config) -> None:
    """Checks each field of a config by its rule, before anything is opened.

    Raises:
      InputError: Names the field, its value, and what is expected.
    """
    for field, rule in RULES.items():
        value = operator.attrgetter(field)(config)
        if not rule.accepts(value):
            raise InputError(f"{field}={value!r}: expected {rule.expected}.")


def channel_values(config) -> dict[str, tuple[float, float, float]]:
    """`mean` and `std` with a value for each channel."""
    values = {}
    for name in ("mean", "std"):
        given = np.ravel(config.dataset[name]).astype(float)
        values[name] = tuple(np.broadcast_to(given, 3).tolist())
    return values


def student_views(config, source) -> StudentViews:
    """What a student sees of the training images of `source`.

    Images that have the model's size are padded and cropped at random. Of others a
    random part is resized to it, and they are not padded on top (as in DeiT).

    Raises:
      InputError: The recipe, one of its fields, the model or its size do not exist.
    """
    check(config)
    size = variants.resolve_image_size(
        config.model.variant, config.dataset.image_size or None
    )
    settings = recipes.resolve(
        config.augment.recipe,
        {name: config.augment[name] for name in recipes.FIELDS},
        **channel_values(config),
    )
    if source.image_shape != (size, size, 3):
        settings = dataclasses.replace(settings, crop_padding=0)
    settings = dataclasses.replace(
        settings, mix_off_view=_mix_off_view(config, settings)
    )
    return StudentViews(
        augment_seed=config.augment.seed,
        repeats=config.augment.repeats,
        size=size,
        settings=settings,
    )


def _cached_views(config) -> int:
    """Views that the epochs go through; 0 where each has a new one."""
    distillation = config.distillation
    seen = distillation.source, distillation.view
    cached = distillation.kind != "none" and seen == ("cache", "same")
    return distillation.num_views if cached else 0


def _mix_off_view(config, settings: recipes.Augmentation) -> int:
    """`plan.mix_off_view` of a config; refuses one that mixes nothing anyway."""
    off = config.augment.mix_off_epoch
    if off and not settings.mixes:
        raise InputError(
            f"augment.mix_off_epoch={off}, but no pair is ever mixed: augment.mixup="
            f"{settings.mixup:g}, augment.cutmix={settings.cutmix:g}, "
            f"augment.mix_probability={settings.mix_probability:g}. Leave it at 0."
        )
    return mix_off_view(
        off,
        epochs=config.epochs,
        repeats=config.augment.repeats,
        num_views=_cached_views(config),
    )


def augments_on_host(config, devices: Sequence[jax.Device]) -> bool:
    """Whether images are augmented before they go to `devices`: by default to TPUs.

    Those read single elements, as warps and tables do, many times slower than a CPU.
    """
    place = config.augment.place
    if place == "auto":
        place = "host" if devices[0].platform == "tpu" else "device"
    if place == "host" and config.dataset.on_device:
        raise InputError(
            f"dataset.on_device=True with augment.place={config.augment.place!r} on "
            f"{devices[0].device_kind}: the host augments the images and sends them "
            "with each batch. Leave on_device out, or set "
            "--config.augment.place=device."
        )
    return place == "host"


def batch_plan(
    config, source, devices: Sequence[jax.Device], settings: recipes.Augmentation
) -> BatchPlan:
    """Which images make a step; refuses a batch that the devices cannot share."""
    batches.check_batch_size(
        config.batch_size,
        devices=len(devices),
        accumulation=config.optimizer.accumulation,
    )
    return BatchPlan(
        length=len(source),
        batch_size=config.batch_size,
        seed=config.seed,
        augment_seed=config.augment.seed,
        num_views=_cached_views(config),
        mix_off_epoch=config.augment.mix_off_epoch,
        mix_off_view=settings.mix_off_view,
        repeats=config.augment.repeats,
    )


def cadence(config, plan: BatchPlan) -> Cadence:
    """When the run logs, evaluates and saves."""
    total_steps = math.ceil(config.epochs * plan.steps_per_epoch)
    return Cadence(
        total_steps=total_steps,
        dispatch=config.steps_per_dispatch,
        log=config.log.every_steps,
        evaluate=round(config.eval.every_epochs * plan.steps_per_epoch),
        save=config.checkpoint.every_steps,
        verify=config.distillation.verify_every,
    )


def model(
    config, num_classes: int, devices: Sequence[jax.Device] = ()
) -> VisionTransformer:
    """The student, laid out for `devices`; refuses attention that they do not have."""
    fields = config.model
    return variants.create(
        fields.variant,
        num_classes=num_classes,
        image_size=config.dataset.image_size or None,
        drop_path=fields.drop_path,
        dropout=fields.dropout,
        position_std=fields.position_std,
        init_values=fields.init_values,
        pool=fields.pool,
        dtype=fields.dtype,
        remat=fields.remat,
        attention=_attention(fields, devices),
        tpu_layout=any(device.platform == "tpu" for device in devices),
    )


def _attention(fields, devices: Sequence[jax.Device]) -> str:
    """`model.attention` for these devices; `auto` is what moves the fewest bytes."""
    fused = "xla"
    if devices and "NVIDIA" in devices[0].device_kind:
        fused = "cudnn"
    elif devices and devices[0].platform == "tpu":
        fused = "pallas"
    asked = fields.attention
    if asked == "auto":
        return fused if fields.dtype == "bfloat16" else "xla"
    if asked != "xla" and fields.dtype != "bfloat16":
        raise InputError(
            f"model.attention={asked!r} with model.dtype={fields.dtype!r}: it computes "
            "in 16 bits. Set --config.model.dtype=bfloat16, or leave it out."
        )
    if asked not in ("xla", fused) and devices:
        wanted = {"cudnn": "an NVIDIA GPU", "pallas": "a TPU"}[asked]
        raise InputError(
            f"model.attention={asked!r} on {devices[0].device_kind}: it needs "
            f"{wanted}. Leave it out."
        )
    return asked


def model_card(config, train_source, eval_source, size: int) -> ModelCard:
    whole = eval_source.image_shape == (size, size, 3)
    return ModelCard(
        variant=config.model.variant,
        image_size=size,
        class_names=tuple(train_source.class_names),
        crop_ratio=1.0 if whole else config.dataset.eval_crop_ratio,
        dtype=config.model.dtype,
        pool=config.model.pool,
        **channel_values(config),
    )


def start(config) -> pretrained.Start | None:
    """What training starts from; None for a random start."""
    if not config.init_from:
        return None
    return pretrained.Start(config.init_from, **config.transfer)


def mixing(config, student: StudentViews) -> str:
    """How the teacher answers for mixed pairs: exact, linear or none."""
    distillation = config.distillation
    if distillation.kind == "none":
        return "none"
    return match.resolve_mixing(distillation.view, distillation.mixing, student)


def step_settings(config, student: StudentViews, source, *, model, optimizer) -> dict:
    """The keyword arguments of `step.train_step`.

    Args:
      source: The training source.

    Raises:
      InputError: The model and the distillation do not go together.
    """
    losses.check_heads(
        kind=config.distillation.kind,
        head=config.distillation.head,
        student_heads=model.heads,
        variant=config.model.variant,
    )
    mix_teacher = None
    if mixing(config, student) == "linear":
        tau = losses.teacher_temperature(
            config.distillation.kind, config.distillation.tau
        )
        mix_teacher = functools.partial(losses.mix_teacher_logits, tau=tau)
    return {
        "model": model,
        "optimizer": optimizer,
        "inputs": functools.partial(
            inputs.prepare,
            num_classes=source.num_classes,
            label_smoothing=config.loss.label_smoothing,
            augment_seed=student.augment_seed,
            augmentation=student.settings,
            mix_teacher=mix_teacher,
        ),
        "loss": functools.partial(
            losses.training_loss, **optimisation.loss_settings(config, source)
        ),
        "seed": config.seed,
        "ema_decay": config.ema.decay,
        "accumulation": config.optimizer.accumulation,
        "trainable": config.optimizer.trainable,
    }
