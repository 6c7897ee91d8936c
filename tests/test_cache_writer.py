"""Writing a teacher cache: kills, divisions, growth, and what is refused."""

import itertools
import os
import shutil
from pathlib import Path

import caches
import numpy as np
import pytest
from caches import LENGTH, TOP_K, example_logits, files, manifest_for, write

from deit_jax import files as small_files
from deit_jax.data import sources
from deit_jax.distillation import cache_writer, teacher_cache
from deit_jax.distillation.teacher import Answers
from deit_jax.errors import InputError


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    caches.without_waiting_for_the_disk(monkeypatch)


@pytest.fixture(scope="module")
def source():
    return sources.load("digits", f"train[:{LENGTH}]")


@pytest.fixture
def whole(tmp_path, source):
    """The files of a cache of two views with the three largest logits."""
    return files(write(tmp_path / "whole", source, views=2, logits=TOP_K))


def export(directory, source, **settings):
    return write(directory, source, views=2, logits=TOP_K, **settings)


class Killed(BaseException):
    pass


def kill_at(monkeypatch, owner, name, call):
    """Raises `Killed` in place of the call with this number, from 0."""
    real, numbers = getattr(owner, name), itertools.count()

    def killed(*args, **kwargs):
        if next(numbers) == call:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, killed)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        # Arrays are made, three a view; blocks are flushed, five of three arrays.
        *((np.lib.format, "open_memmap", call) for call in (0, 1, 2, 4)),
        *((np.memmap, "flush", call) for call in (0, 1, 2, 3, 14, 15, 29)),
        # 14 records, the examples, then the manifest.
        *((small_files, "replace_file", call) for call in (0, 1, 5, 6, 7, 13, 14, 15)),
        *((small_files, "sha256", call) for call in (0, 2, 3, 6)),
        (np, "savez", 0),
        (os, "replace", 14),
        *((Path, "unlink", call) for call in range(2)),
    ],
)
def test_an_export_that_is_killed_anywhere_ends_in_the_same_bytes(
    tmp_path, source, whole, monkeypatch, owner, name, call
):
    with monkeypatch.context() as patch:
        kill_at(patch, owner, name, call)
        with pytest.raises(Killed):
            export(tmp_path / "killed", source)
    if name != "unlink":  # of the records, when the manifest is there
        with pytest.raises(InputError, match=r"an unfinished export|found: none"):
            teacher_cache.open_cache(tmp_path / "killed")
    export(tmp_path / "killed", source)
    rest = files(tmp_path / "killed")
    if name == "unlink":
        rest = {name: content for name, content in rest.items() if name in whole}
    assert rest == whole


def test_blocks_that_are_done_are_not_computed_again(tmp_path, source, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, small_files, "replace_file", 3)  # the third block's record
        with pytest.raises(Killed):
            export(tmp_path / "killed", source)
    manifest = manifest_for(source, 2, TOP_K)
    writer = cache_writer.ViewWriter(tmp_path / "killed", 0, manifest)
    assert writer.entries_done == 14


@pytest.mark.parametrize("order", [((0,), (1,)), ((1,), (0,))])
def test_a_division_by_views_ends_in_the_same_bytes(tmp_path, source, whole, order):
    for views in order:
        export(tmp_path / "divided", source, only=views)
    assert files(tmp_path / "divided") == whole


def test_views_of_two_directories_are_joined_by_moving_their_files(
    tmp_path, source, whole
):
    for view in range(2):
        export(tmp_path / str(view), source, only=[view])
    for path in (tmp_path / "1").glob("view-001*"):
        shutil.move(path, tmp_path / "0")
    assert files(export(tmp_path / "0", source)) == whole


def test_a_finished_cache_grows_and_is_a_cache_all_the_while(tmp_path, source):
    write(tmp_path / "grown", source, views=2)
    before = files(tmp_path / "grown")
    write(tmp_path / "grown", source, views=4, only=[2])
    teacher_cache.open_cache(tmp_path / "grown").examples()
    assert before.items() <= files(tmp_path / "grown").items()
    write(tmp_path / "grown", source, views=4)
    assert files(tmp_path / "grown") == files(write(tmp_path / "new", source, views=4))
    assert teacher_cache.open_cache(tmp_path / "grown").num_views == 4


def test_a_view_is_only_finished_with_all_its_rows(tmp_path, source):
    odd = sources.load("digits", f"train[:{LENGTH - 1}]")
    assert cache_writer.entries_per_view(manifest_for(odd)) == LENGTH - 1
    assert cache_writer.entries_per_view(manifest_for(odd, views=2)) == LENGTH
    writer = cache_writer.ViewWriter(tmp_path / "cache", 0, manifest_for(source))
    writer.append(Answers(example_logits()[0, :7]), np.arange(7))
    with pytest.raises(ValueError, match="entries_done=7"):
        writer.finish()
    with pytest.raises(InputError, match=r"lacks views \[0\] of 1"):
        cache_writer.finish(tmp_path / "cache", manifest_for(source), None)


def test_rows_are_written_where_they_belong(tmp_path, source):
    index = np.random.default_rng(0).permutation(LENGTH)
    writer = cache_writer.ViewWriter(tmp_path / "cache", 0, manifest_for(source))
    writer.append(Answers(example_logits()[0, index[:20]]), index[:20])
    writer.append(Answers(example_logits()[0, index[20:]]), index[20:])
    np.testing.assert_array_equal(
        np.load(tmp_path / "cache" / "view-000.npy"), example_logits()[0]
    )


def test_differences_of_two_exports_are_named_by_field(source):
    one, two = (
        cache_writer.identity(manifest_for(source, views, arch=arch, top1=top1))
        for views, arch, top1 in ((2, "resnet50", 0.9), (3, "vit_b_16", 0.8))
    )
    assert cache_writer.differences(one, one) == {}
    assert cache_writer.differences(one, two) == {
        "teacher.arch": ("'resnet50'", "'vit_b_16'")
    }


@pytest.mark.parametrize("only", [[0], None])
@pytest.mark.parametrize(
    "change", [{"weights_sha256": "1"}, {"logits": TOP_K | {"top_k": 2}}]
)
def test_an_export_of_another_teacher_or_setting_is_refused(
    tmp_path, source, only, change
):
    export(tmp_path / "cache", source, only=only)
    before = files(tmp_path / "cache")
    message = "of an export of another" if only else "already holds a finished"
    with pytest.raises(InputError, match=message):
        write(tmp_path / "cache", source, **{"views": 2, "logits": TOP_K} | change)
    assert files(tmp_path / "cache") == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("view-000.npy", lambda old: None),
        ("view-000.npy", lambda old: b"\x93NUMPY"),
        # Opened for writing it would be filled up with zeros.
        ("view-000.npy", lambda old: old[:-1]),
        ("view-000.json", lambda old: b""),
        ("view-000.json", lambda old: b'{"entries_done": 7}'),
        ("view-000.json", lambda old: old.replace(b'done": 7', b'done": 31')),
        ("view-000.json", lambda old: old.replace(b'done": 7', b'done": "7"')),
    ],
)
def test_a_damaged_unfinished_view_is_refused(tmp_path, source, name, content):
    writer = cache_writer.ViewWriter(tmp_path / "cache", 0, manifest_for(source))
    writer.append(Answers(example_logits()[0, :7]), np.arange(7))
    path = tmp_path / "cache" / name
    damaged = content(path.read_bytes())
    path.unlink() if damaged is None else path.write_bytes(damaged)
    with pytest.raises(InputError, match=rf"{name} is (damaged|missing)"):
        cache_writer.ViewWriter(tmp_path / "cache", 0, manifest_for(source))


@pytest.mark.parametrize("target", ["file", "/dev/zero"])
def test_a_new_export_does_not_write_through_a_link(tmp_path, source, target):
    elsewhere = tmp_path / "file"
    elsewhere.write_bytes(b"somebody's")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "view-000.npy").symlink_to(tmp_path / target)
    write(tmp_path / "cache", source)
    assert elsewhere.read_bytes() == b"somebody's"
    assert not (tmp_path / "cache" / "view-000.npy").is_symlink()


@pytest.mark.parametrize(("logits", "needed"), [(None, 30 * 20), (TOP_K, 30 * 20)])
def test_a_full_disk_is_found_before_a_view_is_begun(
    tmp_path, source, monkeypatch, logits, needed
):
    usage = shutil.disk_usage(tmp_path)._replace(free=500)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=rf"takes {needed:,} bytes, and .* has 500"):
        write(tmp_path / "cache", source, views=2, logits=logits)
    assert os.listdir(tmp_path / "cache") == []


def test_a_directory_that_is_a_file_is_refused(tmp_path, source):
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        cache_writer.ViewWriter(tmp_path / "cache", 0, manifest_for(source))
