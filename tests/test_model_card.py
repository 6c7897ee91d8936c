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


def test_makes_the_model(tmp_path):
    model = CARD.create_model()
    assert (model.num_classes, model.image_size) == (2, 32)
    assert model.heads == ("class", "distill")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "deit_huge"}, "unknown model variant 'deit_huge'"),
        ({"variant": 3}, "variant is no string"),
        ({"image_size": 33}, "not a positive multiple of the patch size"),
        ({"image_size": True}, "image_size is no whole number"),
        ({"image_size": 8 * 10**9}, "is more than 1024 patches of 8 pixels a side"),
        ({"class_names": []}, "class_names is empty"),
        ({"class_names": "ab"}, "no list of strings"),
        ({"mean": [0, 0]}, "mean is not three numbers"),
        ({"mean": [0, 0, float("nan")]}, "mean is not three numbers"),
        ({"std": [1, 1, 9e-4]}, "std is not at least 0.001"),
        ({"crop_ratio": 0}, "crop_ratio is not above 0"),
        ({"dtype": "float8"}, "unknown dtype"),
        ({"pool": "max"}, "unknown pool 'max'"),
        ({"colour": 1}, "expected the fields class_names, crop_ratio"),
    ],
)
def test_refuses_a_damaged_card(tmp_path, change, message):
    fields = dataclasses.asdict(CARD) | change
    (tmp_path / "model.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"model\.json is damaged: ") as refused:
        model_card.read(tmp_path)
    assert message in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "\xff", "null"])
def test_refuses_what_is_no_json(tmp_path, text):
    (tmp_path / "model.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="is damaged: "):
        model_card.read(tmp_path)


def test_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"holds no model\.json\. Expected a run"):
        model_card.read(tmp_path)
    with pytest.raises(InputError, match="nowhere does not exist"):
        model_card.read(tmp_path / "nowhere")
    (tmp_path / "model.json").write_text('{"format": "onnx"}')
    with pytest.raises(InputError, match="is an exported model"):
        model_card.read(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file, not a run directory"):
        model_card.read(tmp_path / "file")
