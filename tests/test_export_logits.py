"""The export: a cache holds the teacher's answers to the very images of a student."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from absl import flags
from absl.testing import flagsaver

from configs import deit
from deit_jax.data import crops, sources
from deit_jax.data.plan import BatchPlan, view_pairs
from deit_jax.distillation import cache_format, cache_writer, match, teacher_cache
from deit_jax.errors import InputError
from deit_jax.files import sha256
from deit_jax.recipe import student_views
from teacher import accuracy, export_logits, network
from teacher import classifier as classifiers
from teacher import export as exporting
from teacher.export import Export
from teacher.verify import verify

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
TORCH = classifiers.TorchBackend(device="cpu")
FLOAT16 = 2e-2  # what rounding may change of these logits
LENGTH = 45  # odd: one image of each view has no partner
BATCH = 8  # as many as there are examples: one compiled program serves both
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def student(**augment):
    """What a student of the digits sees, by a config with these fields."""
    config = deit.get_config("digits")
    config.augment.update(augment)
    return student_views(config, sources.load("digits", "train[:8]"))


# All that has to do with pairs, and nothing that takes long to compile.
MIX = {"mixup": 0.8, "cutmix": 1.0}
LIGHT = student(**MIX)
DEIT = student(recipe="deit")


EXPORTS = {
    "plain": {},
    "views": {"seen": LIGHT, "num_views": 2},
    "largest": {"seen": LIGHT, "num_views": 2, "top_k": 4, "tau": 3.0},
    "features": {"seen": LIGHT, "num_views": 2, "features": True},
}


@pytest.fixture(scope="module")
def train():
    return sources.load("digits", f"train[:{LENGTH}]")


def exported(teacher, train, held_out, out, *, only=None, **options):
    options = {"batch_size": BATCH, "backend": TORCH} | options
    job = Export([teacher], train, held_out, **options)
    if exporting.export(job, out, views=only, allow_weak_teacher=True):
        return teacher_cache.open_cache(out)
    return None


def stored(cache, array="logits"):
    """An array of all views: [views, N, ...]."""
    return np.stack(
        [
            np.load(cache.directory / cache_format.view_file(view, array))
            for view in range(cache.num_views)
        ]
    )


def answers(teacher, images):
    return TORCH.answers(teacher, images).logits


def replayed(seen, source, index, view):
    """The images uint8 [B, S, S, 3], and whether they are mixed, bool [B]."""
    # Blocks as long as those of `exported`: nothing new to compile.
    blocks = zip(
        *(np.resize(x, (-(-len(x) // BATCH), BATCH)) for x in (index, view)),
        strict=True,
    )
    with seen.open_images(source, workers=0) as opened:
        images, mixes = zip(*seen.replay(opened, blocks), strict=True)
    mixed = [(mix.share < 256) | mix.box.any(axis=1) for mix in mixes]
    length = len(index)
    return np.concatenate(images)[:length], np.repeat(np.concatenate(mixed), 2)[:length]


def trained_on(seen, length, num_views):
    """(index, view) of all images of training, in its order, not in the export's."""
    pairs = length // 2 // seen.repeats * seen.repeats
    plan = BatchPlan(
        length=length,
        batch_size=2 * pairs,
        seed=5,
        augment_seed=seen.augment_seed,
        num_views=num_views,
        repeats=seen.repeats,
    )
    assert plan.steps_per_epoch == 1
    steps = [plan.batch(step) for step in range(num_views)]
    index, view = (np.concatenate(part) for part in zip(*steps, strict=True))
    assert len(set(zip(index.tolist(), view.tolist(), strict=True))) == len(index)
    return index, view


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# What is cached


def test_plain_cache_holds_the_forward_pass(teacher, train, held_out, tmp_path):
    cache = exported(teacher, train, held_out, tmp_path / "cache", batch_size=10)
    match.check(cache, train, LIGHT, view="plain", mixing="none", num_views=20)
    assert files(tmp_path / "cache").keys() == {"view-000.npy", "manifest.json"}
    assert stored(cache).shape == (1, LENGTH, 10)
    with torch.inference_mode():
        x = classifiers.preprocess(train.images, 32, teacher.mean, teacher.std, CPU)
        expected = teacher.model.eval()(x).numpy()
    np.testing.assert_allclose(stored(cache)[0], expected, rtol=1e-3, atol=1e-3)
    stated = cache.manifest["teacher"]
    [top1], _ = accuracy.evaluate([teacher], held_out, TORCH, batch_size=32)
    assert stated["top1"] == top1
    assert stated["top1_split"] == "test[:32]"
    assert stated["weights_sha256"] == teacher.sha256
    assert stated["crop_ratio"] is None  # digits are seen whole
    gap, beyond = verify(Export([teacher], train, held_out, TORCH), cache, 7)
    assert beyond < 1e-4 < gap < FLOAT16


@pytest.mark.slow
def test_cache_holds_the_answers_to_mixed_and_to_unmixed_images(
    teacher, train, held_out, tmp_path
):
    """The recipe of the paper, everything on, in both ways of answering for pairs."""
    caches = {}
    for mixing in ("exact", "linear"):
        seen = match.seen_by_teacher(DEIT, mixing)
        cache = exported(
            teacher, train, held_out, tmp_path / mixing, seen=seen, num_views=2
        )
        match.check(cache, train, DEIT, view="same", mixing=mixing, num_views=2)
        caches[mixing] = stored(cache)
        assert caches[mixing].shape == (2, LENGTH, 10)

    index, view = trained_on(DEIT, LENGTH, 2)
    images, mixed = replayed(DEIT, train, index, view)
    assert mixed.mean() > 0.9
    live = answers(teacher, images)
    np.testing.assert_allclose(caches["exact"][view, index], live, atol=FLOAT16)
    # A neighbour's answers would not do, nor those to the unmixed images.
    assert np.abs(live - np.roll(live, 1, axis=0)).max(axis=1).min() > 2 * FLOAT16
    differs = np.abs(caches["exact"] - caches["linear"]).max(axis=2) > 2 * FLOAT16
    assert differs.mean() > 0.8

    # All images of both views without mixing, the two that rest among them.
    alone = DEIT.unmixed()
    pairs = [view_pairs(DEIT.augment_seed, n, LENGTH, 1) for n in range(2)]
    index = np.concatenate(pairs).reshape(-1)
    view = np.repeat(np.arange(2, dtype=np.int32), LENGTH + 1)
    live = answers(teacher, replayed(alone, train, index, view)[0])
    np.testing.assert_allclose(caches["linear"][view, index], live, atol=FLOAT16)
    for number in range(2):
        resting = (number + 1) * (LENGTH + 1) - 1
        assert index[resting] == index[resting - 1]
        np.testing.assert_allclose(
            caches["exact"][number, index[resting]], live[resting], atol=FLOAT16
        )


@pytest.mark.slow
def test_columns_are_put_into_the_order_of_the_data_by_name(
    teacher, train, held_out, tmp_path, capsys
):
    other = dataclasses.replace(teacher, class_names=teacher.class_names[::-1])
    one, two = (
        exported(
            model, train, held_out, tmp_path / model.class_names[0], **EXPORTS["views"]
        )
        for model in (teacher, other)
    )
    np.testing.assert_array_equal(stored(two), stored(one)[..., ::-1])
    assert two.manifest["source"] == one.manifest["source"]
    assert two.manifest["teacher"]["top1"] == np.mean(
        answers(teacher, held_out.images)[:, ::-1].argmax(-1) == held_out.labels
    )
    said = "the teacher's classes are put into the order of digits by name\n"
    assert capsys.readouterr().out.count(said) == 1
    job = Export(
        [other], train, held_out, TORCH, seen=LIGHT, num_views=2, batch_size=BATCH
    )
    assert verify(job, two, 7)[1] < 1e-4


@pytest.mark.slow
def test_repeated_views_have_the_partners_of_training(
    teacher, train, held_out, tmp_path
):
    seen = dataclasses.replace(LIGHT, augment_seed=3, repeats=2)
    cache = exported(teacher, train, held_out, tmp_path, seen=seen, num_views=4)
    index, view = trained_on(seen, LENGTH, 4)
    assert np.bincount(view).tolist() == [44] * 4
    images, mixed = replayed(seen, train, index, view)
    assert mixed.mean() > 0.9
    np.testing.assert_allclose(
        cache.batch(view, index).logits, answers(teacher, images), atol=FLOAT16
    )


def test_largest_logits_are_those_of_the_whole_cache(
    teacher, train, held_out, tmp_path
):
    whole, largest = (
        exported(teacher, train, held_out, tmp_path / name, **EXPORTS[name])
        for name in ("views", "largest")
    )
    assert largest.manifest["logits"] == {"top_k": 4, "tau": 3.0}
    indices = stored(largest, "indices").astype(np.int64)
    logits = stored(whole)
    np.testing.assert_array_equal(
        stored(largest, "values"), np.take_along_axis(logits, indices, 2)
    )
    np.testing.assert_array_equal(
        stored(largest, "values"), -np.sort(-logits, axis=2)[:, :, :4]
    )


def test_folder_of_images_is_cached_plain_and_in_views(teacher, folder, tmp_path):
    torch.manual_seed(0)
    model = network.build("resnet18", 2, image_size=32).eval()
    teacher = classifiers.Classifier(
        model,
        arch="resnet18",
        stem="standard",
        image_size=32,
        class_names=("bright", "dark"),
    )
    train, val = sources.load(folder, "train"), sources.load(folder, "val")

    plain = exported(teacher, train, val, tmp_path / "plain")
    plain.check_source(train)
    assert plain.manifest["teacher"]["crop_ratio"] == crops.CROP_RATIO
    pictures = [picture for picture, _ in train.pil_images(range(32))]
    images = np.stack([crops.centre_view(p, 32, crops.CROP_RATIO) for p in pictures])
    np.testing.assert_allclose(stored(plain)[0], answers(teacher, images), atol=FLOAT16)

    # A student of another size than the teacher, whose random crops are made by a
    # pipeline that streams.
    settings = dataclasses.replace(LIGHT.settings, crop_area=(0.2, 1.0))
    seen = dataclasses.replace(LIGHT, size=24, settings=settings)
    cache = exported(teacher, train, val, tmp_path / "views", seen=seen, num_views=2)
    assert cache.manifest["teacher"]["crop_ratio"] is None
    assert cache.manifest["views"]["size"] == 24
    match.check_examples(cache, train, seen, mixing="exact")
    index, view = trained_on(seen, 32, 2)
    images, _ = replayed(seen, train, index, view)
    assert images.shape == (64, 24, 24, 3)
    np.testing.assert_allclose(
        cache.batch(view, index).logits, answers(teacher, images), atol=FLOAT16
    )


@pytest.mark.slow
@pytest.mark.parametrize("seen", [None, LIGHT], ids=["plain", "views"])
def test_a_long_export_holds_a_few_blocks(monkeypatch, tmp_path, seen):
    """Neither all images nor all that was asked for lie in memory."""
    source, size = sources.load("digits", "train[:400]"), 10
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16 * 16 * 3, 10))
    teacher = classifiers.Classifier(
        model, arch="linear", stem="standard", image_size=16
    )
    if seen:  # of another size than the source: its images are streamed
        seen = dataclasses.replace(seen, size=16)
    counts = {"read": 0, "written": 0}
    ahead = []
    read, append = sources.ArraySource.pil_images, cache_writer.ViewWriter.append
    write = exporting._export_view

    def counted_read(self, indices):
        for image in read(self, indices):
            counts["read"] += 1
            yield image

    def counted_append(self, answers, index):
        counts["written"] += len(index)
        ahead.append(counts["read"] - counts["written"])
        append(self, answers, index)

    def from_the_first_entry(*args, **kwargs):
        counts["read"] = counts["written"]
        write(*args, **kwargs)

    monkeypatch.setattr(sources.ArraySource, "pil_images", counted_read)
    monkeypatch.setattr(cache_writer.ViewWriter, "append", counted_append)
    monkeypatch.setattr(exporting, "_export_view", from_the_first_entry)
    num_views = 2 if seen else 1
    exported(
        teacher,
        source,
        sources.load("digits", "test[:20]"),
        tmp_path,
        seen=seen,
        num_views=num_views,
        batch_size=size,
    )
    assert counts["written"] == 400 * num_views
    # Read ahead by two blocks, of which a third is in the making; and the same again
    # for the images that wait for the teacher.
    assert 0 <= min(ahead) <= max(ahead) <= 6 * size


# Interrupted, divided, repeated


@pytest.mark.slow
@pytest.mark.parametrize("options", EXPORTS.values(), ids=EXPORTS)
def test_repeated_resumed_and_divided_exports_have_the_same_bytes(
    teacher, train, held_out, tmp_path, monkeypatch, options
):
    exported(teacher, train, held_out, tmp_path / "whole", **options)
    expected = files(tmp_path / "whole")
    exported(teacher, train, held_out, tmp_path / "again", **options)
    assert files(tmp_path / "again") == expected
    real = cache_writer.ViewWriter.append

    def killed_after_two_blocks(writer, answers, index):
        if writer.entries_done == 16:
            raise KeyboardInterrupt
        real(writer, answers, index)

    with monkeypatch.context() as patch:
        patch.setattr(cache_writer.ViewWriter, "append", killed_after_two_blocks)
        with pytest.raises(KeyboardInterrupt):
            exported(teacher, train, held_out, tmp_path / "killed", **options)
    record = json.loads((tmp_path / "killed/view-000.json").read_text())
    assert record["entries_done"] == 16
    for view in reversed(range(options.get("num_views", 1))):
        only = range(view, view + 1)
        exported(teacher, train, held_out, tmp_path / "divided", only=only, **options)
    assert files(tmp_path / "divided") == expected
    # What the first start has measured is not measured again.
    monkeypatch.setattr(accuracy, "evaluate", None)
    exported(teacher, train, held_out, tmp_path / "killed", **options)
    assert files(tmp_path / "killed") == expected
    # What is finished is not computed again.
    monkeypatch.setattr(classifiers.TorchBackend, "answers", None)
    exported(teacher, train, held_out, tmp_path / "killed", **options)


def test_a_cache_that_grew_has_the_bytes_of_one_export(
    teacher, train, held_out, tmp_path
):
    options = {"seen": LIGHT, "num_views": 3}
    whole = exported(teacher, train, held_out, tmp_path / "whole", **options)
    exported(teacher, train, held_out, tmp_path / "grown", **EXPORTS["views"])
    grown = exported(teacher, train, held_out, tmp_path / "grown", **options)
    assert files(tmp_path / "grown") == files(tmp_path / "whole")
    assert whole.digest == grown.digest
    match.check_examples(grown, train, LIGHT, mixing="exact")


@pytest.mark.parametrize("length", [10, 11])
def test_an_export_computes_every_row_and_partners_together(teacher, held_out, length):
    source = sources.load("digits", f"train[:{length}]")
    job = Export([teacher], source, held_out, TORCH, seen=LIGHT, num_views=3)
    for view in range(3):
        order = job.order(view)
        assert set(order.tolist()) == set(range(length))
        assert len(order) == length + length % 2
    assert Export([teacher], source, held_out, TORCH).order(0).tolist() == [
        *range(length)
    ]


# The command, in this process: its imports are paid for already


@pytest.fixture(scope="module")
def command(teacher, tmp_path_factory):
    """Runs the command on a few digits, seen as in `LIGHT`."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    classifiers.save(path, teacher)

    def run(*arguments):
        arguments = (
            f"--config={ROOT}/configs/deit.py:digits",
            f"--config.dataset.train_split=train[:{LENGTH}]",
            "--config.dataset.eval_split=test[:32]",
            *(f"--config.augment.{name}={value}" for name, value in MIX.items()),
            "--config.distillation.num_views=2",
            f"--teacher={path}",
            "--allow_weak_teacher",
            f"--batch_size={BATCH}",
            *arguments,
        )
        with (
            flagsaver.flagsaver(),
            pytest.MonkeyPatch.context() as patch,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", DeprecationWarning)  # of config_flags
            patch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # left as it was
            patch.setattr(sys, "argv", ["export_logits", *arguments])
            export_logits.define_flags()
            flags.FLAGS(sys.argv)
            export_logits.main([])

    return run


@pytest.fixture(scope="module")
def kept(command, tmp_path_factory):
    """A cache of two views; not to be changed."""
    out = tmp_path_factory.mktemp("kept") / "cache"
    command(f"--out={out}")
    return out


@pytest.fixture
def cache(kept, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(kept, tmp_path / "cache")


@pytest.fixture(scope="module")
def kept_largest(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("kept") / "largest"
    command(f"--out={out}", "--top_k=4")
    return out


@pytest.fixture
def largest(kept_largest, tmp_path):
    return shutil.copytree(kept_largest, tmp_path / "largest")


def test_command_exports_what_the_config_says(
    kept, kept_largest, teacher, train, held_out, tmp_path
):
    for cache, name in ((kept, "views"), (kept_largest, "largest")):
        exported(teacher, train, held_out, tmp_path / name, **EXPORTS[name])
        assert files(tmp_path / name) == files(cache)


PLAIN = ["--config.distillation.view=plain", "--config.distillation.mixing=linear"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch_size=7"], "--batch_size=7 is odd, and what a student sees comes in"),
        (
            ["--views=3", "--config.augment.repeats=2"],
            "--views=3 is not a multiple of augment.repeats=2",
        ),
        (["--top_k=10"], "--top_k=10: expected 1 .. 9"),
        (
            ["--views=2", *PLAIN],
            "--views=2: expected at least 1, and 1 for distillation.view=plain",
        ),
        (["--config.distillation.view=plain"], "answer for both halves. Set mixing to"),
        (
            ["--config.distillation.tau=0"],
            "distillation.tau=0.0: expected a finite number above",
        ),
        (["--only_views=1:3"], "--only_views=1:3: expected first:end within 0:2"),
        (["--only_views=1"], "--only_views=1: expected first:end within 0:2"),
        (["--teacher="], "say with --teacher whose logits to cache"),
        (["--config.distillation.logits_dir=", "--out="], "say with --out=DIR where"),
    ],
)
def test_what_cannot_be_exported_is_refused(command, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        command(f"--out={tmp_path}/cache", *arguments)
    assert list(tmp_path.iterdir()) == []


def verified(command, cache, *arguments):
    """The exit code."""
    with pytest.raises(SystemExit) as ended:
        command(f"--out={cache}", "--verify=20", *arguments)
    return ended.value.code


def rewrite(path, change):
    """Changes an array of a cache, and its checksum with it."""
    if path.suffix == ".npz":
        with np.load(path) as content:
            content = dict(content)
        change(content)
        np.savez(path, **content)
    else:
        content = np.load(path)
        change(content)
        np.save(path, content)
    manifest = json.loads((path.parent / "manifest.json").read_text())
    if path.suffix == ".npz":
        manifest["examples_sha256"] = sha256(path)
    else:
        manifest["sha256"][int(path.name[5:8])][path.name] = sha256(path)
    (path.parent / "manifest.json").write_text(json.dumps(manifest))


def test_a_good_cache_is_verified(command, kept, kept_largest, capsys):
    assert verified(command, kept) == 0
    assert "within the tolerance of 0.02" in capsys.readouterr().out
    assert verified(command, kept_largest, "--top_k=4") == 0
    # What float16 has rounded does not count.
    assert verified(command, kept, "--tolerance=1e-4") == 0


def negate(array):
    array *= -1


@pytest.mark.parametrize("change", [negate, lambda array: array.fill(np.nan)])
def test_a_changed_cache_is_above_the_tolerance(command, cache, capsys, change):
    for view in range(2):
        rewrite(cache / f"view-00{view}.npy", change)
    assert verified(command, cache) == 1
    assert "ABOVE the tolerance of 0.02" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("values", negate),
        ("tails", lambda tails: np.multiply(tails, 0.5, out=tails)),
        ("indices", lambda indices: np.subtract(9, indices, out=indices)),
    ],
)
def test_each_array_of_the_largest_logits_is_verified(command, largest, name, change):
    for view in range(2):
        rewrite(largest / f"view-00{view}-{name}.npy", change)
    assert verified(command, largest, "--top_k=4") == 1


def test_only_the_same_export_is_verified(
    teacher, train, held_out, kept, command, tmp_path
):
    other = dataclasses.replace(teacher, arch="resnet34")
    job = Export([other], train, held_out, TORCH, seen=LIGHT, num_views=2)
    message = "teacher.arch: 'resnet18' in the cache, 'resnet34' here"
    with pytest.raises(InputError, match=message):
        verify(job, teacher_cache.open_cache(kept), 10)
    for arguments, message in (
        (["--top_k=4"], "logits.top_k: None in the cache, 4 here"),
        (["--config.augment.flip=True"], "augmentation.flip: False in the cache, True"),
    ):
        with pytest.raises(InputError, match=message):
            command(f"--out={kept}", "--verify=1", *arguments)
    with pytest.raises(InputError, match="no teacher cache"):
        command(f"--out={tmp_path}", "--verify=1")


def test_verification_sees_entries_of_all_views(
    teacher, train, held_out, kept, monkeypatch
):
    asked = []
    real = Export.answers

    def recorded(job, opened, entries):
        asked.extend(entries)
        return real(job, opened, asked)

    job = Export(
        [teacher], train, held_out, TORCH, seen=LIGHT, num_views=2, batch_size=BATCH
    )
    monkeypatch.setattr(Export, "answers", recorded)
    gap, beyond = verify(job, teacher_cache.open_cache(kept), 50)
    assert beyond < 1e-4 < gap < FLOAT16
    index, view = (np.concatenate(part) for part in zip(*asked, strict=True))
    assert len(index) == 50
    # In each view one may rest.
    assert len(set(zip(index.tolist(), view.tolist(), strict=True))) >= 48
    assert set(view) == {0, 1}


def test_check_passes_what_belongs_to_the_config(command, kept, tmp_path, capsys):
    command(f"--check={kept}", "--teacher=")  # no teacher is needed
    out = capsys.readouterr().out
    assert "belongs to this config: 2 same view(s), and its stored images are" in out
    command(f"--out={tmp_path}/plain", *PLAIN)
    command(f"--check={tmp_path}/plain", *PLAIN)
    assert "belongs to this config: 1 plain view(s)\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.augment.seed=1"], "augment.seed: 0 in the cache, 1 in this run"),
        (["--config.augment.flip=True"], "augment.flip: False in the cache, True in"),
        (["--config.distillation.num_views=3"], "holds 2 views, and .*num_views=3"),
        (["--config.distillation.mixing=linear"], "saw mixed images, and .*unmixed"),
        (["--config.augment.mix_probability=0."], "saw mixed images, and"),
        (["--config.dataset.train_split=train[:44]"], r"split='train\[:45\]'"),
        (PLAIN, "saw 'same' images"),
    ],
)
def test_check_refuses_a_cache_of_another_config(command, kept, arguments, message):
    with pytest.raises(InputError, match=message):
        command(f"--check={kept}", *arguments)


def test_check_advises_commands_with_the_flags_of_this_one(command, kept):
    with pytest.raises(InputError) as refused:
        command(f"--check={kept}", "--config.augment.seed=1")
    advised = str(refused.value).partition("\n  python -m teacher.export_logits ")[2]
    assert "configs/deit.py:digits " in advised
    assert "--config.augment.seed=1 " in advised
    assert f"'--config.dataset.train_split=train[:{LENGTH}]'" in advised


def test_check_refuses_a_temperature_that_is_not_kept(command, kept_largest, capsys):
    command(f"--check={kept_largest}")
    with pytest.raises(InputError, match=r"for distillation.tau of 1 or 3, not 2\."):
        command(f"--check={kept_largest}", "--config.distillation.tau=2")
    # A decision has no temperature.
    hard = ("--config.distillation.kind=hard", "--config.distillation.tau=2")
    command(f"--check={kept_largest}", *hard)


def test_check_tells_how_many_pixels_differ(command, cache):
    def change(examples):
        examples["image"][3, 5:7, 5, :2] ^= 64
        examples["image"][6, 0, 0, 2] ^= 32

    rewrite(cache / "examples-002.npz", change)
    message = "2 of 8 images differ, in 3 pixels, by up to 64 levels"
    with pytest.raises(InputError, match=message):
        command(f"--check={cache}")


def test_check_tells_other_pairs(command, cache):
    rewrite(cache / "examples-002.npz", lambda e: np.add(e["share"], 1, out=e["share"]))
    with pytest.raises(InputError, match="saw other pairs than this program draws"):
        command(f"--check={cache}")


def test_two_commands_share_an_export(command, kept, tmp_path, capsys):
    command(f"--out={tmp_path}/cache", "--only_views=1:2")
    out = capsys.readouterr().out
    assert "45 images x 2 mixed views of 32 px x 10 classes" in out
    assert "1 of 2 views to export, from 1 to 1" in out
    assert "repeat the command without --only_views" in out
    command(f"--out={tmp_path}/cache", "--only_views=0:1")
    assert f"cached in {tmp_path}/cache" in capsys.readouterr().out
    assert files(tmp_path / "cache") == files(kept)


# The command in processes of its own


def run_command(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"teacher.{module}", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_commands_from_data_to_cache(tmp_path):
    trained = run_command(
        "finetune",
        "--dataset=digits",
        "--arch=resnet18",
        "--train_split=train[:48]",
        "--eval_split=test[:32]",
        "--epochs=1",
        "--batch_size=16",
        f"--out={tmp_path}/teacher",
    )
    assert trained.returncode == 0, trained.stderr
    assert "--image_size=32" in trained.stdout  # the size that digits have
    assert f"--teacher={tmp_path}/teacher" in trained.stdout
    arguments = (
        "--config=configs/deit.py:digits",
        "--config.dataset.train_split=train[:48]",
        "--config.dataset.eval_split=test[:32]",
        f"--config.distillation.logits_dir={tmp_path}/cache",
        f"--teacher={tmp_path}/teacher",
        "--views=2",
        "--allow_weak_teacher",
    )
    done = run_command("export_logits", *arguments)
    assert done.returncode == 0, done.stderr
    assert "48 images x 2 unmixed views of 32 px x 10 classes" in done.stdout
    cache = teacher_cache.open_cache(tmp_path / "cache")
    cache.check_source(sources.load("digits", "train[:48]"))
    top1 = classifiers.load(tmp_path / "teacher").top1
    assert cache.manifest["teacher"]["top1"] == top1

    repeated = run_command("export_logits", *arguments)
    assert repeated.returncode == 0
    assert "these views are there already" in repeated.stdout
    other = run_command("export_logits", *arguments, "--top_k=3")
    assert other.returncode == 2
    assert other.stderr.startswith("error: ")
    assert "logits.top_k is None there and 3 here" in other.stderr
    assert "Traceback" not in other.stderr


KILLS = 3


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_in_the_same_bytes(
    teacher, held_out, tmp_path
):
    classifiers.save(tmp_path / "teacher.pt", teacher)
    killed = tmp_path / "killed"
    command = [
        *(sys.executable, "-m", "teacher.export_logits"),
        "--config=configs/deit.py:digits",
        *(f"--config.augment.{name}={value}" for name, value in MIX.items()),
        "--config.dataset.train_split=train[:99]",
        "--config.dataset.eval_split=test[:32]",
        f"--teacher={tmp_path}/teacher.pt",
        "--views=2",
        f"--batch_size={BATCH}",
        "--top_k=4",
        "--allow_weak_teacher",
        f"--out={killed}",
    ]
    entries = 2 * 100
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        # Compiled by the first process for all.
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }

    def start():
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def done():
        records = [json.loads(p.read_text()) for p in killed.glob("view-*.json")]
        return sum(record["entries_done"] for record in records) if records else -1

    draw = random.Random(0)
    before = 0
    for stop_at in sorted(draw.sample(range(entries * 3 // 4), KILLS)):
        process = start()
        try:
            while done() <= max(stop_at, before):
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.05))  # anywhere within a block
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (killed / "manifest.json").exists()
        before = done()
        assert 0 < before < entries
    process = start()
    said, _ = process.communicate()
    assert process.returncode == 0, said

    undisturbed = tmp_path / "undisturbed"
    source = sources.load("digits", "train[:99]")
    exported(teacher, source, held_out, undisturbed, **EXPORTS["largest"])
    assert files(killed) == files(undisturbed)
    assert files(killed).keys() == {
        *(
            f"view-00{view}-{name}.npy"
            for view in range(2)
            for name in ("indices", "values", "tails")
        ),
        *("examples-002.npz", "manifest.json"),
    }


def test_committed_cache_belongs_to_digits():
    config = deit.get_config("digits")
    assert config.distillation.logits_dir == "teacher/logits/digits"
    cache = teacher_cache.open_cache(ROOT / config.distillation.logits_dir)
    source = sources.load("digits", "train")
    student = student_views(config, source)
    view = config.distillation.view
    mixing = match.resolve_mixing(view, config.distillation.mixing, student)
    match.check(
        cache,
        source,
        student,
        view=view,
        mixing=mixing,
        num_views=config.distillation.num_views,
    )
    match.check_examples(cache, source, student, mixing=mixing)
    assert cache.manifest["teacher"]["top1"] >= 0.98
    for view in range(cache.num_views):
        logits = cache.batch(np.full(len(source), view), np.arange(len(source))).logits
        assert (logits.argmax(-1) == source.labels).mean() >= 0.95
