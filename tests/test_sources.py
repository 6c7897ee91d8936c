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
DATA_DIR = Path(
    os.environ.get("DEIT_JAX_TEST_DATA", REPOSITORY / ".." / "shared" / "data")
)


def encode(seed: int, format: str = "PNG") -> bytes:
    pixels = np.random.RandomState(seed).randint(0, 256, (5, 6, 3)).astype(np.uint8)
    return made_sets.encoded(pixels, format)


SPLITS = ("train", "val")


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
            for split in ("", "val", "train[", "train[5]", "train[:5,]", "train+test")
        ],
        *[
            (split, "holds no image")
            for split in ("train[5:5]", "train[:0]", "train[10:]")
        ],
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


def test_a_folder(pets):
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


def test_slices_of_a_folder_are_mixed_and_complete(pets):
    first, rest = load(pets, "train[:50%]"), load(pets, "train[50%:]")
    paths = [s.where(i) for s in (first, rest) for i in range(len(s))]
    assert len(set(paths)) == len(paths) == 20
    assert set(first.labels) == set(rest.labels) == {0, 1}


def test_what_is_no_image_is_passed_over_and_counted(pets):
    before = load(pets)
    cats = pets / "train" / "cats"
    for name in ("notes.txt", "labels.csv", ".DS_Store", "._000.png", "Thumbs.db", "x"):
        (cats / name).write_bytes(b"no picture")
    (cats / "phone.HEIC").write_bytes(b"not for Pillow")
    (pets / "train" / "loose.png").write_bytes(encode(0))
    for hidden in (pets / "train" / "__MACOSX", cats / "@eaDir", cats / ".cache"):
        hidden.mkdir()
        (hidden / "000.png").write_bytes(encode(0))
    source = load(pets)
    assert source.fingerprint == before.fingerprint
    assert source.passed_over == {
        **{".txt": 1, ".csv": 1, ".db": 1, ".heic": 1, "no ending": 1},
        "hidden": 4,
    }


def test_endings_in_any_case_and_images_further_down(pets):
    deep = pets / "train" / "dogs" / "more" / "still"
    deep.mkdir(parents=True)
    formats = {"a.JPG": "JPEG", "c.GIF": "GIF", "d.WebP": "WEBP", "h.jfif": "PNG"}
    for name, format in formats.items():
        (deep / name).write_bytes(encode(7, format))
    source = load(pets)
    assert len(source) == 20 + len(formats)
    found = {Path(source.where(i)).name: source[i] for i in range(len(source))}
    assert [found[name]["label"] for name in formats] == [1] * len(formats)


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


def test_pipes_and_devices_are_passed_over(pets):
    before = load(pets).fingerprint
    os.mkfifo(pets / "train" / "cats" / "pipe.png")
    (pets / "train" / "cats" / "zeros.jpg").symlink_to("/dev/zero")
    source = load(pets)
    assert source.fingerprint == before
    assert source.passed_over["no file"] == 2
    path = Path(source.where(0))
    path.unlink()
    os.mkfifo(path)  # it is not waited for
    with pytest.raises(InputError, match=f"{path.name} is no regular file"):
        source[0]


def test_a_copied_folder_is_the_same_data_set(pets, tmp_path, monkeypatch):
    copy = tmp_path / "other" / "place"
    shutil.copytree(pets, copy, copy_function=shutil.copyfile)
    monkeypatch.chdir(copy.parent)
    one, two = load(pets), load("place")
    assert (two.name, one.fingerprint) == ("folder:place", two.fingerprint)
    for index in range(20):
        assert Path(one.where(index)).name == Path(two.where(index)).name


def change_a_byte(root):
    path = root / "train" / "cats" / "003.png"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(bytes(content))


def swap_two_classes(root):
    for split in SPLITS:
        (root / split / "cats").rename(root / split / "swap")
        (root / split / "dogs").rename(root / split / "cats")
        (root / split / "swap").rename(root / split / "dogs")


def named(name):
    return lambda root: [(root / s / "cats").rename(root / s / name) for s in SPLITS]


@pytest.mark.parametrize(
    "change",
    [
        change_a_byte,
        swap_two_classes,
        named("cat"),
        lambda root: (root / "train/cats/003.png").rename(root / "train/dogs/103.png"),
        lambda root: (root / "train/dogs/000.png").unlink(),
    ],
    ids=["byte", "swapped", "renamed", "moved", "removed"],
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


def test_val_and_test_stand_in_for_each_other(pets):
    assert load(pets, "test[:2]").split == "val[:2]"
    assert load(pets, "test").fingerprint == load(pets, "val").fingerprint
    (pets / "val").rename(pets / "test")
    assert load(pets, "val").split == "test"


def test_a_source_pickles_to_its_paths(pets):
    source = load(pets)
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[4]["image"], source[4]["image"])
    assert copy.fingerprint == source.fingerprint
    assert copy.class_names == source.class_names

    with pytest.raises(InputError, match="differ in size"):
        sources.load_into_memory(source)


@pytest.mark.slow
def test_a_bad_file_is_named_when_it_is_read(pets):
    source = load(pets)
    cut, gone = Path(source.where(3)), Path(source.where(7))
    cut.write_bytes(cut.read_bytes()[:90])
    gone.unlink()
    with pytest.raises(InputError, match=f"{cut} cannot be decoded"):
        source[3]
    with pytest.raises(InputError, match=f"{gone} cannot be read: No such file"):
        source[7]
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
        (lambda r: shutil.rmtree(r / "train/dogs"), "train", "only one class, 'cats'"),
        (lambda r: clear(r / "train/dogs"), "train", "train/dogs holds no image"),
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
        (lambda r: (r / "val/emu").mkdir(), "val", r"in .*val but not in .*train: emu"),
        (
            lambda r: (r / "val/cats").rename(r / "val/Cats"),
            "val",
            "not in .*val: cats; in .*val but not in .*train: Cats",
        ),
        (lambda r: shutil.rmtree(r / "val"), "val", "neither val nor test"),
        (lambda r: None, "holdout", "unknown split 'holdout'.*train, val"),
        (lambda r: None, "train[", "unknown split"),
        (lambda r: None, "train[20:]", "holds no image: train has 20"),
        (broken_link, "train", "train/cats/gone.jpg cannot be read.*link"),
        (named("a\nb"), "train", r"a\\nb' has a name that cannot be printed"),
        (named("\udcff"), "train", r"udcff' has a name that cannot be printed"),
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
    assert len(source) == 20
    assert source.class_names == ("ant", "bee", "cow")
    assert source.image_shape == (5, 6, 3)
    assert source.labels.dtype == np.int32
    for index in range(20):
        example = source[index]
        level = example["image"][0, 0, 0]  # ten times the number it was written as
        assert (example["image"] == level).all()
        assert example["label"] == source.labels[index] == level // 10 % 3
    assert source.where(-1) == "tiny_pictures train[0:20], example 19"


def test_a_tfds_slice_is_what_tfds_gives(tiny):
    import tensorflow_datasets as tfds

    for split in ("train[:45%]", "train[3:-2]", "test"):
        ours = load_tiny(tiny, split)
        theirs = tfds.data_source("tiny_pictures", split=split, data_dir=tiny)
        assert ours.labels.tolist() == [e["label"] for e in theirs]
        assert ours.split == split


def test_tfds_into_memory(tiny):
    source = load_tiny(tiny)
    memory = sources.load_into_memory(source)
    np.testing.assert_array_equal(memory.labels, source.labels)
    for index in range(20):
        np.testing.assert_array_equal(memory.images[index], source[index]["image"])
    for field in ("name", "split", "class_names", "fingerprint", "num_classes"):
        assert getattr(memory, field) == getattr(source, field)


def test_a_tfds_source_pickles_small_and_reopens(tiny):
    source = load_tiny(tiny)
    source[0]
    pickled = pickle.dumps(source)
    assert len(pickled) < 2000
    copy = pickle.loads(pickled)
    np.testing.assert_array_equal(copy[4]["image"], source[4]["image"])
    np.testing.assert_array_equal(copy.labels, source.labels)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_pictures", "digits"])
def test_reading_imports_nothing_heavy(tiny, name):
    script = (
        "import sys; from deit_jax.data import sources\n"
        f"source = sources.load({name!r}, 'train', data_dir={tiny!r})\n"
        "sources.load_into_memory(source)\n"
        "heavy = {'tensorflow', 'torch', 'jax'} & set(sys.modules)\n"
        "print(source.fingerprint, heavy)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    expected = f"{load_tiny(tiny, name=name).fingerprint} set()"
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
    old = load_tiny(copy.parent)
    assert len(old) == 20
    assert old.fingerprint != load_tiny(tiny).fingerprint
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
        ("tiny_pictures", "train[20:]", "holds no image"),
        ("tiny_pictures/large", "train", "cannot open 'tiny_pictures/large' under"),
        ("imdb_reviews", "train", r"no image classification.*text \(Text\), label"),
        ("cifra10", "train", r"unknown data set 'cifra10'\. Did you mean cifar10 or"),
        ("CIFAR-10", "train", "Did you mean cifar10 or"),
        ("huggingface:mnist", "train", "unknown data set 'huggingface:mnist'"),
        ("", "train", "unknown data set ''.*digits .*folder:/path"),
        (str(REPOSITORY), "train", f"Did you mean folder:{REPOSITORY}"),
    ],
)
def test_a_bad_name_or_split_is_explained(tiny, name, split, says):
    with pytest.raises(InputError, match=says) as raised:
        sources.load(name, split, data_dir=tiny)
    assert len(str(raised.value)) < 800


@pytest.mark.parametrize("damage", ["cut", "removed", "info"])
def test_damaged_tfds_files_name_their_folder(tiny, tmp_path, damage):
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    [shard] = copy.glob("tiny_pictures/1.2.0/*-train.array_record*")
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:200])
    elif damage == "removed":
        shard.unlink()
    else:
        (shard.parent / "dataset_info.json").write_text("{")
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
    assert str(raised.value) == (
        f"cifar10 is not prepared in {tmp_path}/cifar10/3.0.2 and cannot be "
        "downloaded: www.cs.toronto.edu cannot be reached (ConnectionError). Point "
        "--config.dataset.data_dir at the folder that holds cifar10. The embedded set "
        "needs no download: --config=configs/deit.py:digits (or the config at hand "
        "with :digits)."
    )
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


@pytest.mark.skipif(not (DATA_DIR / "cifar10").is_dir(), reason="no CIFAR-10 at hand")
def test_cifar10():
    source = sources.load("cifar10", "test[:200]", data_dir=str(DATA_DIR))
    assert source.num_classes == 10
    assert source.class_names[:3] == ("airplane", "automobile", "bird")
    # Those at hand are JPEG copies; the original that TFDS prepares is not.
    [(encoded, _)] = source.records.read([0])
    lossy = encoded.startswith(b"\xff\xd8")
    assert ["have been JPEG" in note for note in source.notes] == [True] * lossy
    memory = sources.load_into_memory(source)
    assert memory.images.shape == (200, 32, 32, 3)
    assert set(memory.labels) == set(range(10))
