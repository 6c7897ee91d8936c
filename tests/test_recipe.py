"""Every field of a config has a rule, and what a rule does not allow is refused."""

import math
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import deit, deit3, finetune, study, vit
from deit_jax import experiment, optimisation, recipe
from deit_jax.data import sources
from deit_jax.data.plan import BatchPlan
from deit_jax.errors import InputError

NO_NUMBERS = (math.nan, math.inf, "1")
# Values that fields refuse.
BAD = (
    ("seed", (-1, 2**32, 1.5)),
    ("epochs distillation.tau", (0.0, -1.0, *NO_NUMBERS, None)),
    (
        "batch_size steps_per_dispatch distillation.num_views checkpoint.keep "
        "eval.batch_size log.every_steps augment.repeats",
        (0, 1.5),
    ),
    ("dataset.workers checkpoint.every_steps augment.mix_off_epoch", (-1, 1.5, None)),
    ("augment.crop_padding", (-1, 1.5, "4", True)),
    ("augment.flip augment.three_augment", (1, "yes", 0.0)),
    ("dataset.eval_crop_ratio optimizer.layer_decay", (0.0, 1.1)),
    ("dataset.mean", ((0.5, 0.5), (0.1, 0.2, 1.5), 2.0, ())),
    ("dataset.std", (0.0, 1e-30, (0.2, 0.0, 0.2), (0.2, math.nan, 0.2), (0.2,) * 4)),
    ("model.drop_path optimizer.b1 optimizer.momentum", (1.0, -0.1, None)),
    ("loss.bce_target_threshold", (1.0, -0.1, "0.5")),
    (
        "loss.label_smoothing distillation.alpha ema.decay augment.mix_probability "
        "augment.mix_switch_probability augment.erase_probability",
        (-0.1, 1.1, *NO_NUMBERS),
    ),
    (
        "optimizer.learning_rate optimizer.weight_decay optimizer.clip_norm "
        "schedule.warmup_epochs schedule.cooldown_epochs augment.mixup augment.cutmix",
        (-1e-3, (1.0,), *NO_NUMBERS),
    ),
    (
        "model.dtype model.attention transfer.position_resize loss.kind "
        "loss.bce_reduction loss.class_weights distillation.kind distillation.head "
        "distillation.view distillation.mixing optimizer.name schedule.name "
        "augment.place",
        ("other", None),
    ),
    ("augment.interpolation augment.erase_mode", ("other", 1)),
    ("optimizer.trainable", (None, 3)),
    (
        "augment.crop_area augment.erase_area",
        ((0.5, 0.2), (0.0, 1.0), (0.5, 1.5), (0.5,), 0.5, "ab"),
    ),
    (
        "augment.crop_aspect augment.erase_aspect",
        ((2.0, 1.0), (1e-30, 1e30), (1.0, math.inf), (1.0, 51.0), 1.0, ("a", "b")),
    ),
    ("augment.color_jitter", ((0.1,) * 3, (1.1, 0, 0, 0), (0, 0, 0, 0.6), 0.4)),
)
CASES = [(name, bad) for names, bads in BAD for name in names.split() for bad in bads]


def put(config, field, value):
    *path, name = field.split(".")
    for part in path:
        config = config[part]
    with config.ignore_type():
        config[name] = value


def build(config, devices):
    source = sources.load("digits", "train[:64]")
    return experiment.build(config, source, source, devices=devices)


def test_every_field_of_a_config_has_a_rule():
    for module, arguments in (
        (deit, deit.DATASETS),
        (vit, deit.DATASETS),
        (finetune, finetune.RECIPES),
        (study, ("vit", "deit", "deit_augment")),
        (deit3, deit3.RECIPES),
    ):
        for argument in arguments:
            config = module.get_config(argument)
            fields = flatten_dict(config.to_dict(), sep=".")
            assert fields.keys() == recipe.RULES.keys()
            with config.ignore_type(), config.unlocked():
                config.init_from = ""
            recipe.check(config)


@pytest.mark.parametrize(("field", "value"), CASES)
def test_a_value_out_of_its_range_is_refused_by_name(field, value):
    config = deit.get_config("digits")
    put(config, field, value)
    expected = f"{field}={value!r}: expected {recipe.RULES[field].expected}."
    with pytest.raises(InputError, match=f"^{re.escape(expected)}$"):
        recipe.check(config)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("optimizer.b1", "a number at least 0 and below 1"),
        ("log.every_steps", "a whole number at least 1"),
        ("epochs", "a finite number above 0"),
        ("dataset.std", "one value or three, each a finite number at least 0.001"),
        ("distillation.kind", "one of none, soft, hard, cosine, features"),
        (
            "augment.color_jitter",
            "4 values: a number at least 0 and at most 1; a number at least 0 and at "
            "most 1; a number at least 0 and at most 1; a number at least 0 and at "
            "most 0.5",
        ),
    ],
)
def test_a_rule_says_in_words_what_it_allows(field, expected):
    assert recipe.RULES[field].expected == expected


@pytest.mark.parametrize(
    ("place", "platform", "on_host", "resident"),
    [
        ("auto", "tpu", True, False),
        ("auto", "gpu", False, True),
        ("auto", "cpu", False, False),
        ("host", "gpu", True, False),
        ("device", "tpu", False, True),
    ],
)
def test_where_images_are_augmented(place, platform, on_host, resident):
    config = vit.get_config("digits")
    config.augment.place = place
    device = SimpleNamespace(
        platform=platform,
        device_kind=f"a {platform}",
        process_index=0,
        client=SimpleNamespace(platform_version=platform),
    )
    run = build(config, [device])
    assert (run.augments_on_host, run.resident) == (on_host, resident)
    config.dataset.on_device = True
    if not on_host:
        assert build(config, [device]).resident
        return
    message = f"on_device=True with augment.place='{place}' on a {platform}: the host"
    with pytest.raises(InputError, match=message):
        build(config, [device])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.bce_target_threshold": 0.2}, "with loss.kind='softmax': only bce"),
        ({"augment.mix_off_epoch": 2}, "no pair is ever mixed: augment.mixup=0"),
        (
            {"augment.mix_off_epoch": 70, "augment.mixup": 0.8},
            "no epoch of this run, whose 70 epochs begin at 0",
        ),
        ({"schedule.cooldown_epochs": 5.0}, "'cosine': wsd ends with a cooldown"),
        ({"schedule.name": "wsd"}, "cooldown_epochs=0 with schedule.name='wsd'"),
        (
            {"schedule.name": "wsd", "schedule.cooldown_epochs": 69.0},
            "its 138 steps are more than the 130 of this run after the warm-up",
        ),
        (
            {"optimizer.name": "muon", "optimizer.trainable": "heads"},
            "optimizer.trainable leaves none of them",
        ),
        ({"optimizer.trainable": "layers"}, "matches no parameter. Their names are"),
        (
            {"optimizer.name": "adam", "optimizer.weight_decay": 0.1},
            "no meaning for adam",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_refused_in_a_line(changes, message):
    config = vit.get_config("digits")
    for field, value in changes.items():
        put(config, field, value)
    with pytest.raises(InputError) as refused:
        build(config, jax.devices()[:1])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_balanced_class_weights_are_those_of_the_training_split():
    config = vit.get_config("digits")
    config.loss.class_weights = "balanced"
    source = sources.load("digits", "train[:64]")
    weights = optimisation.loss_settings(config, source)["class_weights"]
    assert weights[source.labels].mean() == pytest.approx(1)
    assert np.ptp(weights * np.bincount(source.labels)) < 1e-5


@pytest.mark.parametrize("mean", [0.25, (0.25,), [0.25] * 3])
def test_one_mean_or_std_stands_for_all_channels(mean):
    config = deit.get_config("digits")
    put(config, "dataset.mean", mean)
    assert recipe.channel_values(config) == {"mean": (0.25,) * 3, "std": (0.376,) * 3}


@pytest.mark.parametrize(
    ("epochs", "warmup", "cut"), [(4, 2.0, None), (4, 2.5, 20), (2, 5.0, 10)]
)
def test_a_warm_up_longer_than_half_the_run_is_cut_to_it(epochs, warmup, cut):
    config = deit.get_config("digits")
    config.epochs, config.schedule.warmup_epochs = float(epochs), warmup
    plan = BatchPlan(length=320, batch_size=32, seed=0, augment_seed=0)
    total = recipe.cadence(config, plan).total_steps
    schedule, notes = optimisation.create_schedule(config, plan, total)
    peak = int(np.argmax([schedule(step) for step in range(total)]))
    assert peak == (cut or warmup * 10)
    assert len(notes) == bool(cut)
    assert all(f"is cut to {cut}, half of the {total} steps" in note for note in notes)


def test_a_rate_does_not_end_above_its_peak():
    config = deit.get_config("folder")
    config.batch_size = 8  # the peak follows it
    plan = BatchPlan(length=320, batch_size=8, seed=0, augment_seed=0)
    schedule, [note] = optimisation.create_schedule(config, plan, 4000)
    assert "min_learning_rate=1e-05 is above the peak learning rate, 7.8125e-06" in note
    assert schedule(3999) == schedule(1000) == pytest.approx(7.8125e-6)
