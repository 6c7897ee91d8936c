"""The same images by every kind of source: pixels, labels, order, batches, resume."""

import itertools
import os
import pickle
import shutil
import signal

import made_sets
import numpy as np
import pytest
import same_run

from deit_jax.data import batches, sources
from deit_jax.data.pipeline import HostPipeline
from deit_jax.data.plan import BatchPlan
from deit_jax.errors import InputError
from deit_jax.train import train_and_evaluate
from deit_jax.training.signals import Stopped

pytestmark = pytest.mark.usefixtures("small_nano")

LABEL = {"labels": lambda label: made_sets.NAMES[label], "names": None}
MAKERS = {
    "folder": made_sets.folder,
    "hf": made_sets.hub,
    "hf, bytes": lambda root: made_sets.hub(root, whole=False),
    "hf, label by name": lambda root: made_sets.hub(root, **LABEL),
    "hf, uncompressed": lambda root: made_sets.hub(root, compression="none"),
    "tar": made_sets.shards,
    "cifar-10 python": lambda root: f"cifar:{made_sets.cifar(root, '10-py')}",
    "cifar-10 binary": lambda root: f"cifar:{made_sets.cifar(root, '10-bin').parent}",
    "cifar-100 python": lambda root: f"cifar:{made_sets.cifar(root, '100-py')}",
    "cifar-100 binary": lambda root: f"cifar:{made_sets.cifar(root, '100-bin')}",
    "cifar archive": lambda root: (
        "cifar:" + str(made_sets.archive(made_sets.cifar(root, "10-py")))
    ),
}
# One fingerprint where the encoded images are the same in the same order.
ALIKE = {"hf": [m for m in MAKERS if m[:2] in ("hf", "ta")]}
ALIKE["cifar-10 python"] = [m for m in MAKERS if m.startswith("cifar")]


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_pixels_and_labels_are_the_same(tmp_path, kind, split):
    source = sources.load(MAKERS[kind](tmp_path / "set"), split)
    pixels, labels = made_sets.images(split)
    expected = {image.tobytes(): label for image, label in zip(pixels, labels)}  # noqa: B905
    assert len(source) == len(expected) == made_sets.COUNTS[split]
    assert source.class_names == made_sets.NAMES
    seen = {}
    for index in range(len(source)):
        example = source[index]
        seen[example["image"].tobytes()] = example["label"]
        assert example["label"] == source.labels[index]
    assert seen == expected
    assert source.labels.dtype == np.int32
    if kind != "folder":
        assert source.image_shape == (32, 32, 3)
        memory = sources.load_into_memory(source)
        np.testing.assert_array_equal(memory.images[3], source[3]["image"])


@pytest.mark.parametrize("kind", ["folder", "hf", "tar"])
def test_a_slice_holds_every_class_though_the_files_are_sorted(tmp_path, kind):
    name = MAKERS[kind](tmp_path / "set")
    first, rest = (sources.load(name, f"train[{s}]") for s in (":50%", "50%:"))
    whole = sources.load(name, "train")
    assert set(first.labels) == set(rest.labels) == {0, 1, 2, 3}
    assert [*first.labels, *rest.labels] == whole.labels.tolist()
    assert len({first.fingerprint, rest.fingerprint, whole.fingerprint}) == 3


@pytest.mark.parametrize(("one", "others"), ALIKE.items(), ids=ALIKE)
def test_the_fingerprint_is_of_the_contents_alone(tmp_path, one, others):
    found = {}
    for number, kind in enumerate(others):
        source = sources.load(MAKERS[kind](tmp_path / str(number)), "train[:15]")
        found[kind] = source.fingerprint
        order = [source[i]["image"].tobytes() for i in range(3)]
        found[f"order of {kind}"] = str(order)
    assert len(set(found.values())) == 2


@pytest.mark.parametrize("kind", ["hf", "tar", "cifar-10 binary"])
def test_another_label_or_image_is_another_fingerprint(tmp_path, kind, monkeypatch):
    make, load = MAKERS[kind], lambda at: sources.load(at, "train").fingerprint
    before = load(make(tmp_path / "a"))
    real = made_sets.images
    with monkeypatch.context() as patch:
        patch.setattr(made_sets, "images", lambda s: (real(s)[0], real(s)[1][::-1]))
        labels = load(make(tmp_path / "b"))
        patch.setattr(made_sets, "images", lambda s: (real(s)[0] ^ 1, real(s)[1]))
        pixels = load(make(tmp_path / "c"))
    assert len({before, labels, pixels}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf", "tar", "cifar archive"])
def test_batches_do_not_depend_on_the_workers(tmp_path, kind):
    source = sources.load(MAKERS[kind](tmp_path / "set"), "train")
    source[0]
    assert len(pickle.dumps(source)) < 10_000  # paths, no images
    plan = BatchPlan(length=20, batch_size=4, seed=0, augment_seed=0)
    read = {}
    for workers in (0, 2):
        with HostPipeline(source, size=24, workers=workers) as pipeline:
            read[workers] = list(
                batches.train_batches(pipeline, plan, start=0, stop=7, devices=2)
            )
    for ours, theirs in zip(read[0], read[2], strict=True):
        for field, value in ours.items():
            np.testing.assert_array_equal(value, theirs[field])


@pytest.mark.parametrize("kind", ["hf", "tar"])
def test_what_is_made_of_the_files_is_kept_beside_them(tmp_path, kind):
    name = MAKERS[kind](tmp_path / "set")
    files = sorted((tmp_path / "set").rglob("*"))
    cache, mine = tmp_path / "cache/deit_jax/images", tmp_path / "mine"
    found, times = set(), set()
    for data_dir in (None, None, str(mine)):
        source = sources.load(name, "train", data_dir=data_dir)
        found.add((source.fingerprint, source.image_shape))
        [kept] = cache.iterdir()
        times.add(kept.stat().st_mtime_ns)
    assert len(found) == len(times) == len(list(mine.iterdir())) == 1
    assert sorted((tmp_path / "set").rglob("*")) == files
    os.utime(next(path for path in files if "train" in path.name), ns=(1, 1))
    sources.load(name, "train")
    assert len(list(cache.iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf", "tar", "cifar-10 python"])
def test_a_stopped_run_goes_on_to_the_same_bits_from_a_copy(
    folder_config, tmp_path, kind, monkeypatch, ctrl_c
):
    config = folder_config
    config.dataset.name = MAKERS[kind](tmp_path / "set")
    config.dataset.image_size, config.model.variant = 32, "vit_nano_patch8_32"
    config.epochs, config.batch_size = 3.0, 8
    train_and_evaluate(config, tmp_path / "whole")
    from deit_jax.training import step

    real, calls = step.pmap_train_step, itertools.count(1)

    def stopping(*args, **kwargs):
        mapped = real(*args, **kwargs)

        def one(*rest):
            if next(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return mapped(*rest)

        return one

    with monkeypatch.context() as patch:
        patch.setattr(step, "pmap_train_step", stopping)
        with pytest.raises(Stopped, match="step 3 is saved"):
            train_and_evaluate(config, tmp_path / "parts")
    shutil.copytree(tmp_path / "set", tmp_path / "copy")
    shutil.rmtree(tmp_path / "set")
    config.dataset.name = config.dataset.name.replace("/set", "/copy")
    assert train_and_evaluate(config, tmp_path / "parts")["resumed_at_step"] == 3
    differ = same_run.differences(tmp_path / "whole", tmp_path / "parts")
    assert differ == ["summary.json: dataset"]  # the path


@pytest.mark.parametrize(
    ("kind", "split", "says"),
    [
        ("hf", "holdout", r"unknown split 'holdout'.*has test, train; a slice"),
        ("tar", "train[20:]", "holds no image: train has 20"),
        ("cifar-10 python", "unlabelled", "unknown split.*has train, test"),
    ],
)
def test_a_split_that_is_not_there(tmp_path, kind, split, says):
    with pytest.raises(InputError, match=says):
        sources.load(MAKERS[kind](tmp_path / "set"), split)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf:", "expected hf:org/name"),
        ("hf:/no/such", "no/such does not exist"),
        ("hf:./", r"holds no \*\.parquet"),
        ("tar:", "expected tar:/path"),
        ("tar:/no/such/{0..1}.tar", "2 of the 2 files"),
        ("tar:.", r"holds no \*\.tar"),
        ("cifar:", r"does not exist\. Expected cifar:/path"),
        ("cifar:/no/such", r"does not exist\. Expected cifar:/path"),
    ],
)
def test_a_place_that_is_none(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says):
        sources.load(name, "train")


@pytest.mark.parametrize("kind", ["hf", "tar", "cifar-10 python"])
def test_val_and_test_stand_in_for_each_other(tmp_path, kind):
    source = sources.load(MAKERS[kind](tmp_path / "set"), "validation[:5]")
    found = "val" if kind == "tar" else "test"
    assert (source.split, len(source)) == (f"{found}[:5]", 5)
    assert bool(source.notes) == (kind != "tar")
