"""What a run directory says of its model."""

import dataclasses
import json

import pytest

from deit_jax.errors import InputError
from deit_jax.models import model_card

CARD = model_card.ModelCard(
    variant="deit_nano_distilled_patch8_32",
    image_size=32,
    class_names=("cat", "dög"),
    mean=(0.5, 0.25, 0.125),
    std=(0.5, 0.5, 1),
    crop_ratio=1.0,
)


def test_is_read_as_it_was_written(tmp_path):
    model_card.write(tmp_path, CARD)
    assert model_card.read(tmp_path) == CARD


def test_a_card_of_an_older_version_reads_the_token(tmp_path):
    fields = dataclasses.asdict(CARD)
    del fields["pool"]
    (tmp_path / "model.json").write_text(json.dumps(fields))
    assert model_card.read(tmp_path) == CARD


def test_makes_the_model():
    model = CARD.create_model()
    assert (model.num_classes, model.image_size) == (2, 32)
    assert model.heads == ("class", "distill")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"variant": "deit_huge"}, "unknown model variant 'deit_huge'"),
        ({"variant": 3}, "variant is int, expected str"),
        ({"image_size": 33}, "not a positive multiple of the patch size"),
        ({"class_names": "ab"}, "class_names is no list"),
        ({"mean": [0, 0, "0"]}, r"mean[2] is str, expected float"),
        ({"dtype": "float8"}, "unknown dtype"),
        ({"pool": "max"}, "unknown pool 'max'"),
        ({"format": "onnx"}, "An exported model is read by its own predict.py"),
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("null", "it is no object"),
    ],
)
def test_refuses_a_damaged_card(tmp_path, content, message):
    if isinstance(content, dict):
        content = json.dumps(dataclasses.asdict(CARD) | content)
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(InputError, match=r"model\.json is damaged: ") as refused:
        model_card.read(tmp_path)
    assert message in str(refused.value)


def test_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"holds no model\.json\. Expected a run"):
        model_card.read(tmp_path)
    with pytest.raises(InputError, match="nowhere does not exist"):
        model_card.read(tmp_path / "nowhere")
