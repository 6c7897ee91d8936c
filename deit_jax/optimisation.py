"""What a config says of learning: its loss, learning rates and optimizer."""

import optax

from deit_jax.data.plan import BatchPlan
from deit_jax.distillation import losses
from deit_jax.errors import InputError
from deit_jax.models.params import abstract_params
from deit_jax.models.vit import VisionTransformer
from deit_jax.training import optimizer, schedule, trainable


def peak_learning_rate(config) -> float:
    """The learning rate after the warm-up, for the batch size of `config`."""
    rate, batch = config["optimizer"], config["batch_size"]
    return optimizer.resolve_learning_rate(
        rate["learning_rate"],
        batch_size=batch,
        reference_batch_size=rate["reference_batch_size"],
    )


def create_schedule(
    config, plan: BatchPlan, total_steps: int
) -> tuple[optax.Schedule, list[str]]:
    """Step (from 0) -> learning rate; and sentences about what had to be cut.

    Raises:
      InputError: The schedule and its cooldown do not go together.
    """
    fields = config.schedule
    warmup_steps = round(fields.warmup_epochs * plan.steps_per_epoch)
    peak, floor = peak_learning_rate(config), fields.min_learning_rate
    notes = []
    if warmup_steps > total_steps // 2:
        notes.append(
            f"the warm-up of {warmup_steps:,} steps is cut to {total_steps // 2:,}, "
            f"half of the {total_steps:,} steps of this run"
        )
        warmup_steps = total_steps // 2
    if floor > peak and fields.name != "constant":
        notes.append(
            f"schedule.min_learning_rate={floor:g} is above the peak learning rate, "
            f"{peak:g}, where the rate stays"
        )
    cooldown_steps = round(fields.cooldown_epochs * plan.steps_per_epoch)
    _check_cooldown(fields, cooldown_steps, total_steps - warmup_steps)
    made = schedule.create(
        fields.name,
        peak,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        cooldown_steps=cooldown_steps,
        warmup_learning_rate=fields.warmup_learning_rate,
        min_learning_rate=min(floor, peak),
    )
    return made, notes


def _check_cooldown(fields, steps: int, left: int) -> None:
    given = (
        f"schedule.cooldown_epochs={fields.cooldown_epochs:g} with schedule.name="
        f"{fields.name!r}"
    )
    if (fields.name == "wsd") != (fields.cooldown_epochs > 0):
        raise InputError(
            f"{given}: wsd ends with a cooldown, and no other schedule does. Set "
            + (
                "cooldown_epochs, or --config.schedule.name=constant."
                if fields.name == "wsd"
                else "--config.schedule.name=wsd, or leave it at 0."
            )
        )
    if steps > left:
        raise InputError(
            f"{given}: its {steps:,} steps are more than the {left:,} of this run "
            "after the warm-up. Lower it, or train for more epochs."
        )


def create_optimizer(
    config, rate: optax.Schedule, model: VisionTransformer
) -> optax.GradientTransformation:
    """`optimizer.create` with the fields of `config.optimizer`.

    Raises:
      InputError: `optimizer.trainable` leaves nothing that it could train.
    """
    fields = config.optimizer
    if fields.trainable != "all":
        trained, _ = trainable.split(abstract_params(model), fields.trainable)
        optimizer.check_trained(fields.name, trained)
    names = ("weight_decay", "b1", "b2", "momentum", "clip_norm", "layer_decay")
    return optimizer.create(fields.name, rate, **{name: fields[name] for name in names})


def loss_settings(config, source) -> dict:
    """The keyword arguments of `losses.training_loss`.

    Raises:
      InputError: A field of bce is set for another loss.
    """
    names, fields = ("kind", "head", "alpha", "tau", "reduction"), config.loss
    threshold = fields.bce_target_threshold
    if threshold is not None and fields.kind != "bce":
        raise InputError(
            f"loss.bce_target_threshold={threshold:g} with loss.kind={fields.kind!r}: "
            "only bce has a threshold. Set --config.loss.kind=bce, or leave it out."
        )
    weights = None
    if fields.class_weights == "balanced":
        weights = losses.balanced_weights(source.labels, source.num_classes)
    return {name: config.distillation[name] for name in names} | {
        "label_kind": fields.kind,
        "bce_threshold": threshold,
        "bce_reduction": fields.bce_reduction,
        "class_weights": weights,
        **{f"features_{name}": x for name, x in config.distillation.features.items()},
    }
