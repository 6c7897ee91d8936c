import dataclasses
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
    assert deit_config.augment.recipe == "none"
    assert deit_config.distillation.view == "plain"
    assert differing(deit_config, augmented) == {
        "augment.recipe",
        "distillation.view",
        "distillation.logits_dir",
    }
    assert augmented.augment.recipe == "seed_study"
    assert augmented.distillation.num_views == augmented.epochs


WITHOUT_A_TEACHER = {
    "model.variant",
    "distillation.kind",
    "distillation.head",
    "distillation.logits_dir",
}


def test_vit_is_deit_without_the_teacher():
    assert differing(deit.get_config(), vit.get_config()) == WITHOUT_A_TEACHER


# What papers and their code say: fields of the config, and what it does to images.
PAPERS = {
    "Touvron et al. 2020, table 9, and the defaults of its code": (
        deit.get_config("imagenet"),
        "epochs=300.0 batch_size=1024 optimizer.name=adamw optimizer.clip_norm=0.0 "
        "optimizer.learning_rate=0.0005 optimizer.reference_batch_size=512 "
        "optimizer.weight_decay=0.05 schedule.warmup_epochs=5.0 augment.repeats=3 "
        "loss.label_smoothing=0.1 model.drop_path=0.1 model.dropout=0.0 "
        "distillation.kind=hard distillation.alpha=0.5",
        "randaugment=rand-m9-mstd0.5-inc1 mixup=0.8 cutmix=1.0 mix_probability=1.0 "
        "mix_switch_probability=0.5 erase_probability=0.25 erase_mode=pixel "
        "crop_area=(0.08,1.0) crop_aspect=(0.75,1.3333333333333333) flip=True "
        "color_jitter=(0.0,0.0,0.0,0.0)",
    ),
    "Touvron et al. 2022, table 1; README_revenge.md of facebookresearch/deit": (
        deit3.get_config("imagenet"),
        "epochs=800.0 batch_size=2048 optimizer.name=lamb optimizer.clip_norm=1.0 "
        "optimizer.learning_rate=0.003 optimizer.reference_batch_size=0 "
        "optimizer.weight_decay=0.05 schedule.name=cosine schedule.warmup_epochs=5.0 "
        "loss.kind=bce loss.bce_reduction=mean loss.bce_target_threshold=0.0 "
        "loss.label_smoothing=0.0 model.drop_path=0.05 augment.repeats=3",
        "three_augment=True color_jitter=(0.3,0.3,0.3,0.0) mixup=0.8 cutmix=1.0 "
        "erase_probability=0.0 randaugment=",
    ),
    "its fine-tuning": (
        deit3.get_config("finetune"),
        "init_from=None epochs=20.0 batch_size=512 optimizer.name=adamw "
        "optimizer.learning_rate=1e-05 optimizer.weight_decay=0.1 loss.kind=softmax "
        "loss.label_smoothing=0.1 model.drop_path=0.0 augment.repeats=1",
        "randaugment=rand-m9-mstd0.5-inc1 mixup=0.8 cutmix=1.0 erase_probability=0.0",
    ),
    "384 px of the reference's README": (
        finetune.get_config("imagenet384"),
        "epochs=30.0 batch_size=512 optimizer.learning_rate=5e-06 model.drop_path=0.0 "
        "schedule.min_learning_rate=5e-06 optimizer.reference_batch_size=512 "
        "optimizer.weight_decay=1e-08 model.variant=vit_small_patch16_384 "
        "dataset.eval_crop_ratio=0.875",
        "",
    ),
    "CIFAR-10 as the authors say in issue 45": (
        finetune.get_config("cifar10"),
        "epochs=1000.0 batch_size=768 optimizer.name=sgd optimizer.learning_rate=0.01 "
        "optimizer.weight_decay=0.0001 model.drop_path=0.0 "
        "dataset.mean=(0.485,0.456,0.406)",
        # 32 px become 224: a random part is resized.
        "randaugment=rand-m9-mstd0.5-inc1 mixup=0.8 cutmix=1.0 erase_probability=0.0 "
        "crop_padding=0",
    ),
}


@pytest.mark.parametrize(("config", "fields", "seen"), PAPERS.values(), ids=PAPERS)
def test_a_recipe_is_that_of_its_paper(config, fields, seen):
    source = SMALL if config.dataset.name == "cifar10" else PICTURES
    settings = dataclasses.asdict(student_views(config, source).settings)
    for found, words in (
        (flatten_dict(config.to_dict(), sep="."), fields),
        (settings, seen),
    ):
        for name, _, value in (word.partition("=") for word in words.split()):
            assert str(found[name]).replace(" ", "") == value, name


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (
            deit3.get_config("imagenet"),
            "epochs batch_size dataset.eval_crop_ratio model.variant model.drop_path "
            "augment.recipe loss.kind loss.bce_target_threshold loss.label_smoothing "
            "optimizer.name optimizer.learning_rate optimizer.reference_batch_size "
            "optimizer.clip_norm",
        ),
        (
            finetune.get_config("imagenet384"),
            "init_from epochs batch_size transfer.keep_heads model.variant "
            "model.drop_path optimizer.learning_rate optimizer.weight_decay "
            "schedule.min_learning_rate",
        ),
    ],
)
def test_what_is_not_said_is_as_in_vit(config, names):
    assert differing(config, vit.get_config("imagenet")) == set(names.split())


@pytest.mark.parametrize("name", finetune.RECIPES)
def test_fine_tuning_with_a_teacher_is_the_same_recipe(name):
    plain = finetune.get_config(name)
    distilled = finetune.get_config(name + "_distilled")
    assert plain.distillation.kind == "none" != distilled.distillation.kind
    assert "_distilled" in distilled.model.variant
    assert differing(plain, distilled) == WITHOUT_A_TEACHER


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
    others = {"seed", "repeats", "place", "recipe", "mix_off_epoch"}
    assert set(recipes.FIELDS) == set(config.augment) - others
    changes = {"flip": False, "color_jitter": (0.1, 0.2, 0.3, 0.4), "mixup": 0.2}
    config.augment.update(changes | {"randaugment": ""})
    settings = student_views(config, PICTURES).settings
    assert {name: getattr(settings, name) for name in changes} == changes
    assert (settings.randaugment, settings.cutmix) == ("", 1.0)


@pytest.mark.parametrize(
    "file", sorted(CONFIGS.glob("*.py")), ids=lambda file: file.name
)
def test_a_recipe_imports_others_by_the_name_that_every_installation_has(file):
    assert not re.search(r"^ *(from|import) configs\b", file.read_text(), re.MULTILINE)


def test_every_field_has_a_comment():
    base = (CONFIGS / "deit.py").read_text().partition("def _base()")[2]
    field = re.compile(r"    config\.[\w.]+ = (?!ConfigDict)")
    for above, line in itertools.pairwise(base.splitlines()):
        if field.match(line):
            assert above.startswith("    # ") or field.match(above), line
