"""The cache of teacher logits: what it refuses, and what a kill leaves behind."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from deit_jax.data import sources
from deit_jax.distillation import teacher_logits
from deit_jax.errors import InputError

LENGTH, CLASSES = 30, 10
TEACHER = {"arch": "resnet50", "weights_sha256": "0", "top1": 0.9, "top1_split": "test"}


@pytest.fixture(scope="module")
def source():
    return sources.load("digits", f"train[:{LENGTH}]")


def manifest_for(source, views=1, **teacher):
    return {
        "source": teacher_logits.describe_source(source),
        "views": {"count": views, "view": "plain", "mixing": "none"},
        "teacher": TEACHER | teacher,
    }


def example_logits(views=1):
    rng = np.random.default_rng(0)
    return rng.normal(size=(views, LENGTH, CLASSES)).astype(np.float16)


def open_writer(directory, source, views=1, **teacher):
    manifest = manifest_for(source, views, **teacher)
    return teacher_logits.Writer(directory, manifest, (views, LENGTH, CLASSES))


def write(directory, source, views=1, chunk=7):
    """A whole cache, as one start of an export leaves it."""
    writer = open_writer(directory, source, views)
    rows = example_logits(views).reshape(-1, CLASSES)
    for start in range(writer.rows_done, len(rows), chunk):
        writer.append(rows[start : start + chunk].astype(np.float32))
    writer.finish()
    return directory


@pytest.fixture
def cache(tmp_path, source):
    return write(tmp_path / "cache", source)


def edit_manifest(cache, edit):
    path = cache / teacher_logits.MANIFEST
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def test_what_was_written_is_read_memory_mapped(cache, source):
    opened = teacher_logits.open_cache(cache)
    opened.check(source, view="plain")
    np.testing.assert_array_equal(opened.logits, example_logits())
    assert isinstance(opened.logits, np.memmap)
    assert not opened.logits.flags.writeable
    assert opened.manifest["teacher"]["top1"] == 0.9
    assert sorted(path.name for path in cache.iterdir()) == [
        "logits.npy",
        "manifest.json",
    ]


def test_views_beyond_the_cache_wrap_around(tmp_path, source):
    opened = teacher_logits.open_cache(write(tmp_path / "cache", source, views=2))
    views, indices = np.array([0, 1, 2, 5]), np.array([3, 3, 3, 29])
    np.testing.assert_array_equal(
        opened.batch(views, indices), example_logits(2)[[0, 1, 0, 1], indices]
    )


def truncate(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize("keep", [-1, 200, 20, 0])
def test_truncated_logits_are_refused(cache, keep):
    truncate(cache / teacher_logits.LOGITS, keep)
    with pytest.raises(InputError, match=r"truncated.*Export it again"):
        teacher_logits.open_cache(cache)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 a zip?", b"\x80\x04. a pickle", None]
)
def test_other_files_than_npy_are_refused(cache, content):
    path = cache / teacher_logits.LOGITS
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=r"missing, truncated or no .npy file"):
        teacher_logits.open_cache(cache)


def test_one_flipped_byte_is_found(cache):
    path = cache / teacher_logits.LOGITS
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="not the file its manifest was written for"):
        teacher_logits.open_cache(cache)


@pytest.mark.parametrize(
    "array", [example_logits().astype(np.float32), example_logits()[:, :-1]]
)
def test_logits_of_another_type_or_shape_are_refused(cache, array):
    np.save(cache / teacher_logits.LOGITS, array)
    with pytest.raises(InputError, match="its manifest says float16"):
        teacher_logits.open_cache(cache)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "{}", '{"format_version": 1}'])
def test_corrupt_manifest_is_refused(cache, text):
    (cache / teacher_logits.MANIFEST).write_text(text)
    with pytest.raises(InputError, match=r"manifest.json is not a manifest"):
        teacher_logits.open_cache(cache)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m["source"].pop("fingerprint"),
        lambda m: m["source"].update(length=LENGTH + 1),
        lambda m: m["source"]["class_names"].pop(),
        lambda m: m["views"].update(count=2),
        lambda m: m.update(teacher=None),
    ],
)
def test_manifest_that_contradicts_itself_is_refused(cache, edit):
    edit_manifest(cache, edit)
    with pytest.raises(InputError, match=r"manifest.json is not a manifest"):
        teacher_logits.open_cache(cache)


def test_format_of_the_future_is_named(cache):
    (cache / teacher_logits.MANIFEST).write_text('{"format_version": 2}')
    with pytest.raises(InputError, match="format 2, this program reads 1"):
        teacher_logits.open_cache(cache)


def test_missing_and_unfinished_caches_are_told_apart(tmp_path, source):
    with pytest.raises(InputError, match=r"no teacher cache at .*found: none"):
        teacher_logits.open_cache(tmp_path / "nothing")
    open_writer(tmp_path / "begun", source)
    with pytest.raises(InputError, match="an unfinished export"):
        teacher_logits.open_cache(tmp_path / "begun")


def swap_two_classes(names):
    return (names[1], names[0], *names[2:])


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("name", lambda s: "cifar10", "made for name='digits', this run has name="),
        ("split", lambda s: "train", "made for split="),
        ("labels", lambda s: s.labels[:-1], "made for length=30.* length=29"),
        ("class_names", lambda s: (*s.class_names, "x"), "num_classes=10.*=11"),
        (
            "class_names",
            lambda s: swap_two_classes(s.class_names),
            "class 0 of the teacher cache .* is '0', that of digits is '1'",
        ),
        ("fingerprint", lambda s: "f" * 64, "other images or labels"),
    ],
)
def test_cache_of_another_source_is_refused(cache, source, field, change, message):
    other = dataclasses.replace(source, **{field: change(source)})
    with pytest.raises(InputError, match=message) as caught:
        teacher_logits.open_cache(cache).check(other, view="plain", config="c.py:x")
    assert "python -m teacher.export_logits --config=c.py:x" in str(caught.value)


def test_a_cache_follows_a_folder_that_was_moved(tmp_path, source):
    here = dataclasses.replace(source, name="folder:/a")
    cache = teacher_logits.open_cache(write(tmp_path / "cache", here))
    cache.check(dataclasses.replace(source, name="folder:/b"), view="plain")
    with pytest.raises(
        InputError, match="name='folder:/a', this run has name='digits'"
    ):
        cache.check(source, view="plain")
    other = dataclasses.replace(source, name="folder:/b", fingerprint="f" * 64)
    with pytest.raises(InputError, match="other images or labels of folder:/b"):
        cache.check(other, view="plain")


def test_cache_of_another_view_is_refused(cache, source):
    with pytest.raises(InputError, match=r"distillation.view=plain, or make another"):
        teacher_logits.open_cache(cache).check(source, view="same")


# A kill can come between any two writes: the next start must end in the same bytes.


def test_resumed_export_is_byte_identical(tmp_path, source, cache):
    writer = open_writer(tmp_path / "killed", source)
    writer.append(example_logits()[0, :7])
    writer.append(example_logits()[0, 7:14])
    del writer
    assert open_writer(tmp_path / "killed", source).rows_done == 14
    write(tmp_path / "killed", source)
    for name in ("logits.npy", "manifest.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (cache / name).read_bytes()


def test_rows_written_but_not_yet_recorded_are_written_again(
    tmp_path, source, cache, monkeypatch
):
    writer = open_writer(tmp_path / "killed", source)
    writer.append(example_logits()[0, :7])
    monkeypatch.setattr(writer, "_save_progress", lambda: None)  # killed before it
    writer.append(np.full((7, CLASSES), 3.0))
    assert open_writer(tmp_path / "killed", source).rows_done == 7
    write(tmp_path / "killed", source)
    assert (tmp_path / "killed/logits.npy").read_bytes() == (
        cache / "logits.npy"
    ).read_bytes()


def test_kill_after_the_last_row_is_finished_by_the_next_start(tmp_path, source, cache):
    writer = open_writer(tmp_path / "killed", source)
    writer.append(example_logits()[0])
    del writer
    write(tmp_path / "killed", source)
    assert (tmp_path / "killed/manifest.json").read_bytes() == (
        cache / "manifest.json"
    ).read_bytes()


def test_finish_refuses_missing_rows(tmp_path, source):
    writer = open_writer(tmp_path / "cache", source)
    writer.append(example_logits()[0, :7])
    with pytest.raises(ValueError, match="rows_done=7 of 30"):
        writer.finish()


def test_unfinished_export_of_another_teacher_is_refused(tmp_path, source):
    open_writer(tmp_path / "cache", source)
    with pytest.raises(InputError, match="unfinished export of another teacher"):
        open_writer(tmp_path / "cache", source, weights_sha256="1")


def test_finished_cache_is_not_overwritten(cache, source):
    before = (cache / "logits.npy").read_bytes()
    with pytest.raises(InputError, match="already holds a finished teacher cache"):
        open_writer(cache, source)
    assert (cache / "logits.npy").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("logits.npy", None),
        ("logits.npy", b"\x93NUMPY"),
        ("progress.json", b""),
        ("progress.json", b'{"rows_done": 7}'),
    ],
)
def test_damaged_unfinished_export_is_refused(tmp_path, source, name, content):
    open_writer(tmp_path / "cache", source).append(example_logits()[0, :7])
    path = tmp_path / "cache" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged unfinished export.*Delete it"):
        open_writer(tmp_path / "cache", source)


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "non-finite logits"), (np.inf, "non-finite"), (7e4, "exceed float16")],
)
def test_logits_that_float16_cannot_hold_are_refused(tmp_path, source, value, message):
    writer = open_writer(tmp_path / "cache", source)
    with pytest.raises(InputError, match=message):
        writer.append(np.full((2, CLASSES), value, np.float32))
    assert writer.rows_done == 0


def test_full_disk_is_found_before_anything_is_written(tmp_path, source, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=500)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"takes 600 bytes, and .* has 500 free"):
        open_writer(tmp_path / "cache", source)
    assert not (tmp_path / "cache/logits.npy").exists()


def test_directory_that_is_a_file_is_refused(tmp_path, source):
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        open_writer(tmp_path / "cache", source)
