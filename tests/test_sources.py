"""Sources: the embedded digits, sets of TFDS, and folders of images."""

import itertools
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import made_sets
import numpy as np
import pytest
from PIL import Image

from deit_jax.data import sources
from deit_jax.data.sources import fingerprints
from deit_jax.data.sources.split import parse_split
from deit_jax.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[1]


def encode(seed: int, format: str = "PNG") -> bytes:
    pixels = np.random.RandomState(seed).randint(0, 256, (5, 6, 3)).astype(np.uint8)
    return made_sets.encoded(pixels, format)


# Splits


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", ("train", 0, 1000)),
        ("train[:45]", ("train", 0, 45)),
        ("train[-10:]", ("train", 990, 1000)),
        ("train[80%:]", ("train", 800, 1000)),
        ("train[-25%:-5%]", ("train", 750, 950)),
        ("test[1:99999]", ("test", 1, 30)),
        ("test[:5%]", ("test", 0, 2)),  # 1.5 rounds to the even number, as in TFDS
    ],
)
def test_splits_in_tfds_syntax(split, expected):
    assert parse_split(split, {"train": 1000, "test": 30}) == expected


@pytest.mark.parametrize(
    ("split", "says"),
    [
        *[
            (split, r"unknown split.*train \(10\), test \(5\)")
            for split in ("", "val", "train[", "train[5]", "train+test")
        ],
        *[(split, "holds no image") for split in ("train[5:5]", "train[10:]")],
    ],
)
def test_a_split_that_is_none_or_empty_is_refused(split, says):
    with pytest.raises(InputError, match=says):
        parse_split(split, {"train": 10, "test": 5})


# The embedded digits


def test_digits():
    train, test = sources.load("digits", "train"), sources.load("digits", "test")
    assert (len(train), len(test)) == (1440, 357)
    assert train.image_shape == (32, 32, 3)
    assert train.class_names == tuple("0123456789")
    example = train[3]
    assert example["image"].dtype == np.uint8
    assert example["image"].shape == (32, 32, 3)
    assert example["label"] == train.labels[3]
    assert train.images.max() == 255
    assert sources.load_into_memory(train) is train

    part = sources.load("digits", "train[5:9]")
    np.testing.assert_array_equal(part.images, train.images[5:9])
    assert part.fingerprint != train.fingerprint
    # Caches of teacher logits out there belong to it.
    assert train.fingerprint.startswith("839dc6b14b6f2240")


# Folders of images


@pytest.fixture
def pets(tmp_path) -> Path:
    """Two classes: 12 and 8 training images, 3 each for evaluation."""
    root = tmp_path / "pets"
    counts = {("train", "cats"): 12, ("train", "dogs"): 8}
    counts |= {("val", "cats"): 3, ("val", "dogs"): 3}
    for number, ((split, name), count) in enumerate(counts.items()):
        (root / split / name).mkdir(parents=True)
        for i in range(count):
            path = root / split / name / f"{i:03}.png"
            path.write_bytes(encode(1000 * number + i))
    return root


def load(root: Path | str, split: str = "train"):
    return sources.load(f"folder:{root}", split)


def test_a_folder(pets, monkeypatch):
    source = load(pets)
    assert len(source) == 20
    assert source.num_classes == 2
    assert source.class_names == ("cats", "dogs")
    assert source.labels.dtype == np.int32
    assert source.labels.tolist().count(0) == 12
    assert source.image_shape is None
    for index in range(len(source)):
        path = Path(source.where(index))
        example = source[index]
        assert path.parent.name == source.class_names[example["label"]]
        assert example["label"] == source.labels[index]
        np.testing.assert_array_equal(example["image"], np.asarray(Image.open(path)))
    assert source.where(-1) == source.where(19)
    with pytest.raises(IndexError):
        source[20]
    with pytest.raises(InputError, match="differ in size"):
        sources.load_into_memory(source)
    monkeypatch.chdir(pets.parent)
    relative = load("pets")
    assert relative.name == "folder:pets"
    assert relative.fingerprint == source.fingerprint


def test_what_is_no_image_is_passed_over_and_counted(pets):
    before = load(pets)
    cats = pets / "train" / "cats"
    for name in ("notes.txt", "labels.csv", ".DS_Store", "._000.png", "Thumbs.db", "x"):
        (cats / name).write_bytes(b"no image")
    (cats / "phone.HEIC").write_bytes(b"not for Pillow")
    (pets / "train" / "loose.png").write_bytes(encode(0))
    for hidden in (pets / "train" / "__MACOSX", cats / "@eaDir", cats / ".cache"):
        hidden.mkdir()
        (hidden / "000.png").write_bytes(encode(0))
    os.mkfifo(cats / "pipe.png")
    (cats / "zeros.jpg").symlink_to("/dev/zero")
    source = load(pets)
    assert source.fingerprint == before.fingerprint
    assert source.passed_over == {
        **{".txt": 1, ".csv": 1, ".db": 1, ".heic": 1, "no ending": 1},
        **{"hidden": 4, "no file": 2},
    }
    path = Path(source.where(0))
    path.unlink()
    os.mkfifo(path)  # it is not waited for
    with pytest.raises(InputError, match=f"{path.name} is no regular file"):
        source[0]


def test_endings_in_any_case_and_images_further_down(pets):
    deep = pets / "train" / "dogs" / "more" / "still"
    deep.mkdir(parents=True)
    for name in ("a.JPG", "c.GIF", "d.WebP", "h.jfif"):
        (deep / name).write_bytes(encode(7))
    source = load(pets)
    assert len(source) == 24
    assert source.labels.tolist().count(1) == 12


def test_links_are_followed_and_what_many_lead_to_counts_once(pets, tmp_path):
    """Thirty levels of two links each are a billion paths to one image."""
    levels = [tmp_path / f"level{n}" for n in range(31)]
    for one, next_one in itertools.pairwise([*levels, levels[0]]):
        one.mkdir()
        for name in ("a", "b"):
            (one / name).symlink_to(next_one, target_is_directory=True)
    (levels[-1] / "x.png").write_bytes(encode(99))
    (levels[-1] / "itself").symlink_to("itself")
    (pets / "train" / "cats" / "more").symlink_to(levels[0], target_is_directory=True)
    assert len(load(pets)) == 20 + 1


def change_a_byte(root):
    path = root / "train" / "cats" / "003.png"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(bytes(content))


def renamed(*names):
    """What renames the folders of classes, in both splits: each name to the next."""

    def change(root):
        for split in ("train", "val"):
            for one, other in itertools.pairwise(names):
                (root / split / one).rename(root / split / other)

    return change


@pytest.mark.parametrize(
    "change",
    [
        change_a_byte,
        lambda root: [
            renamed(*pair)(root)
            for pair in (("cats", "x"), ("dogs", "cats"), ("x", "dogs"))
        ],
        renamed("cats", "cat"),
        lambda root: (root / "train/cats/003.png").rename(root / "train/dogs/103.png"),
    ],
    ids=["byte", "swapped", "renamed", "moved"],
)
def test_another_image_or_label_changes_the_fingerprint(pets, change):
    before = load(pets).fingerprint
    change(pets)
    assert load(pets).fingerprint != before


def test_of_a_large_folder_sizes_and_a_sample_are_hashed(pets, monkeypatch):
    monkeypatch.setattr(fingerprints, "WHOLE_BYTES", 100)
    monkeypatch.setattr(fingerprints, "SAMPLE", 3)
    source = load(pets)
    before = source.fingerprint

    def altered(index, change) -> bool:
        path = Path(source.where(index))
        content = path.read_bytes()
        path.write_bytes(change(content))
        after = load(pets).fingerprint
        path.write_bytes(content)
        return after != before

    assert altered(0, lambda content: content[:-1] + b"x")  # in the sample
    assert altered(5, lambda content: content + b"x")  # another size
    assert not altered(5, lambda content: content[:-1] + b"x")  # the price


def test_a_damaged_file_is_named_when_it_is_read(pets):
    source = load(pets)
    path = Path(source.where(3))
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(InputError, match=f"{path} cannot be decoded"):
        source[3]
    assert source[4]["image"].shape == (5, 6, 3)  # the others are fine


def clear(folder, left=()):
    for path in folder.iterdir():
        path.unlink()
    for name in left:
        (folder / name).touch()


def flat(root):
    for path in root.glob("train/*/*"):
        path.rename(root / "train" / f"{path.parent.name}{path.name}")
    for name in ("cats", "dogs"):
        (root / "train" / name).rmdir()


def broken_link(root):
    (root / "train/cats/gone.jpg").symlink_to(root / "nowhere.jpg")


@pytest.mark.parametrize(
    ("damage", "split", "says"),
    [
        (shutil.rmtree, "train", "pets does not exist.*train/<class>"),
        (lambda r: (shutil.rmtree(r), r.touch()), "train", "is a file; unpack it"),
        (flat, "train", "train holds no class; at least two"),
        (
            lambda r: [clear(r / "val" / name) for name in ("cats", "dogs")],
            "val",
            "the folder .*/val holds no image",
        ),
        (
            lambda r: clear(r / "train/dogs", ["a.heic"]),
            "train",
            r"train/dogs holds no image.*passed over so far: 1 \.heic",
        ),
        (
            lambda r: (r / "val/cats").rename(r / "val/Cats"),
            "val",
            "not in .*val: cats; in .*val but not in .*train: Cats",
        ),
        (lambda r: None, "holdout", "unknown split 'holdout'.*train, val"),
        (broken_link, "train", "train/cats/gone.jpg cannot be read.*link"),
        (renamed("cats", "a\nb"), "train", r"a\\nb' has a name that cannot be prin"),
        (renamed("cats", "\udcff"), "train", r"udcff' has a name that cannot be prin"),
    ],
)
def test_a_bad_folder_is_explained_at_opening(pets, damage, split, says):
    damage(pets)
    with pytest.raises(InputError) as raised:
        load(pets, split)
    message = str(raised.value)
    assert raised.match(f"(?s){says}"), message
    assert len(message) < 800


# TFDS


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """A data_dir in which `tiny_pictures` has been prepared through `sources.load`."""
    pytest.importorskip("tensorflow")
    import tensorflow_datasets as tfds

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = None

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(5, 6, 3), encoding_format="png"),
                "coarse_label": tfds.features.ClassLabel(num_classes=2),
                "label": tfds.features.ClassLabel(names=["ant", "bee", "cow"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            counts = {"train": 20, "test": 7, "unlabelled": 4}
            return {k: self._generate_examples(k, n) for k, n in counts.items()}

        def _generate_examples(self, split, count):
            for i in range(count):
                image = np.full((5, 6, 3), 10 * i, np.uint8)
                label = -1 if split == "unlabelled" else i % 3
                yield i, {"image": image, "coarse_label": 0, "label": label}

    data_dir = str(tmp_path_factory.mktemp("tfds"))
    assert len(sources.load("tiny_pictures", "test", data_dir=data_dir)) == 7
    return data_dir


def load_tiny(data_dir, split="train", name="tiny_pictures"):
    return sources.load(name, split, data_dir=str(data_dir))


def test_a_tfds_set(tiny):
    source = load_tiny(tiny)
    memory = sources.load_into_memory(source)
    pickled = pickle.dumps(source)
    assert len(pickled) < 2000
    for each in (source, memory, pickle.loads(pickled)):
        assert len(each) == 20
        assert each.class_names == ("ant", "bee", "cow")
        assert each.image_shape == (5, 6, 3)
        assert each.labels.dtype == np.int32
        for field in ("name", "split", "fingerprint"):
            assert getattr(each, field) == getattr(source, field)
        for index in range(20):
            example = each[index]
            level = example["image"][0, 0, 0]  # ten times the number it was written as
            assert (example["image"] == level).all()
            assert example["label"] == each.labels[index] == level // 10 % 3
    assert source.where(-1) == "tiny_pictures train[0:20], example 19"


def test_a_tfds_slice_is_what_tfds_gives(tiny):
    import tensorflow_datasets as tfds

    for split in ("train[:45%]", "train[3:-2]", "test"):
        ours = load_tiny(tiny, split)
        theirs = tfds.data_source("tiny_pictures", split=split, data_dir=tiny)
        assert ours.labels.tolist() == [e["label"] for e in theirs]
        assert ours.split == split


@pytest.mark.slow
def test_reading_imports_nothing_heavy(tiny):
    script = (
        "import sys; from deit_jax.data import sources\n"
        "for name in ('digits', 'tiny_pictures'):\n"
        f"    source = sources.load(name, 'train', data_dir={tiny!r})\n"
        "    sources.load_into_memory(source)\n"
        "heavy = {'tensorflow', 'torch', 'jax'} & set(sys.modules)\n"
        "print(source.fingerprint, heavy)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    expected = f"{load_tiny(tiny).fingerprint} set()"
    assert result.stdout.strip() == expected, result.stderr


def test_the_tfds_fingerprint_follows_the_data_not_the_place(tiny, tmp_path):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    before = load_tiny(tiny).fingerprint
    assert load_tiny(copy).fingerprint == before
    assert load_tiny(tiny, "train[:19]").fingerprint != before
    # Another label for every image of the second class.
    [names] = Path(copy).glob("tiny_pictures/*/label.labels.txt")
    names.write_text("ant\nwasp\ncow\n")
    assert load_tiny(copy).fingerprint != before


def test_a_prepared_version_is_used_though_the_code_is_newer(tiny, tmp_path):
    copy = Path(shutil.copytree(tiny, tmp_path / "copy")) / "tiny_pictures"
    (copy / "1.2.0").rename(copy / "1.1.0")
    info = copy / "1.1.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"1.2.0"', '"1.1.0"'))
    assert load_tiny(copy.parent).fingerprint != load_tiny(tiny).fingerprint
    assert len(load_tiny(tiny, name="tiny_pictures:1.2.0")) == 20


def test_labels_of_a_large_set_are_read_when_asked_for(tiny, monkeypatch):
    monkeypatch.setattr(fingerprints, "WHOLE_BYTES", 100)
    monkeypatch.setattr(fingerprints, "SAMPLE", 3)
    source = load_tiny(tiny)
    assert "labels" not in vars(source.records)
    monkeypatch.undo()
    np.testing.assert_array_equal(source.labels, load_tiny(tiny).labels)
    assert source.fingerprint != load_tiny(tiny).fingerprint


def test_a_split_without_labels_is_refused(tiny):
    with pytest.raises(
        InputError, match=r"example 0 has label -1, expected 0 \.\. 2: choose"
    ):
        load_tiny(tiny, "unlabelled")


@pytest.mark.parametrize(
    ("name", "split", "says"),
    [
        ("tiny_pictures", "validation", r"unknown split.*train \(20\), test \(7\)"),
        ("tiny_pictures/large", "train", "cannot open 'tiny_pictures/large' under"),
        ("imdb_reviews", "train", r"no image classification.*text \(Text\), label"),
        ("cifra10", "train", r"unknown data set 'cifra10'\. Did you mean cifar10 or"),
        ("huggingface:mnist", "train", "unknown data set 'huggingface:mnist'"),
        ("", "train", "unknown data set ''.*digits .*folder:/path"),
        (str(REPOSITORY), "train", f"Did you mean folder:{REPOSITORY}"),
    ],
)
def test_a_bad_name_or_split_is_explained(tiny, name, split, says):
    with pytest.raises(InputError, match=says) as raised:
        sources.load(name, split, data_dir=tiny)
    assert len(str(raised.value)) < 800


@pytest.mark.parametrize(
    ("file", "left"), [("*-train.array_record*", 200), ("dataset_info.json", 1)]
)
def test_damaged_tfds_files_name_their_folder(tiny, tmp_path, file, left):
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    [path] = copy.glob(f"tiny_pictures/1.2.0/{file}")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match=str(copy)):
        load_tiny(copy)


def test_a_format_without_random_access_is_explained(tiny, tmp_path):
    import tensorflow_datasets as tfds

    builder = tfds.builder("tiny_pictures", data_dir=str(tmp_path))
    builder.download_and_prepare(file_format="tfrecord")
    with pytest.raises(InputError, match=r"as tfrecord, which has no random access"):
        load_tiny(tmp_path)


def test_no_network_ends_in_one_clear_message(tmp_path, monkeypatch, capfd):
    import requests

    def head(url, timeout):
        assert timeout <= 10
        raise requests.ConnectionError("Max retries exceeded with url ...")

    monkeypatch.setattr(requests, "head", head)
    with pytest.raises(InputError) as raised:
        sources.load("cifar10", "train", data_dir=str(tmp_path))
    for words in (
        f"cifar10 is not prepared in {tmp_path}/cifar10/3.0.2 and cannot be downloaded",
        "www.cs.toronto.edu cannot be reached (ConnectionError)",
        "--config.dataset.data_dir",
        "--config=configs/deit.py:digits",
    ):
        assert words in str(raised.value)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_preparation_ends_in_one_clear_message(tiny, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    says = "cannot be downloaded: .*No space left.*configs/deit.py:digits"
    with pytest.raises(InputError, match=says):
        load_tiny(tmp_path)


def test_preparing_without_tensorflow_says_what_to_install(tmp_path, monkeypatch):
    from deit_jax.data.sources import tfds

    monkeypatch.setattr(tfds.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install tensorflow-cpu"):
        sources.load("cifar10", "train", data_dir=str(tmp_path))
