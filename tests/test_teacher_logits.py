"""The cache of teacher logits: what it refuses, and what a kill leaves behind."""

import dataclasses
import itertools
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.special

from deit_jax.data import sources
from deit_jax.data.augment.recipes import Augmentation
from deit_jax.data.plan import ExportOrder
from deit_jax.data.student_views import StudentViews
from deit_jax.distillation import teacher_logits, teacher_views, teacher_writer
from deit_jax.distillation.teacher_encoding import Encoding
from deit_jax.errors import InputError

LENGTH, CLASSES = 30, 10
TEACHER = {"arch": "resnet50", "weights_sha256": "0", "top1": 0.9, "top1_split": "test"}
SEEN = StudentViews(augment_seed=0, repeats=1, size=32, settings=Augmentation())
EXAMPLES = {"image": np.arange(24).reshape(2, 2, 2, 3), "view": np.array([0, 1])}
TOP_K = {"top_k": 3, "tau": 3.0}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """A killed process loses nothing by it, and it would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(np.memmap, "flush", lambda array: None)


@pytest.fixture(scope="module")
def source():
    return sources.load("digits", f"train[:{LENGTH}]")


def manifest_for(source, views=None, logits=None, **teacher):
    """Of a plain cache, or of one with `views` views of what a student sees."""
    return {
        "source": teacher_logits.describe_source(source),
        "views": teacher_views.describe(
            "same" if views else "plain", views or 1, SEEN if views else None
        ),
        "logits": logits or {"top_k": None, "tau": None},
        "teacher": TEACHER | teacher,
    }


def example_logits(views=1):
    rng = np.random.default_rng(0)
    return rng.normal(size=(views, LENGTH, CLASSES)).astype(np.float16)


def open_writer(directory, source, views=None, logits=None, **teacher):
    manifest = manifest_for(source, views, logits, **teacher)
    return teacher_writer.Writer(directory, manifest, EXAMPLES if views else None)


def write(directory, source, views=None, logits=None, chunk=7):
    """A whole cache, as one start of an export leaves it."""
    writer = open_writer(directory, source, views, logits)
    rows = example_logits(views or 1).reshape(-1, CLASSES)
    for start in range(writer.entries_done, len(rows), chunk):
        writer.append(rows[start : start + chunk].astype(np.float32))
    writer.finish()
    return directory


@pytest.fixture
def cache(tmp_path, source):
    return write(tmp_path / "cache", source)


@pytest.fixture
def cache_of_views(tmp_path, source):
    return write(tmp_path / "views", source, views=2)


@pytest.fixture
def top_k_cache(tmp_path, source):
    return write(tmp_path / "top-k", source, views=2, logits=TOP_K)


def edit_manifest(cache, edit):
    path = cache / teacher_logits.MANIFEST
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_what_was_written_is_read_memory_mapped(cache, source):
    opened = teacher_logits.open_cache(cache)
    opened.check_source(source)
    [logits] = opened.arrays.values()
    np.testing.assert_array_equal(logits, example_logits())
    assert isinstance(logits, np.memmap)
    assert not logits.flags.writeable
    assert opened.manifest["teacher"]["top1"] == 0.9
    assert files(cache).keys() == {"logits.npy", "manifest.json"}


def test_manifest_of_a_plain_cache_names_no_augmentation(cache):
    manifest = json.loads((cache / "manifest.json").read_text())
    assert manifest["views"] == {
        "count": 1,
        "view": "plain",
        "mixing": "none",
        "augment_seed": None,
        "repeats": None,
        "size": None,
        "augmentation": None,
    }
    assert manifest["examples_sha256"] is None
    [(name, stated)] = manifest["arrays"].items()
    assert (name, stated["dtype"], stated["shape"]) == (
        "logits.npy",
        "float16",
        [1, LENGTH, CLASSES],
    )
    assert stated["sha256"] == teacher_logits.sha256(cache / name)


def test_manifest_of_the_largest_logits_describes_each_array(top_k_cache):
    manifest = json.loads((top_k_cache / "manifest.json").read_text())
    assert manifest["logits"] == TOP_K
    described = {
        name: (stated["dtype"], stated["shape"])
        for name, stated in manifest["arrays"].items()
    }
    assert described == {
        "indices.npy": ("uint16", [2, LENGTH, 3]),
        "values.npy": ("float16", [2, LENGTH, 3]),
        "tails.npy": ("float32", [2, LENGTH, 2]),
    }
    expected = {*described, "examples.npz", "manifest.json"}
    assert files(top_k_cache).keys() == expected


def test_views_beyond_the_cache_wrap_around(cache_of_views):
    opened = teacher_logits.open_cache(cache_of_views)
    views, indices = np.array([0, 1, 2, 5]), np.array([3, 3, 3, 29])
    np.testing.assert_array_equal(
        opened.batch(views, indices), example_logits(2)[[0, 1, 0, 1], indices]
    )


# Damage


def truncate(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("keep", [-1, 200, 20, 0])
def test_truncated_logits_are_refused(cache, keep):
    truncate(cache / "logits.npy", keep)
    with pytest.raises(InputError, match=r"truncated.*Export it again"):
        teacher_logits.open_cache(cache)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 a zip?", b"\x80\x04. a pickle", None]
)
def test_other_files_than_npy_are_refused(cache, content):
    path = cache / "logits.npy"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=r"missing, truncated or no .npy file"):
        teacher_logits.open_cache(cache)


@pytest.mark.parametrize("name", ["indices.npy", "values.npy", "tails.npy"])
def test_one_flipped_byte_is_found(cache, top_k_cache, name):
    for path in (cache / "logits.npy", top_k_cache / name):
        flip(path)
        with pytest.raises(InputError, match=f"{path} is not the file its manifest"):
            teacher_logits.open_cache(path.parent)


@pytest.mark.parametrize(
    "array", [example_logits().astype(np.float32), example_logits()[:, :-1]]
)
def test_logits_of_another_type_or_shape_are_refused(cache, array):
    np.save(cache / "logits.npy", array)
    with pytest.raises(InputError, match="its manifest says float16"):
        teacher_logits.open_cache(cache)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "{}", '{"format_version": 2}'])
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
        lambda m: m["views"].update(view="some"),
        lambda m: m["views"].update(mixing="some"),
        lambda m: m["views"].pop("repeats"),
        lambda m: m.pop("logits"),
        lambda m: m["logits"].update(TOP_K),
        lambda m: m["arrays"].update({"more.npy": m["arrays"]["logits.npy"]}),
        lambda m: m["arrays"]["logits.npy"].pop("sha256"),
        lambda m: m.pop("examples_sha256"),
        lambda m: m.update(teacher=None),
        # Found by test_fuzz.py.
        lambda m: m["source"].update(num_classes=10.0),
        lambda m: m["source"].update(class_names="0123456789"),
        lambda m: m["source"].update(fingerprint=3),
        lambda m: m["views"].update(count=1.5),
        lambda m: m["views"].update(count=float("inf")),
        lambda m: m["views"].update(mixing="linear"),
        lambda m: m["views"].update(view="same"),
        lambda m: m["logits"].update(top_k=0, tau=1.0),
        lambda m: m["logits"].update(more=None, tau="1"),
        lambda m: m["teacher"].update(top1=None),
        lambda m: m["teacher"].update(top1="0.9"),
    ],
)
def test_manifest_that_contradicts_itself_is_refused(cache, edit):
    edit_manifest(cache, edit)
    with pytest.raises(InputError, match=r"manifest.json is not a manifest"):
        teacher_logits.open_cache(cache)


@pytest.mark.parametrize(
    "header",
    [
        "-" * 5000 + "1",  # RecursionError, MemoryError and OverflowError of NumPy
        "(" * 5000,
        "{'descr': '<f2', 'fortran_order': False, 'shape': (9223372036854775808,)}",
        "{'descr': '<f2', 'fortran_order': False, 'shape': (2147483648, 2147483648)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1, 30, 10)}",
        "__import__('os').abort()",
    ],
)
def test_a_header_is_no_program(cache, header):
    text = f"{header}\n".encode()
    content = b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text
    (cache / "logits.npy").write_bytes(content + bytes(600))
    with pytest.raises(InputError, match=r"missing, truncated or no \.npy file"):
        teacher_logits.open_cache(cache)


@pytest.mark.parametrize("name", ["manifest.json", "logits.npy"])
def test_a_pipe_is_not_waited_for(cache, name):
    (cache / name).unlink()
    os.mkfifo(cache / name)
    with pytest.raises(InputError, match=r"no teacher cache at|no regular file"):
        teacher_logits.open_cache(cache)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("logits.npy", np.nan, "logits that are not finite"),
        ("values.npy", np.inf, "logits that are not finite"),
        ("indices.npy", CLASSES, "classes beyond 10"),
        ("tails.npy", 1.0, "probabilities beyond"),
        ("tails.npy", np.nan, "probabilities beyond"),
    ],
)
def test_rows_that_no_export_writes_are_refused(
    cache, top_k_cache, name, value, message
):
    """As found in a cache that is too large for its checksums to be compared."""
    directory = cache if name == "logits.npy" else top_k_cache
    array = np.lib.format.open_memmap(directory / name, "r+")
    array[0, 3, 1] = value
    del array
    sha256 = teacher_logits.sha256(directory / name)
    edit_manifest(directory, lambda m: m["arrays"][name].update(sha256=sha256))
    opened = teacher_logits.open_cache(directory)
    opened.batch(np.array([0]), np.array([2]))
    with pytest.raises(InputError, match=rf"is damaged: .*{message}"):
        opened.batch(np.array([0, 0]), np.array([2, 3]))


@pytest.mark.parametrize("version", [1, 3])
def test_formats_of_the_past_and_the_future_are_named(cache, version):
    text = json.dumps({"format_version": version})
    (cache / teacher_logits.MANIFEST).write_text(text)
    message = f"format {version}, this program reads 2. Export it again"
    with pytest.raises(InputError, match=message):
        teacher_logits.open_cache(cache)


def test_missing_and_unfinished_caches_are_told_apart(tmp_path, source):
    with pytest.raises(InputError, match=r"no teacher cache at .*found: none"):
        teacher_logits.open_cache(tmp_path / "nothing")
    open_writer(tmp_path / "begun", source)
    with pytest.raises(InputError, match="an unfinished export"):
        teacher_logits.open_cache(tmp_path / "begun")


def test_examples_are_kept(cache_of_views):
    examples = teacher_logits.open_cache(cache_of_views).examples()
    assert examples.keys() == EXAMPLES.keys()
    for name, array in EXAMPLES.items():
        np.testing.assert_array_equal(examples[name], array)


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda p: p.write_bytes(b"")])
def test_missing_and_damaged_examples_are_refused(cache_of_views, damage):
    damage(cache_of_views / "examples.npz")
    opened = teacher_logits.open_cache(cache_of_views)
    with pytest.raises(InputError, match=r"examples.npz is missing or damaged.*Export"):
        opened.examples()


def write_archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: write_archive(p, a=bytes(2**27 + 1)), "more than 134,217,728 bytes"),
        (lambda p: write_archive(p, a=b"no array"), "something else than arrays"),
        (lambda p: np.savez(p, image=np.ones(3)), "other numbers than integers"),
        (lambda p: np.savez(p, image=np.array([{}])), "pickle"),
        (lambda p: p.write_bytes(b"PK\x03\x04"), "not a zip"),
    ],
)
def test_other_examples_than_an_export_writes_are_refused(
    cache_of_views, write, message
):
    path = cache_of_views / "examples.npz"
    write(path)
    sha256 = teacher_logits.sha256(path)
    edit_manifest(cache_of_views, lambda m: m.update(examples_sha256=sha256))
    opened = teacher_logits.open_cache(cache_of_views)
    with pytest.raises(InputError, match=rf"missing or damaged .*{message}.*Export"):
        opened.examples()


def test_examples_of_a_plain_cache_are_refused(cache):
    with pytest.raises(InputError, match=r"examples.npz is missing"):
        teacher_logits.open_cache(cache).examples()


# Another source


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
        teacher_logits.open_cache(cache).check_source(other, config="c.py:x")
    assert "python -m teacher.export_logits --config=c.py:x" in str(caught.value)


def test_a_cache_follows_a_folder_that_was_moved(tmp_path, source):
    here = dataclasses.replace(source, name="folder:/a")
    cache = teacher_logits.open_cache(write(tmp_path / "cache", here))
    cache.check_source(dataclasses.replace(source, name="folder:/b"))
    with pytest.raises(
        InputError, match="name='folder:/a', this run has name='digits'"
    ):
        cache.check_source(source)
    other = dataclasses.replace(source, name="folder:/b", fingerprint="f" * 64)
    with pytest.raises(InputError, match="other images or labels of folder:/b"):
        cache.check_source(other)


def test_cache_of_another_view_is_refused(cache, source):
    opened = teacher_logits.open_cache(cache)
    with pytest.raises(InputError, match=r"distillation.view=plain, or make another"):
        teacher_views.check(
            opened, source, SEEN, view="same", mixing="none", num_views=1
        )


def test_differences_of_two_exports_are_named_by_field(source):
    one, two = (
        teacher_writer.identity(manifest_for(source, views, arch=arch, top1=top1))
        for views, arch, top1 in ((2, "resnet50", 0.9), (3, "vit_b_16", 0.8))
    )
    assert teacher_writer.differences(one, one) == {}
    assert teacher_writer.differences(one, two) == {
        "views.count": ("2", "3"),
        "teacher.arch": ("'resnet50'", "'vit_b_16'"),
    }


# The largest logits in place of all

MANY, KEPT, TAU = 200, 7, 3.0


@pytest.fixture(scope="module")
def teacher_says():
    """float32 [64, MANY], from nearly flat rows to nearly certain ones."""
    rng = np.random.default_rng(1)
    scale = np.linspace(0.1, 8, 64)[:, None]
    return (scale * rng.normal(size=(64, MANY))).astype(np.float32)


@pytest.fixture(scope="module")
def encoding():
    return Encoding(MANY, KEPT, TAU)


def stored(encoding, logits):
    """What `encode` gives, of the types that the files have."""
    encoded = encoding.encode(logits)
    assert encoded.keys() == encoding.arrays.keys()
    for name, (kind, shape) in encoding.arrays.items():
        assert encoded[name].dtype == kind
        assert encoded[name].shape == (len(logits), *shape)
    return encoded


@pytest.mark.parametrize("tau", [1.0, TAU])
def test_softmax_of_the_kept_logits_and_of_the_others_is_the_teachers(
    encoding, teacher_says, tau
):
    decoded = encoding.decode(stored(encoding, teacher_says), tau)
    assert decoded.dtype == np.float32
    theirs = scipy.special.softmax(teacher_says.astype(np.float64) / tau, axis=1)
    mine = scipy.special.softmax(decoded.astype(np.float64) / tau, axis=1)
    top = np.argsort(-teacher_says, axis=1)[:, :KEPT]
    others = np.ones_like(theirs, bool)
    np.put_along_axis(others, top, False, axis=1)
    tail = theirs.sum(axis=1, where=others)
    # The order of the logits rounds by 2**-7 at 16 .. 32.
    np.testing.assert_allclose(
        np.take_along_axis(mine, top, 1), np.take_along_axis(theirs, top, 1), rtol=0.01
    )
    np.testing.assert_allclose(mine.sum(axis=1, where=others), tail, rtol=1e-5)
    # What is lost is the shape of the tail, so much and no more.
    divergence = scipy.special.rel_entr(theirs, mine).sum(axis=1)
    shape = scipy.special.entr(theirs / tail[:, None]).sum(axis=1, where=others)
    lost = tail * (np.log(MANY - KEPT) - shape)
    np.testing.assert_allclose(divergence, lost, atol=1e-4)
    assert (lost <= tail * np.log(MANY - KEPT)).all()


def test_the_two_tails_are_not_one(encoding, teacher_says):
    """A softmax that is right at one temperature is wrong at the other."""
    decoded = encoding.decode(stored(encoding, teacher_says), TAU)
    theirs, mine = (
        scipy.special.softmax(logits.astype(np.float64), axis=1).max(axis=1)
        for logits in (teacher_says, decoded)
    )
    assert np.abs(theirs - mine).max() > 0.01


@pytest.mark.parametrize("tau", [1.0, TAU])
def test_decision_of_the_teacher_is_kept(encoding, teacher_says, tau):
    decoded = encoding.decode(stored(encoding, teacher_says), tau)
    np.testing.assert_array_equal(decoded.argmax(1), teacher_says.argmax(1))


@pytest.mark.parametrize("kept", [1, 2, 3])
@pytest.mark.parametrize("tau", [1.0, TAU])
def test_equal_logits_keep_the_order_of_their_classes(kept, tau):
    logits = np.zeros((5, 5), np.float32)
    logits[1, [2, 4]] = 3  # a tie for the first place
    logits[2] = [1, 5, 1, 1, 1]  # for the last that is kept
    logits[3, 1:] = -9
    logits[4, [1, 3, 4]] = [2, 4, 2]
    encoding = Encoding(5, kept, TAU)
    encoded = stored(encoding, logits)
    for row, expected in enumerate(
        [[0, 1, 2], [2, 4, 0], [1, 0, 2], [0, 1, 2], [3, 1, 4]]
    ):
        assert encoded["indices.npy"][row].tolist() == expected[:kept]
    decoded = encoding.decode(encoded, tau)
    np.testing.assert_array_equal(decoded.argmax(1), logits.argmax(1))


@pytest.mark.parametrize("value", [0.0, 1.5, 12.25, -7.0])
@pytest.mark.parametrize("tau", [1.0, TAU])
def test_rounding_does_not_decide_between_equal_logits(value, tau):
    for classes in (3, 5, 7, 10, 11, 100, 1000):
        for kept in range(1, min(classes, 10)):
            encoding = Encoding(classes, kept, TAU)
            encoded = encoding.encode(np.full((1, classes), value, np.float32))
            assert encoding.decode(encoded, tau).argmax() == 0


def test_a_vanished_tail_is_finite():
    logits = np.zeros((1, 10), np.float32)
    logits[0, 4] = 1000
    encoding = Encoding(10, 1, 1.0)
    encoded = stored(encoding, logits)
    assert encoded["tails.npy"].max() == 0
    decoded = encoding.decode(encoded, 1.0)
    assert np.isfinite(decoded).all()
    assert scipy.special.softmax(decoded)[0, 4] == 1


@pytest.mark.parametrize("top_k", [0, -1, 10, 11])
def test_top_k_of_all_classes_or_none_is_refused(top_k):
    with pytest.raises(InputError, match=rf"--top_k={top_k}: expected 1 .. 9"):
        Encoding(10, top_k, TAU)


@pytest.mark.parametrize("tau", [0.0, -1.0, np.nan, None])
def test_tails_need_a_temperature(tau):
    with pytest.raises(InputError, match=f"distillation.tau={tau} is not above 0"):
        Encoding(10, 3, tau)


def test_other_temperatures_are_refused(top_k_cache, cache):
    for tau in (1.0, 3.0):
        assert teacher_logits.open_cache(top_k_cache, tau=tau).tau == tau
    with pytest.raises(InputError, match=r"of 1 or 3, not 2\. Set --config.*tau=3, or"):
        teacher_logits.open_cache(top_k_cache, tau=2.0)
    teacher_logits.open_cache(cache, tau=2.0)


def test_batches_are_decoded_at_the_temperature_of_the_cache(top_k_cache):
    views, indices = np.array([0, 1, 3]), np.array([3, 4, 5])
    logits = example_logits(2)[views % 2, indices]
    encoding = Encoding(CLASSES, **TOP_K)
    for tau in (1.0, 3.0):
        opened = teacher_logits.open_cache(top_k_cache, tau=tau)
        np.testing.assert_array_equal(
            opened.batch(views, indices), encoding.decode(encoding.encode(logits), tau)
        )


@pytest.mark.parametrize(
    ("classes", "kind"), [(2**16, np.uint16), (2**16 + 1, np.uint32)]
)
def test_class_numbers_have_room(classes, kind):
    encoding = Encoding(classes, 2, TAU)
    assert encoding.arrays["indices.npy"] == (kind, (2,))
    logits = np.zeros((1, classes), np.float32)
    logits[0, -1] = 20
    encoded = stored(encoding, logits)
    assert encoded["indices.npy"].tolist() == [[classes - 1, 0]]
    assert encoding.decode(encoded, 1.0).argmax() == classes - 1


# Writing


def test_rows_are_written_where_they_belong(tmp_path, source):
    """In the order of an export; partners far apart, each view for itself."""
    odd = sources.load("digits", f"train[:{LENGTH - 1}]")
    order = ExportOrder(len(odd), num_views=2)
    expected = example_logits(2)[:, :-1]
    for logits, directory in ((None, "all"), (TOP_K, "largest")):
        writer = open_writer(tmp_path / directory, odd, 2, logits)
        for start in range(0, len(order), 8):
            index, view = order.entries(start, min(start + 8, len(order)))
            writer.append(expected[view, index], view * len(odd) + index)
        writer.finish()
    opened = teacher_logits.open_cache(tmp_path / "all")
    np.testing.assert_array_equal(opened.arrays["logits.npy"], expected)
    opened = teacher_logits.open_cache(tmp_path / "largest")
    encoded = Encoding(CLASSES, **TOP_K).encode(expected.reshape(-1, CLASSES))
    for name, array in opened.arrays.items():
        np.testing.assert_array_equal(array, encoded[name].reshape(array.shape))


@pytest.mark.parametrize(("length", "views"), [(30, None), (29, None), (30, 2), (7, 3)])
def test_entries_are_those_of_the_order(length, views):
    manifest = manifest_for(sources.load("digits", f"train[:{length}]"), views)
    order = ExportOrder(length, views or 1, plain=views is None)
    assert teacher_logits.entries(manifest) == len(order)


# A kill can come between any two writes: the next start must end in the same bytes.


def test_resumed_export_is_byte_identical(tmp_path, source, cache):
    writer = open_writer(tmp_path / "killed", source)
    writer.append(example_logits()[0, :7])
    writer.append(example_logits()[0, 7:14])
    del writer
    assert open_writer(tmp_path / "killed", source).entries_done == 14
    write(tmp_path / "killed", source)
    assert files(tmp_path / "killed") == files(cache)


def test_rows_written_but_not_yet_recorded_are_written_again(
    tmp_path, source, cache, monkeypatch
):
    writer = open_writer(tmp_path / "killed", source)
    writer.append(example_logits()[0, :7])
    monkeypatch.setattr(writer, "_save_progress", lambda: None)  # killed before it
    writer.append(np.full((7, CLASSES), 3.0))
    assert open_writer(tmp_path / "killed", source).entries_done == 7
    write(tmp_path / "killed", source)
    assert files(tmp_path / "killed") == files(cache)


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


@pytest.mark.parametrize("call", [0, 1, 2, 3, 8])
def test_kill_between_the_arrays_of_a_block(
    tmp_path, source, top_k_cache, monkeypatch, call
):
    """Of three arrays some have the block and some have not."""
    with monkeypatch.context() as patch:
        kill_at(patch, np.memmap, "flush", call)
        with pytest.raises(Killed):
            write(tmp_path / "killed", source, views=2, logits=TOP_K)
    resumed = open_writer(tmp_path / "killed", source, views=2, logits=TOP_K)
    assert resumed.entries_done == call // 3 * 7
    del resumed
    write(tmp_path / "killed", source, views=2, logits=TOP_K)
    assert files(tmp_path / "killed") == files(top_k_cache)


@pytest.mark.parametrize("call", range(3))
def test_kill_while_the_files_are_made(
    tmp_path, source, top_k_cache, monkeypatch, call
):
    with monkeypatch.context() as patch:
        kill_at(patch, np.lib.format, "open_memmap", call)
        with pytest.raises(Killed):
            open_writer(tmp_path / "killed", source, views=2, logits=TOP_K)
    write(tmp_path / "killed", source, views=2, logits=TOP_K)
    assert files(tmp_path / "killed") == files(top_k_cache)


def half_a_file(file, **arrays):
    file.write(b"PK")
    file.flush()
    raise Killed


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (np, "savez", half_a_file),
        (Path, "replace", 0),  # of the examples
        *((teacher_logits, "sha256", call) for call in range(2)),
        (teacher_writer, "replace_file", 10),  # after 1 + 9 of the progress
    ],
)
def test_kill_before_the_manifest(
    tmp_path, source, cache_of_views, monkeypatch, owner, name, call
):
    with monkeypatch.context() as patch:
        if callable(call):
            patch.setattr(owner, name, call)
        else:
            kill_at(patch, owner, name, call)
        with pytest.raises(Killed):
            write(tmp_path / "killed", source, views=2)
    with pytest.raises(InputError, match="an unfinished export"):
        teacher_logits.open_cache(tmp_path / "killed")
    write(tmp_path / "killed", source, views=2)
    assert files(tmp_path / "killed") == files(cache_of_views)


def test_kill_after_the_manifest_leaves_a_cache(tmp_path, source, monkeypatch):
    kill_at(monkeypatch, Path, "unlink", 0)
    with pytest.raises(Killed):
        write(tmp_path / "killed", source, views=2)
    assert teacher_logits.open_cache(tmp_path / "killed").examples()


def test_kill_after_the_last_row_is_finished_by_the_next_start(tmp_path, source, cache):
    writer = open_writer(tmp_path / "killed", source)
    writer.append(example_logits()[0])
    del writer
    write(tmp_path / "killed", source)
    assert files(tmp_path / "killed") == files(cache)


@pytest.mark.parametrize("views", [None, 2])
def test_finish_refuses_missing_rows(tmp_path, source, views):
    writer = open_writer(tmp_path / "cache", source, views)
    writer.append(example_logits()[0, :7])
    total = LENGTH * (views or 1)
    with pytest.raises(ValueError, match=f"entries_done=7 of {total}"):
        writer.finish()
    assert files(tmp_path / "cache").keys() == {"logits.npy", "progress.json"}


@pytest.mark.parametrize(
    "change",
    [{"weights_sha256": "1"}, {"views": 3}, {"logits": TOP_K | {"top_k": 2}}],
)
def test_unfinished_export_of_another_teacher_is_refused(tmp_path, source, change):
    settings = {"views": 2, "logits": TOP_K}
    open_writer(tmp_path / "cache", source, **settings)
    before = files(tmp_path / "cache")
    with pytest.raises(InputError, match="unfinished export of another teacher"):
        open_writer(tmp_path / "cache", source, **settings | change)
    assert files(tmp_path / "cache") == before


def test_finished_cache_is_not_overwritten(cache, source):
    before = files(cache)
    with pytest.raises(InputError, match="already holds a finished teacher cache"):
        open_writer(cache, source)
    assert files(cache) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("logits.npy", lambda old: None),
        ("logits.npy", lambda old: b"\x93NUMPY"),
        # Opened for writing it would be filled up with zeros.
        ("logits.npy", lambda old: old[:-1]),
        ("progress.json", lambda old: b""),
        ("progress.json", lambda old: b'{"entries_done": 7}'),
        ("progress.json", lambda old: old.replace(b"entries_done", b"rows_done")),
        ("progress.json", lambda old: old.replace(b'done": 7', b'done": 31')),
        ("progress.json", lambda old: old.replace(b'done": 7', b'done": -1')),
        ("progress.json", lambda old: old.replace(b'done": 7', b'done": "7"')),
        ("progress.json", lambda old: b"[" * 100_000),
    ],
)
def test_damaged_unfinished_export_is_refused(tmp_path, source, name, content):
    open_writer(tmp_path / "cache", source).append(example_logits()[0, :7])
    path = tmp_path / "cache" / name
    damaged = content(path.read_bytes())
    path.unlink() if damaged is None else path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"damaged unfinished export.*Delete it"):
        open_writer(tmp_path / "cache", source)


@pytest.mark.parametrize("target", ["file", "/dev/zero"])
def test_a_new_export_does_not_write_through_a_link(tmp_path, source, target):
    elsewhere = tmp_path / "file"
    elsewhere.write_bytes(b"somebody's")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "logits.npy").symlink_to(tmp_path / target)
    writer = open_writer(tmp_path / "cache", source)
    writer.append(example_logits()[0])
    writer.finish()
    assert elsewhere.read_bytes() == b"somebody's"
    assert not (tmp_path / "cache" / "logits.npy").is_symlink()
    teacher_logits.open_cache(tmp_path / "cache")


@pytest.mark.parametrize("logits", [None, TOP_K])
@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "non-finite logits"), (np.inf, "non-finite"), (7e4, "exceed float16")],
)
def test_logits_that_float16_cannot_hold_are_refused(
    tmp_path, source, logits, value, message
):
    writer = open_writer(tmp_path / "cache", source, views=2, logits=logits)
    with pytest.raises(InputError, match=message):
        writer.append(np.full((2, CLASSES), value, np.float32))
    assert writer.entries_done == 0


@pytest.mark.parametrize(
    ("views", "logits", "needed"),
    [(None, None, 30 * 20), (2, None, 60 * 20), (2, TOP_K, 60 * (6 + 6 + 8))],
)
def test_full_disk_is_found_before_anything_is_written(
    tmp_path, source, monkeypatch, views, logits, needed
):
    usage = shutil.disk_usage(tmp_path)._replace(free=500)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    message = rf"takes {needed:,} bytes, and .* has 500 free"
    with pytest.raises(InputError, match=message):
        open_writer(tmp_path / "cache", source, views, logits)
    assert files(tmp_path / "cache") == {}


def test_directory_that_is_a_file_is_refused(tmp_path, source):
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        open_writer(tmp_path / "cache", source)
