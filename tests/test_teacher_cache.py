"""Reading a teacher cache, and what is refused."""

import dataclasses
import json
import resource
from pathlib import Path

import caches
import numpy as np
import pytest
from caches import CLASSES, LENGTH, SEEN, TOP_K, edit_manifest, example_logits, write

from deit_jax.data import sources
from deit_jax.distillation import cache_format, match, teacher_cache
from deit_jax.distillation.encoding import Encoding
from deit_jax.distillation.teacher import Answers
from deit_jax.errors import InputError
from deit_jax.files import sha256


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    caches.without_waiting_for_the_disk(monkeypatch)


@pytest.fixture(scope="module")
def source():
    return sources.load("digits", f"train[:{LENGTH}]")


@pytest.fixture
def cache(tmp_path, source):
    return write(tmp_path / "cache", source)


@pytest.fixture
def cache_of_views(tmp_path, source):
    return write(tmp_path / "views", source, views=2)


@pytest.fixture
def top_k_cache(tmp_path, source):
    return write(tmp_path / "top-k", source, views=2, logits=TOP_K)


def test_a_plain_cache_is_one_view_and_a_manifest_without_augmentation(cache, source):
    opened = teacher_cache.open_cache(cache)
    opened.check_source(source)
    assert caches.files(cache).keys() == {"view-000.npy", "manifest.json"}
    assert np.load(cache / "view-000.npy").tobytes() == example_logits()[0].tobytes()
    assert opened.manifest["views"] == {
        "count": 1,
        "view": "plain",
        "mixing": "none",
        "augment_seed": None,
        "repeats": None,
        "size": None,
        "augmentation": None,
    }
    assert opened.manifest["examples_sha256"] is None
    assert opened.manifest["teacher"]["top1"] == 0.9
    assert opened.manifest["sha256"] == [
        {"view-000.npy": sha256(cache / "view-000.npy")}
    ]
    assert opened.bytes == LENGTH * CLASSES * 2


def test_the_largest_logits_are_three_arrays_a_view(top_k_cache):
    arrays = {
        path.name: (str(array.dtype), array.shape)
        for path in top_k_cache.glob("view-*.npy")
        for array in [np.load(path)]
    }
    assert arrays == {
        f"view-00{view}-{name}.npy": (kind, (LENGTH, width))
        for view in range(2)
        for name, kind, width in (
            ("indices", "uint16", 3),
            ("values", "float16", 3),
            ("tails", "float32", 2),
        )
    }
    expected = {*arrays, "examples-002.npz", "manifest.json"}
    assert caches.files(top_k_cache).keys() == expected


def test_a_batch_takes_each_row_from_its_view_and_views_wrap_around(cache_of_views):
    opened = teacher_cache.open_cache(cache_of_views)
    views, indices = np.array([0, 1, 2, 5]), np.array([3, 3, 3, 29])
    np.testing.assert_array_equal(
        opened.batch(views, indices).logits, example_logits(2)[[0, 1, 0, 1], indices]
    )


def test_other_temperatures_are_refused(top_k_cache, cache):
    for tau in (1.0, 3.0):
        assert teacher_cache.open_cache(top_k_cache, tau=tau).tau == tau
    with pytest.raises(InputError, match=r"of 1 or 3, not 2\. Set --config.*tau=3, or"):
        teacher_cache.open_cache(top_k_cache, tau=2.0)
    teacher_cache.open_cache(cache, tau=2.0)


def test_batches_are_decoded_at_the_temperature_of_the_cache(top_k_cache):
    views, indices = np.array([0, 1, 3]), np.array([3, 4, 5])
    logits = example_logits(2)[views % 2, indices]
    encoding = Encoding(CLASSES, **TOP_K)
    for tau in (1.0, 3.0):
        opened = teacher_cache.open_cache(top_k_cache, tau=tau)
        np.testing.assert_array_equal(
            opened.batch(views, indices).logits,
            encoding.decode(encoding.encode(Answers(logits)), tau),
        )


def test_many_views_do_not_need_many_open_files(tmp_path, source):
    write(tmp_path / "cache", source, views=20)
    opened = teacher_cache.open_cache(tmp_path / "cache")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 18, hard))
    try:
        read = opened.batch(np.arange(20), np.zeros(20, int)).logits
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    np.testing.assert_array_equal(read, example_logits(20)[:, 0])


# Damage


def truncate(keep):
    return lambda path: path.write_bytes(path.read_bytes()[:keep])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def save(array):
    return lambda path: np.save(path, array)


NO_ARRAY = r"missing, truncated or no .npy file.*Export it again"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        *(("view-000.npy", truncate(keep), NO_ARRAY) for keep in (-1, 200, 0)),
        ("view-000.npy", Path.unlink, NO_ARRAY),
        ("view-001-tails.npy", Path.unlink, NO_ARRAY),
        ("view-000.npy", lambda p: p.write_bytes(b"PK\x03\x04 a zip?"), NO_ARRAY),
        *(
            (name, flip, f"{name} is not the file its manifest was written for")
            for name in ("view-000.npy", "view-001-values.npy", "view-000-tails.npy")
        ),
        (
            "view-000.npy",
            save(example_logits()[0].astype(np.float32)),
            "holds float32 .*, its manifest says float16",
        ),
        ("view-000.npy", save(example_logits()[0, :-1]), "its manifest says float16"),
        *(
            ("manifest.json", lambda p, text=text: p.write_text(text), "not a manifest")
            for text in ("", "{", "[1, 2]", "{}", '{"format_version": 3}')
        ),
        *(
            (
                "manifest.json",
                lambda p, v=version: p.write_text(json.dumps({"format_version": v})),
                f"format {version}, this program reads 3. Export it again",
            )
            for version in (2, 4)
        ),
    ],
)
def test_a_damaged_cache_is_refused_by_file(cache, top_k_cache, name, damage, message):
    directory = cache if (cache / name).exists() else top_k_cache
    damage(directory / name)
    with pytest.raises(InputError, match=message):
        teacher_cache.open_cache(directory)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m["source"].pop("fingerprint"),
        lambda m: m["source"]["class_names"].pop(),
        lambda m: m["source"].update(num_classes=10.0),
        lambda m: m["views"].update(count=2),
        lambda m: m["views"].update(view="some"),
        lambda m: m["views"].update(view="same"),
        lambda m: m["views"].update(mixing="linear"),
        lambda m: m.pop("logits"),
        lambda m: m["logits"].update(TOP_K),
        lambda m: m["sha256"].append({}),
        lambda m: m.pop("examples_sha256"),
        lambda m: m["teacher"].update(top1=None),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(cache, edit):
    edit_manifest(cache, edit)
    with pytest.raises(InputError, match=r"manifest.json is not a manifest"):
        teacher_cache.open_cache(cache)


@pytest.mark.parametrize(
    ("array", "value", "message"),
    [
        ("logits", np.nan, "logits that are not finite"),
        ("values", np.inf, "logits that are not finite"),
        ("indices", CLASSES, "classes beyond 10"),
        ("tails", 1.0, "probabilities beyond"),
    ],
)
def test_rows_that_no_export_writes_are_refused(
    cache, top_k_cache, array, value, message, monkeypatch
):
    """As found in a cache that is too large for its checksums to be compared."""
    monkeypatch.setattr(teacher_cache, "CHECKSUM_LIMIT_BYTES", 0)
    directory = cache if array == "logits" else top_k_cache
    path = directory / cache_format.view_file(0, array)
    values = np.lib.format.open_memmap(path, "r+")
    values[3, 1] = value
    del values
    opened = teacher_cache.open_cache(directory)
    opened.batch(np.array([0]), np.array([2]))
    with pytest.raises(InputError, match=rf"is damaged: .*{message}"):
        opened.batch(np.array([0, 0]), np.array([2, 3]))


def test_missing_and_unfinished_caches_are_told_apart(tmp_path, source):
    with pytest.raises(InputError, match=r"no teacher cache at .*found: none"):
        teacher_cache.open_cache(tmp_path / "nothing")
    write(tmp_path / "begun", source, views=2, only=[1])
    with pytest.raises(InputError, match="an unfinished export"):
        teacher_cache.open_cache(tmp_path / "begun")


def test_examples_are_kept(cache_of_views):
    examples = teacher_cache.open_cache(cache_of_views).examples()
    assert examples.keys() == caches.EXAMPLES.keys()
    for name, array in caches.EXAMPLES.items():
        np.testing.assert_array_equal(examples[name], array)


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda p: p.write_bytes(b"")])
def test_missing_and_damaged_examples_are_refused(cache_of_views, damage):
    damage(cache_of_views / "examples-002.npz")
    opened = teacher_cache.open_cache(cache_of_views)
    with pytest.raises(InputError, match=r"examples-002.npz is missing or damaged"):
        opened.examples()


# Another source


def swap_two_classes(names):
    return (names[1], names[0], *names[2:])


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("name", lambda s: "cifar10", "made for name='digits', this run has name="),
        ("split", lambda s: "train", "made for split="),
        ("labels", lambda s: s.labels[:-1], "made for length=30.* length=29"),
        (
            "class_names",
            lambda s: (*s.class_names[:9], "x", "y"),
            r"other classes \(missing: 'x', 'y'; too many: '9'\)",
        ),
        (
            "class_names",
            lambda s: swap_two_classes(s.class_names),
            r"\(the order is another, class 0 is '0' there and '1' here, class 1 is",
        ),
        ("fingerprint", lambda s: "f" * 64, "other images or labels"),
    ],
)
def test_cache_of_another_source_is_refused(cache, source, field, change, message):
    other = dataclasses.replace(source, **{field: change(source)})
    with pytest.raises(InputError, match=message) as caught:
        teacher_cache.open_cache(cache).check_source(other, config="c.py:x")
    assert "python -m teacher.export_logits --config=c.py:x" in str(caught.value)


def test_a_cache_follows_data_that_were_moved(tmp_path, source):
    here = dataclasses.replace(source, name="folder:/a")
    cache = teacher_cache.open_cache(write(tmp_path / "cache", here))
    for name in ("folder:/b", "hf:org/name", "tar:/b/{0..9}.tar", "cifar:/b"):
        cache.check_source(dataclasses.replace(source, name=name))
    with pytest.raises(
        InputError, match="name='folder:/a', this run has name='digits'"
    ):
        cache.check_source(source)
    other = dataclasses.replace(source, name="folder:/b", fingerprint="f" * 64)
    with pytest.raises(InputError, match="other images or labels of folder:/b"):
        cache.check_source(other)


def test_cache_of_another_view_is_refused(cache, source):
    opened = teacher_cache.open_cache(cache)
    with pytest.raises(InputError, match=r"distillation.view=plain, or make another"):
        match.check(opened, source, SEEN, view="same", mixing="none", num_views=1)
