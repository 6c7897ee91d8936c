"""A cache in parts: joined to the bytes of an undivided one, or refused."""

import itertools
import json
import shutil

import numpy as np
import pytest

from deit_jax.data import sources
from deit_jax.distillation import teacher_logits, teacher_parts
from deit_jax.distillation.teacher_parts import Shard
from deit_jax.errors import InputError

LENGTH, CLASSES, BATCH = 30, 10, 4
FILES = ("logits.npy", "manifest.json")


@pytest.fixture(scope="module")
def source():
    return sources.load("digits", f"train[:{LENGTH}]")


LOGITS = np.random.default_rng(0).normal(size=(LENGTH, CLASSES)).astype(np.float16)


def write(directory, source, shard=None, *, stop_after=None, batch_size=BATCH, **new):
    """What an export of all rows, or of a part of them, leaves in `directory`."""
    top1 = 0.9 if shard is None or shard.number == 0 else None
    manifest = {
        "source": teacher_logits.describe_source(source),
        "views": {"count": 1, "view": "plain", "mixing": "none"},
        "teacher": {"arch": "resnet50", "top1": top1, "top1_split": "test"} | new,
    }
    start, stop, shape = 0, LENGTH, (1, LENGTH, CLASSES)
    if shard:
        manifest["shard"] = shard.describe(LENGTH, batch_size)
        start, stop = manifest["shard"]["start"], manifest["shard"]["stop"]
        directory, shape = directory / shard.name, (stop - start, CLASSES)
    writer = teacher_logits.Writer(directory, manifest, shape)
    for first in range(start + writer.rows_done, stop, batch_size):
        writer.append(LOGITS[first : min(first + batch_size, stop)])
        if writer.rows_done == stop_after:
            return
    writer.finish()


@pytest.fixture
def whole(tmp_path, source):
    write(tmp_path / "whole", source)
    return tmp_path / "whole"


@pytest.fixture
def parts(tmp_path, source):
    for number in (2, 0, 1):
        write(tmp_path / "cache", source, Shard(number, 3))
    return tmp_path / "cache"


def assert_joined(cache, whole):
    assert sorted(path.name for path in cache.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (cache / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_joined_parts_are_the_undivided_cache(tmp_path, source, whole, count):
    for number in range(count):
        write(tmp_path / "cache", source, Shard(number, count))
    teacher_parts.join(tmp_path / "cache")
    assert_joined(tmp_path / "cache", whole)
    teacher_logits.open_cache(tmp_path / "cache").check(source, view="plain")


def test_more_than_a_hundred_parts_keep_their_order(tmp_path, source, monkeypatch):
    """Their names do not sort as their numbers do."""
    rows = np.arange(110.0)[:, None].repeat(2, 1)
    manifest = {
        "source": {"length": 110, "num_classes": 2},
        "views": {"count": 1},
        "teacher": {"top1": 0.5},
    }
    for number in range(110):
        shard = Shard(number, 110)
        section = {"shard": shard.describe(110, 1)}
        writer = teacher_logits.Writer(
            tmp_path / shard.name, manifest | section, (1, 2)
        )
        writer.append(rows[number : number + 1])
        writer.finish()
    teacher_parts.join(tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy")[0], rows)


@pytest.mark.parametrize(
    ("rows", "batch_size", "count"), [(30, 4, 3), (1440, 64, 7), (5, 1, 5), (3, 8, 1)]
)
def test_parts_are_whole_batches_and_all_rows(rows, batch_size, count):
    sections = [Shard(i, count).describe(rows, batch_size) for i in range(count)]
    assert sections[0]["start"] == 0
    assert sections[-1]["stop"] == rows
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
    "text", ["", "1", "4/4", "-1/4", "1/0", "a/b", "1/4/2", "1.5/4"]
)
def test_other_shards_than_i_of_n_are_refused(text):
    with pytest.raises(InputError, match=r"expected i/n with 0 <= i < n"):
        teacher_parts.parse_shard(text)


def test_shards_are_parsed():
    assert teacher_parts.parse_shard("3/16") == Shard(3, 16)
    assert Shard(3, 16).name == "shard-03-of-16"


# A kill can come at any moment.


@pytest.mark.parametrize("appends", range(8))
def test_killed_join_ends_in_the_same_bytes(parts, whole, monkeypatch, appends):
    """Killed before each of its writes, the last of which is the manifest."""
    monkeypatch.setattr(teacher_parts, "CHUNK_BYTES", 5 * 2 * CLASSES)
    left = iter(range(appends))
    real = teacher_logits.Writer.append

    def killed(writer, logits):
        assert len(logits) <= 5  # the bound on memory
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(writer, logits)

    def killed_at_the_end(writer):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(teacher_logits.Writer, "append", killed)
        patch.setattr(teacher_logits.Writer, "finish", killed_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            teacher_parts.join(parts)
    with pytest.raises(InputError, match="no teacher cache"):
        teacher_logits.open_cache(parts)
    teacher_parts.join(parts)
    assert_joined(parts, whole)


@pytest.mark.parametrize("removed", range(3))
def test_join_killed_while_it_removes_the_parts_is_ended(
    parts, whole, monkeypatch, removed
):
    left = iter(range(removed))
    real = shutil.rmtree

    def killed(path):
        if next(left, None) is None:
            (path / "manifest.json").unlink()
            raise KeyboardInterrupt
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            teacher_parts.join(parts)
    teacher_logits.open_cache(parts)  # a cache already
    teacher_parts.join(parts)
    assert_joined(parts, whole)


def test_killed_part_resumes(tmp_path, source, whole):
    for number in range(2):
        write(tmp_path / "cache", source, Shard(number, 2), stop_after=4)
        write(tmp_path / "cache", source, Shard(number, 2))
    teacher_parts.join(tmp_path / "cache")
    assert_joined(tmp_path / "cache", whole)


# What cannot be joined stays as it is.


def snapshot(directory):
    return {
        path.relative_to(directory): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def assert_refused(cache, message):
    before = snapshot(cache)
    with pytest.raises(InputError, match=message) as caught:
        teacher_parts.join(cache, command="python -m teacher.export_logits --a=b")
    assert snapshot(cache) == before
    return str(caught.value)


def test_missing_and_unfinished_parts_are_named_with_their_commands(tmp_path, source):
    write(tmp_path, source, Shard(0, 4))
    write(tmp_path, source, Shard(2, 4), stop_after=4)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "vit_b_16"}, "teacher.arch is 'resnet50' in shard-00-of-03 and 'vit"),
        ({"batch_size": 5}, r"shard.batch_size is 4 in .* and 5 in shard-01-of-03"),
    ],
)
def test_part_of_another_export_is_refused(parts, source, change, message):
    shutil.rmtree(parts / "shard-01-of-03")
    write(parts, source, Shard(1, 3), **change)
    assert_refused(parts, message)


def test_part_of_another_source_is_refused(parts, source):
    shutil.rmtree(parts / "shard-01-of-03")
    other = sources.load("digits", f"test[:{LENGTH}]")
    write(parts, other, Shard(1, 3))
    assert_refused(parts, r"source.split is 'train\[:30\]' in .* and 'test\[:30\]'")


def edit(path, change):
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("shard"),
        lambda m: m["shard"].update(batch_size=0),
        lambda m: m["shard"].update(start=4),
        lambda m: m["teacher"].update(top1=None),
        lambda m: m.update(format_version=2),
        lambda m: m.update(source=None),
    ],
)
def test_damaged_manifest_of_a_part_is_refused(parts, change):
    edit(parts / "shard-00-of-03" / "manifest.json", change)
    assert_refused(parts, r"is not a manifest of a part .*Delete .*shard-00-of-03 and")


def test_damaged_logits_of_a_part_are_refused(parts):
    path = parts / "shard-02-of-03" / "logits.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert_refused(parts, r"logits.npy is damaged. Delete(.|\n)*--a=b --shard=2/3")
    path.write_bytes(content[:-20])
    assert_refused(parts, r"truncated(.|\n)*--shard=2/3")


def test_another_finished_cache_is_not_touched(parts, source):
    write(parts, source, arch="vit_b_16")
    assert_refused(parts, "already holds a finished teacher cache")


def test_full_disk_is_found_before_anything_is_written(parts, monkeypatch):
    usage = shutil.disk_usage(parts)._replace(free=500)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert_refused(parts, r"takes 600 bytes, and .* has 500 free")


# A part is no cache.


def test_parts_are_told_from_a_cache(parts):
    with pytest.raises(InputError, match=r"found: parts, to be joined by .* --join"):
        teacher_logits.open_cache(parts)
    with pytest.raises(InputError, match=f"is a part .* --join --out={parts}"):
        teacher_logits.open_cache(parts / "shard-00-of-03")


def test_a_written_part_is_recognised(parts, source):
    part = parts / "shard-01-of-03"
    manifest = json.loads((part / "manifest.json").read_text())
    assert teacher_parts.is_written(part, manifest)
    assert not teacher_parts.is_written(parts / "shard-01-of-04", manifest)
    manifest["teacher"]["arch"] = "vit_b_16"
    with pytest.raises(InputError, match="a part of another teacher"):
        teacher_parts.is_written(part, manifest)
