import re
from pathlib import Path

import ml_collections
import pytest

from configs import deit, vit
from deit_jax.models import variants
from deit_jax.training.checkpoint import flatten

CONFIGS = Path(deit.__file__).parent


@pytest.mark.parametrize("module", [deit, vit])
@pytest.mark.parametrize("dataset", deit.DATASETS)
def test_every_recipe_names_a_model_and_survives_json(module, dataset):
    config = module.get_config(dataset)
    assert config.model.variant in variants.VARIANTS
    assert isinstance(config, ml_collections.ConfigDict)
    assert config.to_json()


@pytest.mark.parametrize("module", [deit, vit])
def test_an_unknown_data_set_lists_the_known(module):
    with pytest.raises(ValueError, match="Known: .*digits"):
        module.get_config("imagenett")


def test_vit_is_deit_without_the_teacher():
    ours, theirs = flatten(vit.get_config().to_dict()), flatten(
        deit.get_config().to_dict()
    )
    assert {field for field in ours if ours[field] != theirs[field]} == {
        "model.variant",
        "distillation.kind",
        "distillation.head",
        "distillation.logits_dir",
    }


def test_every_field_has_a_comment():
    lines = (CONFIGS / "deit.py").read_text().splitlines()
    for above, line in zip(lines, lines[1:], strict=False):
        if re.match(r"    config\.[\w.]+ = (?!ConfigDict)", line):
            assert above.startswith("    # ") or re.match(
                r"    config\.[\w.]+ = ", above
            ), line
