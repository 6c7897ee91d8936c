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


def test_is_read_as_it_was_written_now_or_by_an_older_version(tmp_path):
    model_card.write(tmp_path, CARD)
    assert model_card.read(tmp_path) == CARD
    fields = dataclasses.asdict(CARD)
    del fields["pool"]
    (tmp_path / "model.json").write_text(json.dumps(fields))
    assert model_card.read(tmp_path) == CARD


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"variant": "deit_huge"}, "unknown model variant 'deit_huge'"),
        ({"image_size": 33}, "not a positive multiple of the patch size"),
        ({"class_names": "ab"}, "class_names is no list"),
        ({"mean": [0, 0, "0"]}, r"mean[2] is str, expected float"),
        ({"pool": "max"}, "unknown pool 'max'"),
        ({"format": "onnx"}, "An exported model is read by its own predict.py"),
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
