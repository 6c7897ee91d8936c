import json

import pytest

from deit_jax.errors import InputError
from deit_jax.training import summary

FACTS = {
    "variant": "deit_nano_distilled_patch8_32",
    "dataset": "digits",
    "eval_split": "test",
    "eval_images": 357,
    "steps": 2700,
    "seconds": 3725.0,
    "images_per_sec": 1234.5,
    "eval": {"class": {"loss": 0.5, "top1": 0.9, "top5": 1.0}},
    "eval_ema": {"class": {"loss": 0.25, "top1": 0.95, "top5": 1.0}},
}


def test_what_is_written_is_read_and_printed(tmp_path, capsys):
    assert summary.read(tmp_path) is None
    written = summary.write(tmp_path, FACTS)
    assert summary.read(tmp_path) == written
    assert json.loads((tmp_path / summary.SUMMARY).read_text()) == written
    assert {"python", "jax", "flax", "optax"} == set(written["versions"])
    lines = capsys.readouterr().out.splitlines()
    assert "after step 2,700, 1:02:05 of training at 1,234 images/s" in lines[1]
    assert lines[3].split() == ["raw", "class", "0.5000", "90.00%", "100.00%"]
    assert lines[4].split() == ["EMA", "class", "0.2500", "95.00%", "100.00%"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eval": [0.5]}, "eval is no object"),
        ({"eval": {"class": "0.9"}}, "eval.class is str"),
    ],
)
def test_a_damaged_summary_is_refused(tmp_path, change, message):
    (tmp_path / summary.SUMMARY).write_text(json.dumps(FACTS | change))
    with pytest.raises(InputError, match=rf"summary.json is damaged: {message}"):
        summary.read(tmp_path)


def test_lists_stand_on_one_line(tmp_path):
    names = ["a [b\n c]", "{d}", 'e"\\n  f']
    tables = {"confusion": [[1, 2, 3], [4, 5, 6], [7, 8, 9]], "empty": []}
    written = summary.write(tmp_path, FACTS | {"names": names, "tables": tables})
    text = (tmp_path / summary.SUMMARY).read_text()
    assert json.loads(text) == written
    assert "[4, 5, 6]" in text
    assert '"top1": 0.9,\n' in text


def test_the_table_shows_what_every_head_has(capsys, tmp_path):
    more = {"f1": 0.875, "auc": 0.75, "ece": 0.0625}
    per_head = {"class": FACTS["eval"]["class"] | more, "token_cosine": 0.5}
    facts = FACTS | {"eval": per_head, "eval_ema": per_head}
    summary.write(tmp_path, facts | {"absent_classes": ["owl", "cow"]})
    out = capsys.readouterr().out
    assert "0.8750   0.7500   0.0625" in out
    assert "no images of 2 classes, left out of F1 and AUC: owl, cow" in out
    assert summary.headline({"eval": per_head}) == "eval top-1: class 0.9000"
    summary.write(tmp_path, FACTS | {"eval": per_head})  # one of them has no F1
    assert "F1" not in capsys.readouterr().out
