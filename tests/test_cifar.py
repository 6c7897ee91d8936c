"""CIFAR as published: which files, and a pickle that is read and not executed."""

import os
import pickle
import shutil
import warnings

import made_sets
import numpy as np
import pytest

from deit_jax.data import sources
from deit_jax.errors import InputError


def load(root, split="train"):
    return sources.load(f"cifar:{root}", split)


def test_images_keep_the_authors_order(tmp_path):
    pixels, labels = made_sets.images("train")
    source = load(made_sets.cifar(tmp_path, "10-py"), "train[5:]")
    assert source.labels.tolist() == labels[5:].tolist()
    np.testing.assert_array_equal(source[2]["image"], pixels[7])


@pytest.mark.parametrize("form", ["folder", "parent", "archive", "beside"])
def test_where_it_may_lie(tmp_path, form):
    folder = made_sets.cifar(tmp_path / "set", "100-py")
    place = {"parent": folder.parent}.get(form, folder)
    if form in ("archive", "beside"):
        place = made_sets.archive(folder)
        shutil.rmtree(folder)
    source = load(place.parent if form == "beside" else place)
    assert source.class_names == made_sets.NAMES
    assert len(source) == 20


def test_two_versions_are_one_and_two_data_sets_are_not(tmp_path):
    for version in ("10-py", "10-bin"):
        made_sets.cifar(tmp_path, version)
    assert len(load(tmp_path)) == 20
    made_sets.cifar(tmp_path, "100-bin")
    says = r"CIFAR-10 and CIFAR-100: give cifar:.*batches-bin or cifar:.*100-binary"
    with pytest.raises(InputError, match=says):
        load(tmp_path)


class _Executed:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("file", ["data_batch_3", "batches.meta"])
@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(_Executed()),
        pickle.dumps({"data": _Executed()}, 2),
        b'cbuiltins\neval\n(S\'__import__("os").mkdir("executed")\'\ntR.',
        b"(S'mkdir executed'\nios\nsystem\n.",
    ],
    ids=["protocol 4", "inside", "global", "instance"],
)
def test_a_pickle_is_not_executed(tmp_path, monkeypatch, file, content):
    monkeypatch.chdir(tmp_path)
    folder = made_sets.cifar(tmp_path, "10-py")
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=rf"{file} is no batch .*asks for \w+\.\w+"):
        load(folder)
    assert not (tmp_path / "executed").exists()


def test_what_is_written_here_is_what_the_original_is(tmp_path):
    """The tests' pickles are read by Python's own unpickler, as the authors say."""
    path = made_sets.cifar(tmp_path, "10-py") / "data_batch_2"
    with warnings.catch_warnings(action="ignore"):  # NumPy's module has moved
        fields = pickle.loads(path.read_bytes(), encoding="bytes")
    pixels, labels = made_sets.images("train")
    assert fields[b"labels"] == labels[4:8].tolist()
    planes = fields[b"data"].reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(planes.transpose(0, 2, 3, 1), pixels[4:8])


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("version", "file", "damage", "says"),
    [
        ("10-bin", "data_batch_2.bin", cut, r"data_batch_2\.bin has 12,192 bytes, exp"),
        ("100-bin", "train.bin", cut, "expected a multiple of 3,074"),
        ("10-py", "data_batch_5", cut, "data_batch_5 is no batch of the original"),
        (
            "10-py",
            "data_batch_5",
            os.remove,
            "data_batch_5 cannot be read: it is missing",
        ),
        ("10-py", "batches.meta", cut, "batches.meta is no batch of the original"),
        ("10-py", "batches.meta", os.remove, "holds no CIFAR. Expected.*Found: data_b"),
        ("archive of 10-bin", "", cut, r"tar\.gz is damaged, cut short or no archive"),
    ],
)
def test_damaged_files_are_named(tmp_path, version, file, damage, says):
    path = made_sets.cifar(tmp_path, version.removeprefix("archive of "))
    path = made_sets.archive(path) if version.startswith("archive") else path
    damage(path / file)
    with pytest.raises(InputError, match=says) as raised:
        load(path)
    assert len(str(raised.value)) < 500


def test_a_label_that_no_class_has(tmp_path):
    folder = made_sets.cifar(tmp_path, "10-bin")
    path = folder / "data_batch_1.bin"
    path.write_bytes(b"\x09" + path.read_bytes()[1:])
    with pytest.raises(InputError, match=r"image 0 has label 9, expected 0 \.\. 3"):
        load(folder)
