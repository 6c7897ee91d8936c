"""A cache in parts: joined to the bytes of an undivided one, or refused."""

import dataclasses
import functools
import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from deit_jax.data import sources
from deit_jax.data.augment.recipes import Augmentation
from deit_jax.data.plan import ExportOrder
from deit_jax.data.student_views import StudentViews
from deit_jax.distillation import (
    teacher_logits,
    teacher_parts,
    teacher_views,
    teacher_writer,
)
from deit_jax.distillation.teacher_parts import Shard
from deit_jax.errors import InputError

LENGTH, CLASSES, BATCH = 30, 10, 4
EXAMPLES = {"image": np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)}

load = functools.cache(sources.load)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """A killed process loses nothing by it, and it would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(np.memmap, "flush", lambda array: None)


@dataclasses.dataclass(frozen=True)
class Fake:
    """An export whose teacher answers by the number of the row, not by the image."""

    length: int = LENGTH
    views: int | None = None  # None: plain
    top_k: int | None = None
    tau: float = 3.0
    repeats: int = 1
    augment_seed: int = 0
    erase: float = 0.0
    split: str = "train"
    arch: str = "resnet50"
    batch_size: int = BATCH

    def manifest(self, shard=None):
        source = load("digits", f"{self.split}[:{self.length}]")
        seen = StudentViews(
            self.augment_seed,
            self.repeats,
            32,
            Augmentation(mixup=0.8, erase_probability=self.erase),
        )
        top1 = 0.9 if shard is None or shard.number == 0 else None
        manifest = {
            "source": teacher_logits.describe_source(source),
            "views": teacher_views.describe(
                "same" if self.views else "plain", self.views or 1, seen
            ),
            "logits": {"top_k": self.top_k, "tau": self.tau if self.top_k else None},
            "teacher": {"arch": self.arch, "top1": top1, "top1_split": "test"},
        }
        if shard:
            total = teacher_logits.entries(manifest)
            manifest["shard"] = shard.describe(total, self.batch_size)
        return manifest

    def logits(self, rows):
        """float32 [n, CLASSES]; no two rows are alike."""
        return np.sin(rows[:, None] * 1.3 + np.arange(CLASSES) * 0.7) * 5

    def write(self, directory, shard=None, stop_after=None):
        """What an export of all entries, or of a part of them, leaves."""
        manifest = self.manifest(shard)
        order = ExportOrder(
            self.length,
            self.views or 1,
            self.augment_seed,
            self.repeats,
            plain=self.views is None,
        )
        start, stop = 0, len(order)
        if shard:
            start, stop = manifest["shard"]["start"], manifest["shard"]["stop"]
            directory = directory / shard.name
        examples = EXAMPLES if self.views and start == 0 else None
        writer = teacher_writer.Writer(directory, manifest, examples)
        for first in range(start + writer.entries_done, stop, self.batch_size):
            index, view = order.entries(first, min(first + self.batch_size, stop))
            rows = view * self.length + index
            writer.append(self.logits(rows), None if shard else rows)
            if writer.entries_done == stop_after:
                return
        writer.finish()

    def write_parts(self, directory, count=3):
        for number in reversed(range(count)):
            self.write(directory, Shard(number, count))
        return directory


PLAIN = Fake()
VIEWS = Fake(length=29, views=3)  # of which one image rests in each view
FAKES = {
    "plain": PLAIN,
    "views": VIEWS,
    "top-k": Fake(top_k=4),
    "views-top-k": dataclasses.replace(VIEWS, top_k=4),
    "repeats": dataclasses.replace(VIEWS, views=4, repeats=2),
}


@pytest.fixture
def parts(tmp_path):
    return PLAIN.write_parts(tmp_path / "cache")


@pytest.fixture
def parts_of_views(tmp_path):
    return FAKES["views-top-k"].write_parts(tmp_path / "cache")


def snapshot(directory):
    return {
        path.relative_to(directory): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def assert_joined(cache, fake, tmp_path):
    fake.write(tmp_path / "undivided")
    assert snapshot(cache) == snapshot(tmp_path / "undivided")


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("fake", FAKES.values(), ids=FAKES)
def test_joined_parts_are_the_undivided_cache(tmp_path, fake, count):
    fake.write_parts(tmp_path / "cache", count)
    teacher_parts.join(tmp_path / "cache")
    assert_joined(tmp_path / "cache", fake, tmp_path)
    opened = teacher_logits.open_cache(tmp_path / "cache")
    # Each row of each view is that of the fake teacher, whatever the order was.
    rows = np.arange(opened.num_views * fake.length)
    expected = opened.encoding.encode(fake.logits(rows))
    for name, array in opened.arrays.items():
        np.testing.assert_array_equal(
            array.reshape(expected[name].shape), expected[name]
        )
    if fake.views:
        np.testing.assert_array_equal(opened.examples()["image"], EXAMPLES["image"])


def test_more_than_a_hundred_parts_keep_their_order(tmp_path):
    """Their names do not sort as their numbers do."""
    fake = Fake(length=110, batch_size=1)
    fake.write_parts(tmp_path, 110)
    teacher_parts.join(tmp_path)
    expected = fake.logits(np.arange(110)).astype(np.float16)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy")[0], expected)


@pytest.mark.parametrize(
    ("entries", "batch_size", "count"),
    [(30, 4, 3), (1440, 64, 7), (5, 1, 5), (3, 8, 1), (38_000_000, 64, 32)],
)
def test_parts_are_whole_batches_and_all_entries(entries, batch_size, count):
    sections = [Shard(i, count).describe(entries, batch_size) for i in range(count)]
    assert sections[0]["start"] == 0
    assert sections[-1]["stop"] == entries
    for one, two in itertools.pairwise(sections):
        assert one["stop"] == two["start"]
        assert one["stop"] % batch_size == 0
    sizes = [section["stop"] - section["start"] for section in sections]
    assert min(sizes) > 0
    assert max(sizes) - min(sizes) < 2 * batch_size


def test_more_parts_than_batches_are_refused():
    with pytest.raises(InputError, match="30 images are only 8 batches of 4"):
        Shard(0, 9).describe(30, 4)


@pytest.mark.parametrize(
    "text", ["", "1", "4/4", "-1/4", "1/0", "a/b", "1/4/2", "1.5/4", "0/10001"]
)
def test_other_shards_than_i_of_n_are_refused(text):
    with pytest.raises(InputError, match=r"expected i/n with 0 <= i < n"):
        teacher_parts.parse_shard(text)


def test_shards_are_parsed():
    assert teacher_parts.parse_shard("3/16") == Shard(3, 16)
    assert Shard(3, 16).name == "shard-03-of-16"


# A kill can come at any moment.


class Killed(BaseException):
    pass


def kill_after(monkeypatch, owner, name, calls):
    """Raises `Killed` in place of a call, after so many that go through."""
    real, left = getattr(owner, name), iter(range(calls))

    def killed(*args, **kwargs):
        if next(left, None) is None:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, killed)


@pytest.mark.parametrize(
    ("fake", "appends"),
    [
        *(("plain", appends) for appends in range(8)),  # 7 go through: at the manifest
        *(("views-top-k", appends) for appends in (0, 1, 8, 17, 19)),
    ],
)
def test_killed_join_ends_in_the_same_bytes(tmp_path, monkeypatch, fake, appends):
    """Killed before each of its writes, the last of which is the manifest."""
    fake = FAKES[fake]
    fake.write_parts(tmp_path / "cache")
    row_bytes = teacher_logits.encoding_of(fake.manifest()).bytes_per_row
    monkeypatch.setattr(teacher_parts, "CHUNK_BYTES", 5 * row_bytes)
    real = teacher_writer.Writer.append_encoded

    def bounded(writer, encoded, rows):
        assert max(map(len, encoded.values())) <= 5  # the bound on memory
        real(writer, encoded, rows)

    monkeypatch.setattr(teacher_writer.Writer, "append_encoded", bounded)
    with monkeypatch.context() as patch:
        kill_after(patch, teacher_writer.Writer, "append_encoded", appends)
        kill_after(patch, teacher_writer.Writer, "finish", 0)
        with pytest.raises(Killed):
            teacher_parts.join(tmp_path / "cache")
    with pytest.raises(InputError, match="no teacher cache"):
        teacher_logits.open_cache(tmp_path / "cache")
    teacher_parts.join(tmp_path / "cache")
    assert_joined(tmp_path / "cache", fake, tmp_path)


@pytest.mark.parametrize("removed", range(3))
def test_join_killed_while_it_removes_the_parts_is_ended(
    parts_of_views, tmp_path, monkeypatch, removed
):
    left = iter(range(removed))
    real = shutil.rmtree

    def killed(path):
        if next(left, None) is None:
            (path / "manifest.json").unlink()
            raise Killed
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            teacher_parts.join(parts_of_views)
    teacher_logits.open_cache(parts_of_views)  # a cache already
    teacher_parts.join(parts_of_views)
    assert_joined(parts_of_views, FAKES["views-top-k"], tmp_path)


@pytest.mark.parametrize("unlinked", range(10))
def test_join_killed_between_the_arrays_of_a_part_is_ended(
    parts_of_views, tmp_path, monkeypatch, unlinked
):
    """The first that it unlinks is progress.json, then three arrays of each part."""
    with monkeypatch.context() as patch:
        kill_after(patch, Path, "unlink", unlinked)
        with pytest.raises(Killed):
            teacher_parts.join(parts_of_views)
    teacher_logits.open_cache(parts_of_views)
    teacher_parts.join(parts_of_views)
    assert_joined(parts_of_views, FAKES["views-top-k"], tmp_path)


@pytest.mark.parametrize("fake", ["plain", "views-top-k"])
def test_killed_part_resumes(tmp_path, fake):
    fake = FAKES[fake]
    for number in range(2):
        fake.write(tmp_path / "cache", Shard(number, 2), stop_after=4)
        fake.write(tmp_path / "cache", Shard(number, 2))
    teacher_parts.join(tmp_path / "cache")
    assert_joined(tmp_path / "cache", fake, tmp_path)


# What cannot be joined stays as it is.


def assert_refused(cache, message):
    before = snapshot(cache)
    with pytest.raises(InputError, match=message) as caught:
        teacher_parts.join(cache, command="python -m teacher.export_logits --a=b")
    assert snapshot(cache) == before
    return str(caught.value)


def test_missing_and_unfinished_parts_are_named_with_their_commands(tmp_path):
    PLAIN.write(tmp_path, Shard(0, 4))
    PLAIN.write(tmp_path, Shard(2, 4), stop_after=4)
    message = assert_refused(
        tmp_path,
        r"3 of 4 parts .*: shard-01-of-04 \(missing\), shard-02-of-04 \(unfinished\), "
        r"shard-03-of-04 \(missing\)",
    )
    assert message.splitlines()[1:] == [
        f"  python -m teacher.export_logits --a=b --shard={n}/4" for n in (1, 2, 3)
    ]


def test_a_directory_without_parts_is_refused(tmp_path):
    for directory in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match="holds no parts to join"):
            teacher_parts.join(directory)


@pytest.mark.parametrize("name", ["shard-00-of-02", "shard-03-of-03", "shard-a-of-b"])
def test_parts_of_two_divisions_are_refused(parts, name):
    (parts / name).mkdir()
    assert_refused(parts, f"not those of one division: .*{name}")


def test_a_name_that_claims_too_many_parts_is_refused(tmp_path):
    (tmp_path / "shard-00-of-99999999999").mkdir()
    assert_refused(tmp_path, "not those of one division: shard-00-of-99999999999")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "vit_b_16"}, "teacher.arch is 'resnet50' in shard-00-of-03 and 'vit"),
        ({"batch_size": 6}, r"shard.batch_size is 4 in .* and 6 in shard-01-of-03"),
        ({"split": "test"}, r"source.split is 'train\[:29\]' in .* and 'test\[:29\]'"),
        ({"views": 4}, "views.count is 3 in .* and 4 in"),
        ({"augment_seed": 1}, "views.augment_seed is 0 in .* and 1 in"),
        ({"erase": 0.5}, "views.augmentation.erase_probability is 0.0 in .* and 0.5"),
        ({"top_k": 5}, "logits.top_k is 4 in .* and 5 in"),
        ({"tau": 2.0}, "logits.tau is 3.0 in .* and 2.0 in"),
    ],
)
def test_part_of_another_export_is_refused(parts_of_views, change, message):
    shutil.rmtree(parts_of_views / "shard-01-of-03")
    other = dataclasses.replace(FAKES["views-top-k"], **change)
    other.write(parts_of_views, Shard(1, 3))
    assert_refused(parts_of_views, message)


def test_plain_part_of_views_is_refused(parts_of_views):
    shutil.rmtree(parts_of_views / "shard-01-of-03")
    Fake(length=29, top_k=4).write(parts_of_views, Shard(1, 3))
    assert_refused(parts_of_views, "views.count is 3 in .* and 1 in")


def edit(path, change):
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("shard"),
        lambda m: m["shard"].update(batch_size=0),
        lambda m: m["shard"].update(batch_size=-4),
        lambda m: m["shard"].update(batch_size=4.0),
        lambda m: m["views"].update(repeats=0),
        lambda m: m["views"].update(augment_seed="0"),
        lambda m: m["shard"].update(start=4),
        lambda m: m["teacher"].update(top1=None),
        lambda m: m.update(format_version=1),
        lambda m: m.update(source=None),
        lambda m: m["views"].pop("augment_seed"),
        lambda m: m["arrays"].pop("tails.npy"),
        lambda m: m.pop("logits"),
        lambda m: m.update(examples_sha256=None),
        lambda m: m.pop("examples_sha256"),
    ],
)
def test_damaged_manifest_of_a_part_is_refused(parts_of_views, change):
    edit(parts_of_views / "shard-00-of-03" / "manifest.json", change)
    assert_refused(
        parts_of_views, r"is not a manifest of a part .*Delete .*shard-00-of-03 and"
    )


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["indices.npy", "values.npy", "tails.npy"])
def test_damaged_logits_of_a_part_are_refused(parts_of_views, name):
    path = parts_of_views / "shard-02-of-03" / name
    flip(path)
    message = rf"{name} is damaged. Delete(.|\n)*--a=b --shard=2/3"
    assert_refused(parts_of_views, message)
    path.write_bytes(path.read_bytes()[:-20])
    assert_refused(parts_of_views, r"truncated(.|\n)*--shard=2/3")


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_first_part_without_its_examples_is_refused(parts_of_views, damage):
    damage(parts_of_views / "shard-00-of-03" / "examples.npz")
    message = r"examples.npz is damaged. Delete(.|\n)*--a=b --shard=0/3"
    assert_refused(parts_of_views, message)


def test_another_finished_cache_is_not_touched(parts):
    Fake(arch="vit_b_16").write(parts)
    assert_refused(parts, "already holds a finished teacher cache")


@pytest.mark.parametrize("fake", ["plain", "views-top-k"])
def test_full_disk_is_found_before_anything_is_written(tmp_path, monkeypatch, fake):
    fake = FAKES[fake]
    fake.write_parts(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=500)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    row_bytes = 4 * 2 + 4 * 2 + 2 * 4 if fake.top_k else CLASSES * 2
    needed = fake.length * (fake.views or 1) * row_bytes
    assert_refused(tmp_path, rf"takes {needed:,} bytes, and .* has 500 free")


# A part is no cache.


def test_parts_are_told_from_a_cache(parts):
    with pytest.raises(InputError, match=r"found: parts, to be joined by .* --join"):
        teacher_logits.open_cache(parts)
    with pytest.raises(InputError, match=f"is a part .* --join --out={parts}"):
        teacher_logits.open_cache(parts / "shard-00-of-03")


def test_a_written_part_is_recognised(parts):
    part = parts / "shard-01-of-03"
    manifest = json.loads((part / "manifest.json").read_text())
    assert teacher_parts.is_written(part, manifest)
    assert not teacher_parts.is_written(parts / "shard-01-of-04", manifest)
    manifest["teacher"]["arch"] = "vit_b_16"
    with pytest.raises(InputError, match="a part of another teacher"):
        teacher_parts.is_written(part, manifest)
