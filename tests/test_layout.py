"""Folders as people have them: what is taken, and what is refused in which words."""

import unicodedata
from pathlib import Path

import pytest

from deit_jax.data import sources
from deit_jax.errors import InputError

NFC = "caf\u00e9"
NFD = unicodedata.normalize("NFD", NFC)
CLASSES = ("cats", "dogs")
SLICE = r"(?s).*train_split='train\[:90%\]'.*eval_split='train\[90%:\]'"


def make(root: Path, *folders: str, files=("1.jpg", "2.jpg", "3.jpg")) -> Path:
    """Folders of files that nothing decodes."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for file in files:
            (root / folder / file).write_text(f"{folder}/{file}")
    return root


def both(*splits: str, classes=CLASSES) -> list[str]:
    return [f"{split}/{name}" for split in splits for name in classes]


def load(root: Path, split: str):
    return sources.load(f"folder:{root}", split)


@pytest.mark.parametrize(
    ("folders", "split", "taken"),
    [
        (both("train", "valid", "test"), "val", "valid"),
        (both("train", "valid", "test"), "valid[:2]", "valid"),
        (both("train", "validation"), "val", "validation"),
        (both("train", "dev"), "test", "dev"),
        (both("train", "eval"), "val", "eval"),
        (both("train", "val"), "validation", "val"),
        (both("train", "val", "valid"), "val", "val"),
        (both("train", "val", "valid"), "valid", "valid"),
        (both("TRAIN", "TEST"), "val", "TEST"),
        (both("train", "Train"), "train", "train"),
        (both("Training", "Testing"), "train", "Training"),
        (both("training_set", "test_set"), "test", "test_set"),
        (both("pets/train", "pets/val"), "val", "pets/val"),
        (both("a/b/Train", "a/b/Valid", "__MACOSX/a/b/Train"), "val", "a/b/Valid"),
        ([*both("pets/train", "pets/val"), "docs"], "train", "pets/train"),
        (both("train/train", "test/images"), "train", "train/train"),
        (both("train/train", "test/images"), "val", "test/images"),
        ([*CLASSES], "train", ""),
        ([*CLASSES], "train[50%:]", ""),
        (["pets/cats", "pets/dogs"], "train", "pets"),
        (both("train", "val", classes=("0", "10", "2")), "val", "val"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else str(value),
)
def test_what_can_mean_one_thing_is_taken(tmp_path, folders, split, taken):
    source = load(make(tmp_path, *folders), split)
    where = Path(source.where(0)).parent
    assert where.parent == tmp_path / taken
    assert sorted(source.class_names) == sorted(
        {Path(f).name for f in folders} - {"docs"}
    )
    base = split.partition("[")[0]
    assert bool(source.notes) == (taken != base)
    assert all(str(tmp_path) in note for note in source.notes)


@pytest.mark.parametrize("given", ["train", "Train", "train/"])
def test_a_split_that_is_given_stands_for_its_data_set(tmp_path, given):
    root = make(tmp_path, *both(given.strip("/"), "valid"))
    source = sources.load(f"folder:{root}/{given}", "val")
    assert Path(source.where(0)).parts[-3] == "valid"
    assert source.notes[0] == f"{root} is taken for {root}/{given.strip('/')}"
    with pytest.raises(InputError, match=f"give folder:{root} and the split 'val'"):
        load(root / "valid", "val")


@pytest.mark.parametrize(
    ("folders", "split", "says"),
    [
        ([*CLASSES], "val", f"found there: cats/, dogs/.*neither val nor test{SLICE}"),
        (both("train"), "val", f"found there: train/.*neither val nor test{SLICE}"),
        (both("val", "test"), "train", f"no folder named train.*test/, val/.*{SLICE}"),
        (both("a/train", "b/train"), "train", "several data sets: give one of folder:"),
        (
            [*both("train"), "test"],
            "test",
            f"not the classes of .*found there: 3 files{SLICE}",
        ),
        (
            [*both("train"), "test/images"],
            "val",
            f"but not in .*train: images.*{SLICE}",
        ),
        (["cats"], "train", "only one class, 'cats'"),
        (["."], "train", "no folder named train .found there: 3 files"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else None,
)
def test_what_was_found_and_what_would_work_is_said(tmp_path, folders, split, says):
    with pytest.raises(InputError, match=f"(?s){says.replace('(?s)', '')}") as raised:
        load(make(tmp_path, *folders), split)
    assert not {"mv", "move", "rm", "delete"} & set(str(raised.value).lower().split())


@pytest.mark.parametrize(
    "theirs", [NFD, f"{NFC} ", f" {NFD}  "], ids=["nfd", "blank", "both"]
)
def test_names_that_look_the_same_are_the_same(tmp_path, theirs):
    root = make(tmp_path, f"train/{NFC}", "train/dogs", f"val/{theirs}", "val/dogs")
    for split in ("train", "val"):
        source = load(root, split)
        assert source.class_names == (NFC, "dogs")
        assert sorted(source.labels) == [0, 0, 0, 1, 1, 1]
        assert source.notes == ()


def test_folders_of_one_name_are_one_class(tmp_path):
    root = make(tmp_path, *(f"train/{n}" for n in (NFC, NFD, f"{NFC} ", "dogs")))
    source = load(root, "train")
    assert source.class_names == (NFC, "dogs")
    assert sorted(source.labels) == [0] * 9 + [1] * 3
    assert source.notes == (
        f"{root / 'train'}: the folders 'cafe\\u0301', 'caf\\xe9', 'caf\\xe9 ' are one "
        f"class, {NFC}",
    )


@pytest.mark.parametrize("folder", [True, False], ids=["empty", "missing"])
def test_a_class_without_evaluation_images_is_left_out(tmp_path, folder):
    root = make(tmp_path, *both("train"), "train/emu", *both("val"))
    make(root, *["val/emu"] * folder, files=("notes.txt",))
    source = load(root, "val")
    assert source.num_classes == 3 and set(source.labels) == {0, 1}
    assert source.notes == (
        f"{root / 'val'} holds no image of 1 of 3 classes, left out of F1 and AUC: emu",
    )


def test_tiny_imagenet(tmp_path):
    names = ("n01443537", "n01629819")
    for name in names:
        make(tmp_path, f"train/{name}/images", files=(f"{name}_0.JPEG",))
        make(tmp_path, f"train/{name}", files=(f"{name}_boxes.txt",))
    make(tmp_path, "val/images", "test/images", files=("val_0.JPEG", "val_1.JPEG"))
    lines = (f"val_{i}.JPEG\t{name}\t0\t32\t44\t62\n" for i, name in enumerate(names))
    (tmp_path / "val/val_annotations.txt").write_text("".join(lines))
    assert len(load(tmp_path, "train")) == 2
    source = load(tmp_path, "val")
    assert source.class_names == names
    assert {Path(source.where(i)).name: source.labels[i] for i in range(2)} == {
        "val_0.JPEG": 0,
        "val_1.JPEG": 1,
    }
    assert source.notes == (
        f"{tmp_path / 'val'}: the classes are those of val_annotations.txt",
    )
    (tmp_path / "val/images/more.JPEG").touch()
    assert load(tmp_path, "val").fingerprint == source.fingerprint
    assert load(tmp_path, "val").passed_over == {
        "without a class": 1,
        ".txt": 1,
    }
    (tmp_path / "val/val_annotations.txt").write_text("val_0.JPEG\tn9\t0\n")
    with pytest.raises(InputError, match="no training images: n9"):
        load(tmp_path, "val")


@pytest.mark.parametrize(
    ("split", "fingerprint"),
    [
        ("train", "b2f0e54672eaef8d"),
        ("train[:50%]", "77a857e2b5d181ba"),
        ("val", "533399e8e1ac5606"),
        ("test", "533399e8e1ac5606"),
    ],
)
def test_the_fingerprint_of_a_folder_never_changes(tmp_path, split, fingerprint):
    """Caches of teacher logits out there belong to it: also with odd names."""
    names = ("cats", NFD, "dogs ", "10", "9")
    root = make(tmp_path, *both("train", "val", classes=names))
    assert load(root, split).fingerprint[:16] == fingerprint
    (root / "val").rename(root / "Validation")
    assert load(root, split).fingerprint[:16] == fingerprint


def test_a_class_that_is_a_link_is_followed_and_missed(tmp_path):
    root = make(tmp_path, *both("train", "elsewhere"))
    (root / "train/emu").symlink_to(root / "elsewhere/cats")
    assert load(root, "train").class_names == ("cats", "dogs", "emu")
    (root / "elsewhere").rename(root / "moved")
    with pytest.raises(InputError, match="train/emu: what the link points to is gone"):
        load(root, "train")
