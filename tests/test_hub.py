"""Parquet files of the Hub: which files, which columns, and what is said of others."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import made_sets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import errors

from deit_jax.data import sources
from deit_jax.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGE = made_sets.encoded(np.zeros((4, 4, 3), np.uint8))


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path: Path, rows: int = 4, **columns) -> str:
    """A Parquet file without any word of what its columns are."""
    table = {"image": [IMAGE] * rows, "label": [n % 2 for n in range(rows)]} | columns
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({k: v for k, v in table.items() if v is not None}), path)
    return f"hf:{path.parent}"


# Files


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["data/train-00000-of-00002", "data/train-00001-of-00002",
          "data/validation-00000-of-00001-9f3a"], {"train": 2, "val": 1}),
        (["plain_text/train-00000-of-00001", "plain_text/test-00000-of-00001"],
         {"train": 1, "test": 1}),
        (["train/0000", "train/0001", "validation/0000"], {"train": 2, "val": 1}),
        (["my_train_file_1", "my-dev-file"], {"train": 1, "val": 1}),
        (["a", "b"], {"train": 2}),
        (["data/train-00000-of-00001", "data/unsupervised-00000-of-00001"],
         {"train": 1, "unsupervised": 1}),
    ],
)  # fmt: skip
def test_the_names_of_the_files_say_the_splits(tmp_path, files, splits):
    for file in files:
        write(tmp_path / "set" / f"{file}.parquet")
    for split, count in splits.items():
        source = sources.load(f"hf:{tmp_path / 'set'}", split)
        assert (source.split, len(source)) == (split, 4 * count)


def test_one_of_several_configs(tmp_path):
    for config in ("full", "small"):
        write(tmp_path / f"set/{config}/train-00000-of-00001.parquet")
    with pytest.raises(InputError, match=r"add ,config=NAME with one of full, small"):
        sources.load(f"hf:{tmp_path / 'set'}", "train")
    source = sources.load(f"hf:{tmp_path / 'set'},config=small", "train")
    assert source.where(0).startswith(f"{tmp_path}/set/small/train-00000-of-00001")


def test_a_missing_file_of_a_series_is_named(tmp_path):
    write(tmp_path / "data/train-00000-of-00003.parquet")
    write(tmp_path / "data/train-00002-of-00003.parquet")
    with pytest.raises(InputError, match=r"1 of 3 files are missing: .*train-00001-of"):
        sources.load(f"hf:{tmp_path}", "train")


# Columns


FINE = {"fine_label": [0, 1, 2, 0], "coarse_label": [1, 1, 0, 1], "label": None}


@pytest.mark.parametrize(
    ("columns", "options", "labels", "names"),
    [
        ({}, "", [0, 1, 0, 1], ("0", "1")),
        ({"img": [IMAGE] * 4, "image": None}, "", [0, 1, 0, 1], ("0", "1")),
        (FINE, "", [0, 1, 2, 0], ("0", "1", "2")),
        (FINE, ",label=coarse_label", [1, 1, 0, 1], ("0", "1")),
        ({"label": ["b", "a", "b", " a"]}, "", [1, 0, 1, 0], ("a", "b")),
        ({"label": pa.array(["b", "a", "b", "a"]).dictionary_encode()}, "",
         [1, 0, 1, 0], ("a", "b")),
        ({"label": [True, False, True, True]}, "", [1, 0, 1, 1], ("0", "1")),
        ({"thumbnail": [b""] * 4, "id": [5, 6, 7, 8]}, "", [0, 1, 0, 1], ("0", "1")),
        ({"photo": [IMAGE] * 4, "image": None, "other": [b""] * 4}, ",image=photo",
         [0, 1, 0, 1], ("0", "1")),
    ],
    ids=["label", "img", "fine", "coarse", "str", "dictionary", "bool", "more", "given"]
)  # fmt: skip
def test_columns_are_found_or_given(tmp_path, columns, options, labels, names):
    source = sources.load(
        write(tmp_path / "train.parquet", **columns) + options, "train"
    )
    order = np.random.RandomState(0).permutation(4)
    assert source.labels.tolist() == [labels[row] for row in order]
    assert source.class_names == names
    assert source[0]["image"].shape == (4, 4, 3)


def test_class_names_are_those_that_datasets_wrote(tmp_path):
    made_sets.parquet(tmp_path / "train.parquet", names=("a", "b", "c", "d", "e"))
    assert sources.load(f"hf:{tmp_path}", "train").class_names == tuple("abcde")


@pytest.mark.parametrize(
    ("columns", "options", "says"),
    [
        ({"image": None}, "", r"no image column that.*,image=COL.*label \("),
        ({"label": None, "id": [1] * 4}, "", r"no label column .*label=COL.*id \(int"),
        ({}, ",label=kind", r"no label column 'kind' .*image \(bin.*label \(int"),
        ({"image": [1] * 4}, "", r"no image column .*expected bytes.*image \(int64\)"),
        ({"label": [0, 1, None, 0]}, "", r"train.parquet, row 2 has no label in 'la"),
        ({"image": [IMAGE, None, IMAGE, IMAGE]}, "", r"row 1 has no bytes in 'image'"),
        ({"label": [0, -1, 1, 0]}, "", r"row 1 has label -1, expected 0 \.\. 1"),
        ({"label": [0] * 4}, "", r"1 classes \(0\); at least two"),
        ({"label": [f"a photo of {n}" for n in range(200)], "rows": 200}, "",
         "200 different labels on 200 images.*look like texts.*label=NAME"),
        ({}, ",colour=red", r"expected hf:org/name.*,config=.*,revision="),
    ],
)  # fmt: skip
def test_columns_that_cannot_work_are_explained(tmp_path, columns, options, says):
    name = write(tmp_path / "train.parquet", **columns) + options
    with pytest.raises(InputError, match=says) as raised:
        sources.load(name, "train")
    assert len(str(raised.value)) < 800


def test_another_number_of_classes_for_evaluation(tmp_path):
    write(tmp_path / "train.parquet")
    write(tmp_path / "test.parquet", label=[0, 1, 2, 3])
    says = r"test.parquet, row \d has label [23], expected 0 \.\. 1, the .*\(2 of 4"
    with pytest.raises(InputError, match=says):
        sources.load(f"hf:{tmp_path}", "test")


# What is kept


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for name in (made_sets.hub(tmp_path / "a"), made_sets.shards(tmp_path / "b")):
        with pytest.raises(InputError, match=r"written into .*/file/x: Not a dir"):
            sources.load(name, "train", data_dir=str(tmp_path / "file/x"))


@pytest.mark.parametrize("left", [0, 100, -9])
def test_a_file_cut_short_is_named(tmp_path, left):
    path = made_sets.parquet(tmp_path / "set/train.parquet")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(
        InputError, match=rf"{path} is damaged, cut short or no Parquet"
    ):
        sources.load(f"hf:{tmp_path}/set", "train")


def test_a_damaged_image_is_named_by_its_row(tmp_path):
    pictures = [IMAGE, IMAGE[:40], IMAGE, IMAGE]
    name = write(tmp_path / "train.parquet", image=pictures)
    source = sources.load(name, "train")
    row = np.random.RandomState(0).permutation(4).tolist().index(1)
    with pytest.raises(InputError, match=r"train.parquet, row 1 (cannot|is not)"):
        source[row]


# The Hub


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A Hub that has one data set, `org/set`, under `tmp_path / "remote"`.

    Its branches are folders there. `fail` is raised by the calls that it names.
    """

    class Fake:
        fail: dict = {}  # noqa: RUF012
        taken: list = []  # noqa: RUF012

    Fake.fail, Fake.taken = {}, []

    def at(place, revision):
        assert place == "org/set"
        root = tmp_path / "remote" / (revision or "main").replace("/", "-")
        if not root.is_dir():
            raise error(errors.RevisionNotFoundError)
        return root

    def list_repo_files(self, place, repo_type, revision):
        assert repo_type == "dataset"
        if "list" in Fake.fail:
            raise Fake.fail["list"]
        root = at(place, revision)
        return [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()]

    def snapshot_download(
        place, repo_type, revision, allow_patterns, local_files_only=False
    ):
        assert repo_type == "dataset"
        if "download" in Fake.fail:
            raise Fake.fail["download"]
        root = tmp_path / "snapshot"
        if local_files_only and not root.exists():
            raise error(errors.LocalEntryNotFoundError)
        for file in allow_patterns:
            Fake.taken.append(file)
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            if not (root / file).exists():
                shutil.copy2(at(place, revision) / file, root / file)
        return str(root)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return Fake


def error(kind):
    """An error of huggingface_hub, whose arguments differ between its versions."""
    return kind.__new__(kind)


def test_the_hub_gives_what_the_folder_gives(fake, tmp_path):
    name = made_sets.hub(tmp_path / "remote/main")
    (tmp_path / "remote/main/README.md").write_text("about")
    ours, theirs = sources.load("hf:org/set", "train"), sources.load(name, "train")
    assert ours.fingerprint == theirs.fingerprint
    # Only the files of the split; the others have class names in their schema.
    assert fake.taken == [f"data/train-0000{n}-of-00002.parquet" for n in (0, 1)]


def test_what_the_hub_has_converted_is_taken_where_there_is_no_parquet(fake, tmp_path):
    (tmp_path / "remote/main").mkdir(parents=True)
    made_sets.parquet(
        tmp_path / "remote/refs-convert-parquet/default/train/0000.parquet"
    )
    assert len(sources.load("hf:org/set", "train")) == 20
    shutil.rmtree(tmp_path / "remote/refs-convert-parquet")
    with pytest.raises(InputError, match="hf:org/set holds no Parquet files, and the"):
        sources.load("hf:org/set", "train")


def test_without_a_network_the_hubs_cache_is_used(fake, tmp_path):
    made_sets.hub(tmp_path / "remote/main")
    before = sources.load("hf:org/set", "train").fingerprint
    fake.fail["list"] = ConnectionError("no route to host")
    assert sources.load("hf:org/set", "train").fingerprint == before
    shutil.rmtree(tmp_path / "snapshot")
    with pytest.raises(InputError, match="not whole in the Hub's cache: no route to"):
        sources.load("hf:org/set", "train")


@pytest.mark.parametrize(
    ("call", "raised", "says"),
    [
        ("list", errors.GatedRepoError, "gated: accept its terms on https://huggingf"),
        ("download", errors.GatedRepoError, "gated: accept.*`hf auth login`"),
        ("list", errors.RepositoryNotFoundError,
         r"no data set of the Hub, or private: .*hf:\./org/set"),
        ("list", errors.HFValidationError, "expected hf:org/name"),
        ("list", errors.RevisionNotFoundError, r"no revision None: see .*tree/main"),
        ("download", ConnectionError, "cannot be downloaded.*hf:/path"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_one_line(fake, tmp_path, call, raised, says):
    made_sets.hub(tmp_path / "remote/main")
    fake.fail[call] = error(raised)
    with pytest.raises(InputError, match=says) as refused:
        sources.load("hf:org/set", "train")
    assert "\n" not in str(refused.value)


def test_without_the_package_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        sources.load("hf:org/set", "train")


def test_the_library_itself_says_the_same(tmp_path):
    """What is faked above is of one version: here is the one that is installed."""
    script = (
        "from deit_jax.data import sources\n"
        "try: sources.load('hf:org/set', 'train')\n"
        "except ValueError as error: print(type(error).__name__, error)"
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | offline | {"PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert result.stdout.startswith(
        "InputError hf:org/set cannot be downloaded, and is not whole in the Hub's c"
    ), result.stderr
