import itertools
import re
from pathlib import Path

import ml_collections
import pytest
from flax.traverse_util import flatten_dict

from configs import deit, study, vit
from deit_jax.models import variants

CONFIGS = Path(deit.__file__).parent


RECIPES = [(module, name) for module in (deit, vit) for name in deit.DATASETS]
RECIPES += [(study, name) for name in study.MODELS]


@pytest.mark.parametrize(("module", "argument"), RECIPES)
def test_every_recipe_names_a_model_and_survives_json(module, argument):
    config = module.get_config(argument)
    assert config.model.variant in variants.VARIANTS
    assert isinstance(config, ml_collections.ConfigDict)
    assert config.to_json()


@pytest.mark.parametrize(("module", "known"), [(deit, "digits"), (study, "vit")])
def test_an_unknown_argument_lists_the_known(module, known):
    with pytest.raises(ValueError, match=f"Known: .*{known}"):
        module.get_config("imagenett")


def test_the_default_is_cifar10():
    assert deit.get_config().to_dict() == deit.get_config("cifar10").to_dict()


def test_a_recipe_is_locked():
    with pytest.raises((AttributeError, KeyError)):
        deit.get_config().update({"model": {"size": 3}})


def test_study_is_the_seeds_setting():
    vit_config, deit_config, augmented = map(study.get_config, study.MODELS)
    assert (vit_config.epochs, vit_config.batch_size) == (20.0, 64)
    assert vit_config.optimizer.name == "adam"
    assert vit_config.distillation.kind == "none"
    ours, theirs = (
        flatten_dict(deit_config.to_dict(), sep="."),
        flatten_dict(augmented.to_dict(), sep="."),
    )
    assert {field for field in ours if ours[field] != theirs[field]} == {
        "augment.crop_padding",
        "augment.flip",
    }


def test_vit_is_deit_without_the_teacher():
    ours, theirs = (
        flatten_dict(vit.get_config().to_dict(), sep="."),
        flatten_dict(deit.get_config().to_dict(), sep="."),
    )
    assert {field for field in ours if ours[field] != theirs[field]} == {
        "model.variant",
        "distillation.kind",
        "distillation.head",
        "distillation.logits_dir",
    }


def test_every_field_has_a_comment():
    base = (CONFIGS / "deit.py").read_text().partition("def _base()")[2]
    lines = base.splitlines()
    for above, line in itertools.pairwise(lines):
        if re.match(r"    config\.[\w.]+ = (?!ConfigDict)", line):
            assert above.startswith("    # ") or re.match(
                r"    config\.[\w.]+ = ", above
            ), line
