"""Shards of webdataset: labels, the index, damage."""

import gzip
import json
from pathlib import Path

import made_sets
import pytest
from made_sets import NAMES

from deit_jax.data import sources
from deit_jax.errors import InputError


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make(path: Path, rows=slice(None), split="train", **members) -> Path:
    return made_sets.shard(path, split, rows, members or made_sets.BY_NAME)


NUMBERS = tuple("0123")
AS_JSON = {"json": lambda label: json.dumps({"width": 32, "label": int(label)})}
BOTH = {"cls": str, "txt": lambda label: NAMES[label]}


@pytest.mark.parametrize(
    ("members", "option", "names"),
    [
        (made_sets.BY_NAME, "", NAMES),
        ({"cls": lambda label: f"{label}\n"}, "", NUMBERS),
        ({"txt": lambda label: NAMES[label]}, "", NAMES),
        (AS_JSON, "", NUMBERS),
        (BOTH, "", NUMBERS),
        (BOTH, ",label=txt", NAMES),
        ({"json": lambda label: json.dumps({"kind": NAMES[label], "label": 0})},
         ",label=json.kind", NAMES),
        ({"species": lambda label: NAMES[label]}, ",label=species", NAMES),
        ({"cls": lambda label: ("7", "a", "b", "c")[label]}, "", ("7", "a", "b", "c")),
    ],
    ids=["name", "number", "txt", "json", "first", "given", "field", "ending", "mixed"],
)  # fmt: skip
def test_the_label_beside_the_image(tmp_path, members, option, names):
    source = sources.load(made_sets.shards(tmp_path, members) + option, "train")
    assert source.class_names == names
    _, labels = made_sets.images("train")
    keys = [int(source.where(index)[-5:]) for index in range(len(source))]
    assert source.labels.tolist() == labels[keys].tolist()
    assert source.passed_over == {}


@pytest.mark.parametrize(
    "pattern", ["{00..02}", "{00,01,02}", "*", "0{0..2}", "0[012]"]
)
def test_patterns(tmp_path, pattern):
    for number in range(3):
        rows = slice(5 * number, 5 * number + 5)
        make(tmp_path / f"val/{number:02}.tar", rows)
    source = sources.load(f"tar:{tmp_path}/val/{pattern}.tar", "train")
    assert len(source) == 15


def test_a_missing_shard_is_named(tmp_path):
    make(tmp_path / "00.tar")
    says = r"2 of the 3 files of .* are missing: .*/01.tar, .*/02.tar"
    with pytest.raises(InputError, match=says):
        sources.load(f"tar:{tmp_path}/{{00..02}}.tar", "train")


@pytest.mark.parametrize("left", [20_000, 512 * 39, None])
def test_a_shard_cut_short_is_named(tmp_path, left):
    """In an image, in a header, or before its end."""
    path = make(tmp_path / "set/0.tar")
    content = path.read_bytes().rstrip(b"\0")
    content += b"\0" * (-len(content) % 512)
    path.write_bytes(content[:left])
    with pytest.raises(InputError, match=rf"{path} is (cut short|damaged)"):
        sources.load(f"tar:{tmp_path}/set", "train")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no tar at all", "damaged or no plain tar"),
        (gzip.compress(b"x" * 9000, mtime=0), "damaged or no plain tar.*gunzip"),
    ],
)
def test_a_file_that_is_no_plain_tar(tmp_path, content, says):
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(InputError, match=rf"0\.tar is {says}"):
        sources.load(f"tar:{tmp_path}", "train")


@pytest.mark.parametrize(
    ("members", "option", "says"),
    [
        ({"xml": str}, "", r"no labelled image. Found: 20 samples of \.png \.xml\. "),
        (made_sets.BY_NAME, ",label=txt", r"Found: 20 samples of \.cls \.png"),
        (AS_JSON, ",label=json.kind", r"20 samples of \.json \.png.*label=json.FIELD"),
        ({"json": lambda label: "{"}, "", r"0\.tar, set/00000\.json is no JSON"),
    ],
)
def test_samples_without_a_label(tmp_path, members, option, says):
    make(tmp_path / "0.tar", **members)
    with pytest.raises(InputError, match=says):
        sources.load(f"tar:{tmp_path}{option}", "train")


def test_what_is_no_sample_is_counted(tmp_path):
    path = make(tmp_path / "0.tar", slice(0, 8), cls=str)
    make(tmp_path / "1.tar", slice(8, None), cls=str)
    make(tmp_path / "2.tar", slice(0, 3), xml=str)
    source = sources.load(f"tar:{path.parent}", "train")
    assert source.passed_over == {"samples of .png .xml": 3}
    assert len(source) == 20


def test_another_number_of_classes_for_evaluation(tmp_path):
    make(tmp_path / "train-0.tar", cls=str)
    make(tmp_path / "val-0.tar", split="test", cls=lambda label: str(3 * label))
    with pytest.raises(
        InputError, match=r"val-0\.tar, sample .* has label \d, expected"
    ):
        sources.load(f"tar:{tmp_path}", "val")


def test_a_shard_that_has_gone_is_named(tmp_path):
    path = make(tmp_path / "set/0.tar")
    source = sources.load(f"tar:{tmp_path}/set", "train")
    path.unlink()
    with pytest.raises(InputError, match=rf"{path} cannot be read: No such file"):
        source[0]
    path.symlink_to(tmp_path / "nowhere.tar")
    with pytest.raises(InputError, match=r"nowhere\.tar cannot be read: No such file"):
        sources.load(f"tar:{tmp_path}/set", "train")
