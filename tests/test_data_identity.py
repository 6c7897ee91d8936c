"""A run belongs to its data: contents are compared, and paths are free."""

import re
import shutil
from pathlib import Path

import pytest

from configs import vit
from deit_jax import dry_run
from deit_jax.errors import InputError
from deit_jax.train import train_and_evaluate
from deit_jax.training import data_identity

pytestmark = pytest.mark.usefixtures("small_nano")

SPLIT = {"order": None, "firsts": [], "class_names": ["cat", "dog", "owl"]}
DATA: dict = {
    "teacher": "t",
    "train": SPLIT | {"fingerprint": "a", "images": 48},
    "eval": SPLIT | {"fingerprint": "b", "images": 12},
}


def changed(teacher="t", **train):
    fields = DATA["train"] | ({"fingerprint": "c"} | train if train else {})
    return DATA | {"train": fields, "teacher": teacher}


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (changed(class_names=["bear", "cat", "dog", "owl"], images=64),
         ["classes added: bear", "training images: 48 -> 64 (16 added)"]),
        (changed(class_names=["cat", "dog"], images=32),
         ["classes removed: owl", "training images: 48 -> 32 (16 removed)"]),
        (changed(class_names=["ape", "cat", "dog"]), ["classes renamed: owl -> ape"]),
        (changed(class_names=["dog", "cat", "owl"]),
         ["the classes are in another order"]),
        (changed(images=50), ["training images: 48 -> 50 (2 added)"]),
        (changed(fingerprint="d"), ["as many as before, but other files, names or"]),
        (changed(teacher="u"), ["the teacher's cache holds other logits"]),
    ],
)  # fmt: skip
def test_what_has_changed_is_said_in_words(ours, words):
    with pytest.raises(InputError) as refused:
        data_identity.check(DATA, ours, where="runs/a")
    for word in ("another --workdir", "--config.init_from=runs/a", *words):
        assert word in str(refused.value)


def test_the_same_contents_are_the_same_data():
    assert data_identity.check(DATA, changed(), where="runs/a") == []


def test_another_live_teacher_is_refused_and_another_kind_left_to_the_config():
    live = DATA | {"teacher": f"{data_identity.LIVE}resnet50, SHA-256 ab"}
    ours = changed(teacher=f"{data_identity.LIVE}resnet50, SHA-256 cd")
    words = "another live teacher: resnet50, SHA-256 ab -> resnet50, SHA-256 cd\n"
    with pytest.raises(InputError, match=words):
        data_identity.check(live, ours, where="runs/a")
    for theirs, mine in ((live, changed()), (DATA, ours), (live, changed(None))):
        assert data_identity.check(theirs, mine, where="runs/a") == []


FIRSTS = {
    "two classes swapped": (["b", "a", "c"], "other classes: cat, dog"),
    "other images": (["x", "y", "c"], "same names hold other images: cat, dog"),
    "one file repaired": (["x", "b", "c"], None),
}


@pytest.mark.parametrize(("firsts", "words"), FIRSTS.values(), ids=FIRSTS)
def test_files_may_be_repaired_in_their_places_and_classes_not_swapped(firsts, words):
    saved = DATA | {"train": DATA["train"] | {"order": "o", "firsts": ["a", "b", "c"]}}
    ours = changed(fingerprint="d", order="o", firsts=firsts)
    if words is None:
        [note] = data_identity.check(saved, ours, where="runs/a")
        assert note.startswith("training images were changed in their places")
        return
    with pytest.raises(InputError, match=words):
        data_identity.check(saved, ours, where="runs/a")


def swap(root):
    """Exchanges the contents of the files of two classes, pair by pair."""
    for split in ("train", "val"):
        dark, bright = (
            sorted((root / split / n).iterdir()) for n in ("dark", "bright")
        )
        for one, other in zip(dark, bright, strict=True):
            content = one.read_bytes()
            one.write_bytes(other.read_bytes())
            other.write_bytes(content)


def files(run):
    return {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def assert_untouched(run, before):
    left = files(run)
    assert left.keys() == before.keys()
    assert all(left[p] == before[p] for p in left if p.name != "run.lock")


@pytest.mark.slow
def test_a_run_resumes_on_its_data_alone_wherever_they_lie(
    folder_config, tmp_path, capsys
):
    root = Path(folder_config.dataset.name.removeprefix("folder:"))
    run = tmp_path / "run"
    train_and_evaluate(folder_config, run)
    # The same contents by another path.
    moved = shutil.copytree(root, tmp_path / "moved")
    for path in (f"{root}/", moved):
        folder_config.dataset.name = f"folder:{path}"
        train_and_evaluate(folder_config, run)
        assert "holds this run, finished" in capsys.readouterr().out

    def added(data):
        for split in ("train", "val"):
            shutil.copytree(data / split / "dark", data / split / "bear")

    def renamed(data):
        for split in ("train", "val"):
            (data / split / "bright").rename(data / split / "zebra")

    def grown(data):
        dark = data / "train" / "dark"
        shutil.copy(next(dark.iterdir()), dark / "more.jpg")

    before = files(run)
    for change, words in (
        (added, "classes added: bear"),
        (renamed, "classes renamed: bright -> zebra"),
        (swap, "in the folders of other classes"),
        (grown, "training images: 32 -> 33 (1 added)"),
    ):
        change(moved)
        for start in (train_and_evaluate, dry_run.show):
            with pytest.raises(InputError, match=re.escape(words)):
                start(folder_config, run)
        shutil.rmtree(moved)
        shutil.copytree(root, moved)
    assert_untouched(run, before)


@pytest.mark.slow
def test_a_run_resumes_on_no_other_slice_of_its_data(tmp_path):
    config = vit.get_config("digits")
    config.dataset.train_split, config.dataset.eval_split = "train[:64]", "test[:32]"
    config.epochs, config.schedule.warmup_epochs = 1.0, 0.0
    run = tmp_path / "run"
    train_and_evaluate(config, run)
    before = files(run)
    for field, split, words in (
        ("train_split", "train[64:128]", "training images: as many as before, but oth"),
        ("train_split", "train[:96]", r"training images: 64 -> 96 \(32 added\)"),
        ("eval_split", "test[32:64]", "evaluation images: as many as before, but oth"),
    ):
        other = config.copy_and_resolve_references()
        other.dataset[field] = split
        for start in (train_and_evaluate, dry_run.show):
            with pytest.raises(InputError, match=f"run holds a run on .*\n  {words}"):
                start(other, run)
    assert_untouched(run, before)
