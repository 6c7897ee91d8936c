import itertools
import re
import types
from pathlib import Path

import ml_collections
import pytest
from flax.traverse_util import flatten_dict

from configs import deit, deit3, finetune, study, vit
from deit_jax.data.augment import recipes
from deit_jax.models import variants
from deit_jax.recipe import student_views

CONFIGS = Path(deit.__file__).parent


PICTURES = types.SimpleNamespace(image_shape=None)
SMALL = types.SimpleNamespace(image_shape=(32, 32, 3))
RECIPES = [(module, name) for module in (deit, vit) for name in deit.DATASETS]
RECIPES += [(study, name) for name in study.MODELS]
RECIPES += [(deit3, name) for name in deit3.RECIPES]
RECIPES += [
    (finetune, name + suffix)
    for name in finetune.RECIPES
    for suffix in ("", "_distilled")
]


@pytest.mark.parametrize(("module", "argument"), RECIPES)
def test_every_recipe_names_a_model_and_survives_json(module, argument):
    config = module.get_config(argument)
    assert config.model.variant in variants.VARIANTS
    assert isinstance(config, ml_collections.ConfigDict)
    assert config.to_json()


@pytest.mark.parametrize(
    ("module", "known"),
    [(deit, "digits"), (study, "vit"), (finetune, "folder"), (deit3, "cifar10")],
)
def test_an_unknown_argument_lists_the_known(module, known):
    with pytest.raises(ValueError, match=f"Known: .*{known}"):
        module.get_config("imagenett")


def test_the_default_is_cifar10():
    assert deit.get_config().to_dict() == deit.get_config("cifar10").to_dict()


def test_a_recipe_is_locked():
    with pytest.raises((AttributeError, KeyError)):
        deit.get_config().update({"model": {"size": 3}})


def differing(one, other):
    one, other = (flatten_dict(c.to_dict(), sep=".") for c in (one, other))
    return {field for field in one if one[field] != other[field]}


def test_study_is_the_seeds_setting():
    vit_config, deit_config, augmented = map(study.get_config, study.MODELS)
    assert (vit_config.epochs, vit_config.batch_size) == (20.0, 64)
    assert vit_config.optimizer.name == "adam"
    # Of configs/deit.py, as the docstring says.
    assert vit_config.schedule.warmup_epochs == 5
    assert vit_config.schedule.min_learning_rate == 1e-5
    assert vit_config.distillation.kind == "none"
    assert (deit_config.augment.recipe, deit_config.distillation.view) == (
        "none",
        "plain",
    )
    assert differing(deit_config, augmented) == {
        "augment.recipe",
        "distillation.view",
        "distillation.logits_dir",
    }
    assert augmented.augment.recipe == "seed_study"
    assert augmented.distillation.num_views == augmented.epochs


def test_vit_is_deit_without_the_teacher():
    assert differing(deit.get_config(), vit.get_config()) == {
        "model.variant",
        "distillation.kind",
        "distillation.head",
        "distillation.logits_dir",
    }


def test_imagenet_is_the_papers_recipe():
    """Touvron et al. 2020, table 9, and the defaults of its code."""
    config = deit.get_config("imagenet")
    assert (config.epochs, config.batch_size) == (300.0, 1024)
    assert config.optimizer.name == "adamw"
    assert config.optimizer.learning_rate * 1024 / 512 == 1e-3
    assert config.optimizer.reference_batch_size == 512
    assert config.optimizer.weight_decay == 0.05
    assert config.optimizer.clip_norm == 0
    assert config.schedule.warmup_epochs == 5
    assert config.loss.label_smoothing == 0.1
    assert (config.model.drop_path, config.model.dropout) == (0.1, 0.0)
    assert config.augment.repeats == 3
    assert config.distillation.num_views % config.augment.repeats == 0
    settings = student_views(config, PICTURES).settings
    assert settings.randaugment == "rand-m9-mstd0.5-inc1"
    assert (settings.mixup, settings.cutmix) == (0.8, 1.0)
    assert (settings.mix_probability, settings.mix_switch_probability) == (1.0, 0.5)
    assert (settings.erase_probability, settings.erase_mode) == (0.25, "pixel")
    assert (settings.crop_area, settings.crop_aspect) == ((0.08, 1.0), (3 / 4, 4 / 3))
    assert settings.flip
    assert not any(settings.color_jitter)
    assert (config.distillation.kind, config.distillation.alpha) == ("hard", 0.5)


def test_deit3_is_the_recipe_of_its_papers_table_and_readme():
    """Touvron et al. 2022, table 1; README_revenge.md of facebookresearch/deit."""
    config = deit3.get_config("imagenet")
    assert differing(config, vit.get_config("imagenet")) == {
        "epochs",
        "batch_size",
        "dataset.eval_crop_ratio",
        "model.variant",
        "model.drop_path",
        "augment.recipe",
        "loss.kind",
        "loss.bce_target_threshold",
        "loss.label_smoothing",
        "optimizer.name",
        "optimizer.learning_rate",
        "optimizer.reference_batch_size",
        "optimizer.clip_norm",
    }
    assert (config.epochs, config.batch_size) == (800.0, 256 * 8)
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("lamb", 3e-3)
    assert config.optimizer.reference_batch_size == 0
    assert (config.optimizer.weight_decay, config.optimizer.clip_norm) == (0.05, 1.0)
    assert (config.schedule.name, config.schedule.warmup_epochs) == ("cosine", 5.0)
    assert (config.loss.kind, config.loss.bce_reduction) == ("bce", "mean")
    assert config.loss.bce_target_threshold == config.loss.label_smoothing == 0
    assert config.model.drop_path == 0.05
    assert config.augment.repeats == 3
    settings = student_views(config, PICTURES).settings
    assert settings.three_augment
    assert settings.color_jitter == (0.3, 0.3, 0.3, 0.0)
    assert (settings.mixup, settings.cutmix) == (0.8, 1.0)
    assert (settings.erase_probability, settings.randaugment) == (0.0, "")


def test_deit3_is_fine_tuned_as_its_readme_does():
    config = deit3.get_config("finetune")
    assert config.init_from is None
    assert (config.epochs, config.batch_size) == (20.0, 64 * 8)
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("adamw", 1e-5)
    assert config.optimizer.weight_decay == 0.1
    assert (config.loss.kind, config.loss.label_smoothing) == ("softmax", 0.1)
    assert (config.model.drop_path, config.augment.repeats) == (0.0, 1)
    settings = student_views(config, PICTURES).settings
    assert settings.randaugment == "rand-m9-mstd0.5-inc1"
    assert (settings.mixup, settings.cutmix) == (0.8, 1.0)
    assert settings.erase_probability == 0


def test_384_px_is_the_recipe_of_the_references_readme():
    config = finetune.get_config("imagenet384")
    assert differing(config, vit.get_config("imagenet")) == {
        "init_from",
        "epochs",
        "batch_size",
        "transfer.keep_heads",
        "model.variant",
        "model.drop_path",
        "optimizer.learning_rate",
        "optimizer.weight_decay",
        "schedule.min_learning_rate",
    }
    assert (config.epochs, config.batch_size) == (30.0, 512)
    assert config.optimizer.learning_rate == config.schedule.min_learning_rate == 5e-6
    assert config.optimizer.reference_batch_size == 512
    assert config.optimizer.weight_decay == 1e-8
    assert config.model.drop_path == 0
    assert config.dataset.eval_crop_ratio == 0.875
    assert variants.VARIANTS[config.model.variant]["image_size"] == 384


def test_cifar10_is_what_the_authors_say_in_issue_45():
    config = finetune.get_config("cifar10")
    assert (config.epochs, config.batch_size) == (1000.0, 768)
    assert config.optimizer.name == "sgd"
    assert config.optimizer.learning_rate == 1e-2
    assert config.optimizer.weight_decay == 1e-4
    assert config.model.drop_path == 0
    settings = student_views(config, SMALL).settings
    assert settings.erase_probability == 0
    assert settings.randaugment == "rand-m9-mstd0.5-inc1"
    assert (settings.mixup, settings.cutmix) == (0.8, 1.0)
    assert settings.crop_padding == 0  # 32 px become 224: a random part is resized
    assert config.dataset.mean == deit.IMAGENET_MEAN


@pytest.mark.parametrize("name", finetune.RECIPES)
def test_fine_tuning_with_a_teacher_is_the_same_recipe(name):
    plain, distilled = (
        finetune.get_config(name),
        finetune.get_config(name + "_distilled"),
    )
    assert plain.distillation.kind == "none"
    assert distilled.distillation.kind != "none"
    assert "_distilled" in distilled.model.variant
    assert differing(plain, distilled) == {
        "model.variant",
        "distillation.kind",
        "distillation.head",
        "distillation.logits_dir",
    }


def test_fine_tuning_asks_for_what_to_start_from():
    config = finetune.get_config("folder")
    assert config.init_from is None
    config.init_from = "runs/deit-digits"
    assert deit.get_config("folder").init_from == ""


def test_images_of_the_models_size_are_padded_and_others_resized():
    config = deit.get_config("cifar10")
    assert student_views(config, SMALL).settings.crop_padding == 4
    assert student_views(config, PICTURES).settings.crop_padding == 0
    config.dataset.image_size = 64
    assert student_views(config, SMALL).settings.crop_padding == 0


def test_every_augmentation_field_can_be_overridden():
    config = deit.get_config("cifar10")
    assert set(recipes.FIELDS) == set(config.augment) - {
        "seed",
        "repeats",
        "place",
        "recipe",
        "mix_off_epoch",
    }
    config.augment.update(
        {
            "flip": False,
            "color_jitter": (0.1, 0.2, 0.3, 0.4),
            "randaugment": "",
            "mixup": 0.2,
        }
    )
    settings = student_views(config, PICTURES).settings
    assert not settings.flip
    assert settings.color_jitter == (0.1, 0.2, 0.3, 0.4)
    assert settings.randaugment == ""
    assert (settings.mixup, settings.cutmix) == (0.2, 1.0)


@pytest.mark.parametrize(
    "file", sorted(CONFIGS.glob("*.py")), ids=lambda file: file.name
)
def test_a_recipe_imports_others_by_the_name_that_every_installation_has(file):
    assert not re.search(r"^ *(from|import) configs\b", file.read_text(), re.MULTILINE)


def test_every_field_has_a_comment():
    base = (CONFIGS / "deit.py").read_text().partition("def _base()")[2]
    lines = base.splitlines()
    for above, line in itertools.pairwise(lines):
        if re.match(r"    config\.[\w.]+ = (?!ConfigDict)", line):
            assert above.startswith("    # ") or re.match(
                r"    config\.[\w.]+ = ", above
            ), line
