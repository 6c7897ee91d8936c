"""The recipes, the fields that replace theirs, and values that cannot work."""

import dataclasses
import json
import math

import numpy as np
import pytest
from timm.data import Mixup, create_transform
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

from deit_jax.data.augment import randaugment, recipes
from deit_jax.data.augment.recipes import Augmentation
from deit_jax.errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resolve(recipe="none", **overrides):
    return recipes.resolve(recipe, overrides, mean=MEAN, std=STD)


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_every_recipe_says_what_is_done(recipe):
    settings = resolve(recipe)
    expected = Augmentation(**recipes.RECIPES[recipe] | {"mean": MEAN, "std": STD})
    assert settings == expected == resolve(recipe, **dict.fromkeys(recipes.FIELDS))
    assert settings.mixes == (recipe not in ("none", "crop_flip"))
    assert not settings.unmixed().mixes
    assert hash(settings) == hash(resolve(recipe)), "a static argument of jit"


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_descriptions_survive_json(recipe):
    settings = resolve(recipe, crop_area=(0.1, 1 / 3), mixup=1)
    text = json.dumps(settings.describe())
    read = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads(text).items()
    }
    assert Augmentation(**read) == settings
    assert json.dumps(Augmentation(**read).describe()) == text


def test_deit_is_timms_defaults_of_deit():
    # The arguments of facebookresearch/deit, main.py.
    theirs = create_transform(
        input_size=224,
        is_training=True,
        color_jitter=0.3,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    ).transforms
    by_type = {type(transform): transform for transform in theirs}
    deit = resolve("deit")

    crop = by_type.pop(RandomResizedCropAndInterpolation)
    assert (deit.crop_area, deit.crop_aspect) == (crop.scale, crop.ratio)
    assert by_type.pop(transforms.RandomHorizontalFlip).p == 0.5
    assert deit.flip
    ops = by_type.pop(RandAugment)
    policy = randaugment.parse(deit.randaugment)
    assert policy.layers == ops.num_layers
    assert {(op.magnitude, op.magnitude_std) for op in ops.ops} == {
        (policy.magnitude, policy.magnitude_std)
    }
    assert [op.kwargs["resample"].name.lower() for op in ops.ops] == 15 * [
        deit.interpolation
    ]
    erasing = by_type.pop(RandomErasing)
    assert deit.erase_probability == erasing.probability
    assert deit.erase_area == (erasing.min_area, erasing.max_area)
    logs = tuple(math.log(bound) for bound in deit.erase_aspect)
    assert logs == pytest.approx(erasing.log_aspect_ratio)
    assert deit.erase_mode == "pixel"
    assert erasing.per_pixel
    # Nothing else changes an image: no colour jitter beside RandAugment.
    assert len(by_type) == 2
    assert {transforms.Normalize} < set(by_type)
    assert not any(deit.color_jitter)
    assert not deit.three_augment

    mix = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0)
    assert (deit.mixup, deit.cutmix) == (mix.mixup_alpha, mix.cutmix_alpha)
    assert deit.mix_probability == mix.mix_prob
    assert deit.mix_switch_probability == mix.switch_prob
    # CIFAR's images, in its main.py: RandomCrop(input_size, padding=4).
    assert deit.crop_padding == 4


@pytest.mark.parametrize("name", recipes.FIELDS)
def test_every_field_can_be_replaced(name):
    default = getattr(Augmentation, name)
    value = {
        bool: True,
        str: {"randaugment": "rand-m5-inc1"}.get(name, "another"),
        tuple: (0.5,) * np.size(default),
    }.get(type(default), 3)
    settings = resolve(**{name: value})
    assert settings == dataclasses.replace(resolve(), **{name: value}) != resolve()


def test_what_switches_off_is_no_none():
    off = resolve("deit", randaugment="", mixup=0.0, flip=False, crop_padding=0)
    assert (off.randaugment, off.mixup, off.flip, off.crop_padding) == ("", 0, False, 0)
    assert off.cutmix == 1.0


def test_equal_values_make_equal_descriptions():
    whole = resolve(mixup=1, crop_area=[1, 1], color_jitter=(1, 0, 0, 0))
    real = resolve(mixup=1.0, crop_area=(1.0, 1.0), color_jitter=(1.0, 0.0, 0.0, 0.0))
    assert whole == real
    assert json.dumps(whole.describe()) == json.dumps(real.describe())


@pytest.mark.parametrize("value", ["rand-m9", "m9", 9, True])
def test_a_bad_randaugment_is_refused_by_name(value):
    with pytest.raises(InputError, match=f"augment.randaugment={value!r}: expected"):
        resolve("deit", randaugment=value)


def test_three_augment_and_randaugment_exclude_one_another():
    message = r"augment.three_augment and augment.randaugment are both on: .*Switch one"
    with pytest.raises(InputError, match=message):
        resolve("deit", three_augment=True)
    assert resolve("deit", three_augment=True, randaugment="").three_augment


def test_an_unknown_recipe_lists_the_known():
    says = "unknown augment.recipe='diet'. Known: none, crop_flip, .*mean deit"
    with pytest.raises(InputError, match=says):
        resolve("diet")
