"""Broken and hostile files: whatever is read is refused in words, or read.

Every reader is shown damaged copies of a small whole example. No other exception than
`InputError` may leave it, nothing may run, hang, or be opened outside of the directory
that was given (`hostile.refused_or_read`). What was found so stands as an ordinary
test beside the module that it concerned. A longer search than the suite's:

    python -m pytest tests/test_fuzz.py --hypothesis-profile=thorough
"""

import io
import json
import os
import pickle
import random
import struct
import subprocess
import zipfile
from pathlib import Path

import hostile
import numpy as np
import pytest
import run_directories
import tensorstore
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from deit_jax import evaluate
from deit_jax.data import sources
from deit_jax.data.augment.recipes import Augmentation
from deit_jax.data.sources import decode, folder, image_files
from deit_jax.data.student_views import StudentViews
from deit_jax.distillation import (
    teacher_logits,
    teacher_parts,
    teacher_views,
    teacher_writer,
)
from deit_jax.errors import InputError
from deit_jax.models import model_card, variants
from deit_jax.models.params import abstract_params
from deit_jax.reporting import contents, results, runs
from deit_jax.training import checkpoint, metrics, summary, writers
from deit_jax.weights import files, hugging_face, timm
from deit_jax.weights.load import load

VARIANT = "vit_nano_patch8_32"
DATA = st.data()


# The teacher cache, whole, in parts and unfinished.

LENGTH, CLASSES = 6, 10
SEEN = StudentViews(augment_seed=3, repeats=1, size=32, settings=Augmentation())
KINDS = {
    "plain": {"top_k": None, "tau": None},
    "same": {"top_k": 3, "tau": 3.0},
}


def digits():
    return sources.load("digits", f"train[:{LENGTH}]")


def manifest_of(kind: str) -> dict:
    seen = SEEN if kind == "same" else None
    return {
        "source": teacher_logits.describe_source(digits()),
        "views": teacher_views.describe(kind, 2 if seen else 1, seen),
        "logits": KINDS[kind],
        "teacher": {"arch": "resnet18", "top1": 0.5, "top1_split": "test"},
    }


def write_cache(directory: Path, kind: str, shard=None, stop=None) -> None:
    manifest, examples = manifest_of(kind), None
    start, total = 0, teacher_logits.entries(manifest)
    if shard:
        manifest["shard"] = shard.describe(total, 2)
        start, total = manifest["shard"]["start"], manifest["shard"]["stop"]
    if kind == "same" and not (shard and shard.number):
        examples = teacher_views.examples(SEEN, digits(), 2)
    writer = teacher_writer.Writer(directory, manifest, examples)
    rows = np.sin(np.arange(start, total)[:, None] + np.arange(CLASSES))
    writer.append(rows[:stop])
    if stop is None:
        writer.finish()


@pytest.fixture(scope="module", params=sorted(KINDS))
def cache(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("cache")
    write_cache(directory, request.param)
    return request.param, hostile.snapshot(directory)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    directory = tmp_path_factory.mktemp("parts")
    for number in range(2):
        shard = teacher_parts.Shard(number, 2)
        write_cache(directory / shard.name, "same", shard)
    return hostile.snapshot(directory)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("unfinished")
    write_cache(directory, "plain", stop=4)
    return hostile.snapshot(directory)


def use_cache(directory, kind: str):
    """All that a start of training and its first step do with a cache."""
    opened = teacher_logits.open_cache(directory, tau=KINDS[kind]["tau"] or 1.0)
    teacher_views.check(opened, digits(), SEEN, view=kind, mixing="none", num_views=2)
    teacher_views.check_examples(opened, digits(), SEEN, mixing="none")
    logits = opened.batch(np.array([0, 1, 5]), np.array([0, 3, LENGTH - 1]))
    assert logits.shape == (3, CLASSES)
    assert np.isfinite(logits).all()
    return opened


def test_a_whole_cache_is_read(cache):
    kind, whole = cache
    with hostile.copy_of(whole) as directory:
        read = hostile.refused_or_read(lambda d: use_cache(d, kind), directory)
        assert read is not None


@given(DATA)
def test_a_damaged_cache_is_refused_or_read(cache, data):
    kind, whole = cache
    done = data.draw(hostile.damages(whole, manifests=[teacher_logits.MANIFEST]))
    with hostile.copy_of(whole, done) as directory:
        hostile.refused_or_read(lambda d: use_cache(d, kind), directory)


@given(DATA)
def test_damaged_parts_are_refused_or_joined(parts, data):
    manifests = [name for name in parts if name.endswith(teacher_logits.MANIFEST)]
    done = data.draw(hostile.damages(parts, manifests=manifests))
    with hostile.copy_of(parts, done) as directory:
        hostile.refused_or_read(teacher_parts.join, directory)


@given(DATA)
def test_a_damaged_unfinished_export_is_refused_or_resumed(unfinished, data):
    done = data.draw(hostile.damages(unfinished))

    def resume(directory):
        writer = teacher_writer.Writer(directory, manifest_of("plain"))
        rest = LENGTH - writer.entries_done
        if rest:
            writer.append(np.zeros((rest, CLASSES)))
        writer.finish()

    with hostile.copy_of(unfinished, done) as directory:
        hostile.refused_or_read(resume, directory)


# Run directories.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a training leaves, and the parameters in it."""
    directory = tmp_path_factory.mktemp("run")
    _, params = run_directories.make(directory, VARIANT, ema=True)
    rng = np.random.default_rng(0)
    labels, logits = np.arange(30) % 10, rng.normal(size=(30, 10))
    tables = metrics.tables(logits, labels)
    scores = metrics.classification(logits, labels) | metrics.averages(tables)
    config = {
        "seed": 0,
        "dataset": {"name": "digits", "eval_split": "test", "data_dir": ""},
        "model": {"variant": VARIANT},
        "augment": {"seed": 0, "mixup": 0.0},
    }
    (directory / "config.json").write_text(json.dumps(config))
    with open(directory / writers.METRICS, "w") as file:
        for step in (1, 2, 3):
            row = {"step": step, "epoch": step / 3, "train/loss": 1 / step}
            row |= {"train/top1": 0.5, "train/loss_ce": 1.0, "eval/token_cosine": 0.5}
            row |= {f"eval/class/{name}": value for name, value in scores.items()}
            file.write(json.dumps(row) + "\n")
    facts = {
        "variant": VARIANT,
        "dataset": "digits",
        "class_names": list("0123456789"),
        "eval_split": "test",
        "eval_images": 30,
        "seed": 0,
        "steps": 3,
        "epochs": 1.0,
        "batch_size": 8,
        "parameters": 1000,
        "flops_per_image": 10**6,
        "seconds": 2.5,
        "images_per_sec": 12.5,
        "resumed_at_step": 0,
        "eval": {"class": scores, "token_cosine": 0.5},
        "eval_ema": {"class": scores},
        "teacher": {"arch": "resnet18", "top1": 0.5, "top1_split": "test"},
        "devices": ["cpu"],
        "absent_classes": [],
        "tables": {"eval": {"class": tables}},
    }
    summary.write(directory, facts)
    return hostile.snapshot(directory), params


@pytest.fixture(scope="module")
def small_files(run):
    return {name: content for name, content in run[0].items() if "/" not in name}


def use_small_files(directory):
    """What the commands do with a run directory before they look at its checkpoints."""

    def each():
        yield lambda: model_card.read(directory).create_model()
        yield lambda: evaluate._dataset_of(directory)
        yield lambda: summary.show(
            summary.read(directory) or facts_of(directory), directory
        )
        yield lambda: writers.MetricsFile(directory, 2).close()
        yield lambda: report_on(directory)

    refusal = None
    for use in each():
        try:
            use()
        except InputError as error:
            refusal = error
    if refusal:
        raise refusal


def facts_of(directory):
    raise InputError(f"{directory} is unfinished")


def report_on(directory):
    """All that a report says but for its pictures, which take seconds to draw."""
    groups = runs.group(runs.read([directory]))
    runs.config_differences(groups)
    for make in (contents._overview, contents._cost, contents._versions):
        make(groups)
    results.scores(groups)
    results.every_head(groups)
    for run in groups[0].runs:
        for name in ("train/loss", "eval/class/top1"):
            for x in ("step", "epoch"):
                run.series(name, x=x)
        if tables := run.tables():
            for table in tables.values():
                np.array(list(table.values()) if isinstance(table, dict) else table)


def test_a_whole_run_directory_is_read(small_files):
    with hostile.copy_of(small_files) as directory:
        use_small_files(directory)


@given(DATA)
def test_damaged_files_of_a_run_are_refused_or_read(small_files, data):
    done = data.draw(hostile.damages(small_files))
    with hostile.copy_of(small_files, done) as directory:
        hostile.refused_or_read(use_small_files, directory)


@pytest.fixture(scope="module")
def model():
    return variants.create(VARIANT, num_classes=10)


def use_checkpoint(directory, model):
    found = checkpoint.weights_in(directory)
    return [checkpoint.load_params(directory, model, weights=kind) for kind in found]


@given(DATA)
def test_a_damaged_checkpoint_is_refused_or_read(run, model, data):
    whole, params = run
    names = [name for name in whole if name.startswith("checkpoints/")]
    done = data.draw(hostile.damages(names))
    with hostile.copy_of(whole, done) as directory:
        read = hostile.refused_or_read(lambda d: use_checkpoint(d, model), directory)
    # What is read is what was written: there are checksums.
    for (found, _), kind in zip(read or (), ("raw", "ema"), strict=False):
        np.testing.assert_array_equal(
            found["head"]["kernel"], params[kind]["head"]["kernel"]
        )


def open_store(directory):
    base = f"file://{directory}/checkpoints/3/state/"
    return tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()


@pytest.fixture(scope="module")
def stored(run):
    """What a checkpoint is of: the keys and values of an OCDBT store."""
    with hostile.copy_of(run[0]) as directory:
        store = open_store(directory)
        return {key: store.read(key).result().value for key in store.list().result()}


@given(DATA)
def test_a_checkpoint_that_was_made_wrong_is_refused_or_read(run, stored, model, data):
    """Its checksums are true, and an array says of itself what it is not."""
    whole, _ = run
    key = data.draw(st.sampled_from([k for k in sorted(stored) if b"params" in k]))
    if key.endswith(b".zarray"):
        about = json.loads(stored[key])
        place, odd = data.draw(st.integers(0, 99)), data.draw(hostile.ODD_VALUES)
        value = hostile.dump(hostile.replace(about, random.Random(place), odd))
        value = value.encode()
    else:
        value = data.draw(st.binary(max_size=99))
    beside = {
        name: content
        for name, content in whole.items()
        if "/state/" not in name or name.endswith("_METADATA")
    }
    with hostile.copy_of(beside) as directory:
        store = open_store(directory)
        with tensorstore.Transaction() as transaction:
            for name, content in (stored | {key: value}).items():
                store.with_transaction(transaction)[name] = content
        hostile.refused_or_read(lambda d: use_checkpoint(d, model), directory)


# Pictures and folders of them.


def encode(mode: str, form: str, **options) -> bytes:
    """9 x 8 pixels, to be turned where the format can say so."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 4), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    if form != "GIF":
        options["exif"] = exif
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form, **options)
    return file.getvalue()


PICTURES = {
    "rgb.png": encode("RGBA", "PNG"),
    "palette.png": encode("P", "PNG"),
    "grey.png": encode("I;16", "PNG"),
    "a.jpg": encode("RGB", "JPEG"),
    "progressive.jpg": encode("CMYK", "JPEG", progressive=True),
    "a.gif": encode("P", "GIF"),
    "two.gif": encode(
        "P", "GIF", save_all=True, append_images=[Image.new("P", (8, 9))]
    ),
    "a.webp": encode("RGBA", "WEBP"),
    "lossless.webp": encode("RGB", "WEBP", lossless=True),
    "a.bmp": encode("RGB", "BMP"),
    "a.tif": encode("RGB", "TIFF"),
    "deflated.tif": encode("RGBA", "TIFF", compression="tiff_adobe_deflate"),
    "lzw.tif": encode("L", "TIFF", compression="tiff_lzw"),
}
FOLDER = {
    f"{split}/{kind}/{number}{name}": content
    for split in ("train", "val")
    for number, (name, content) in enumerate(sorted(PICTURES.items())[:4])
    for kind in ("cats", "dogs")
}
NAMES = [
    "a\nb",
    "\x1b[2J",
    "\udcff",
    "ñ",
    "\u202e",
    "con",
    "-rf",
    " ",
    "a" * 250,
    "'",
    "*",
]


def look(directory):
    """At every file of a directory, as prediction does, until one is refused."""
    found, _ = image_files.find([directory])
    refusal = None
    for path in found:
        try:
            image = image_files.read(path)
        except InputError as error:
            refusal = error
        else:
            assert image.mode == "RGB"
            assert np.asarray(image).shape == (*image.size[::-1], 3)
    if refusal:
        raise refusal


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_a_whole_picture_is_read(name):
    image = decode.open_rgb(PICTURES[name], name)
    assert image.size in [(8, 9), (9, 8)]


@given(DATA)
def test_a_damaged_picture_is_refused_or_read(data):
    name = data.draw(st.sampled_from(sorted(PICTURES)))
    done = data.draw(hostile.damages([name]))
    with hostile.copy_of({name: PICTURES[name]}, done) as directory:
        hostile.refused_or_read(look, directory)


def strange():
    """Something with a strange name, or a link, in a folder of pictures."""
    there = st.sampled_from(["train", "train/cats", "val/dogs"])
    ending = st.sampled_from(["", ".png", ".JPG", ".txt"])
    name = st.sampled_from(NAMES)
    path = st.builds(
        lambda *parts: f"{parts[0]}/{parts[1]}{parts[2]}", there, name, ending
    )
    kinds = st.sampled_from(["become_directory", "become_pipe", "become_device"])
    target = st.sampled_from([".", "..", "../..", "../dogs", "nowhere", "/dev/stdin"])
    content = st.sampled_from([b"", b"x", PICTURES["rgb.png"]])
    return st.one_of(
        st.builds(hostile.Damage, path, kinds),
        st.builds(lambda p, t: hostile.Damage(p, "link", (t,)), path, target),
        st.builds(lambda p, c: hostile.Damage(p, "write", (c,)), path, content),
    )


def open_and_decode(directory):
    for split in ("train", "val"):
        source = folder.open_folder(f"folder:{directory}", split)
        print(source.class_names, file=io.TextIOWrapper(io.BytesIO(), "utf-8"))
        for image, label in source.pictures(range(len(source))):
            assert image.mode == "RGB"
            assert 0 <= label < source.num_classes


def test_a_whole_folder_is_read():
    with hostile.copy_of(FOLDER) as directory:
        open_and_decode(directory)


@given(DATA)
def test_a_damaged_folder_is_refused_or_read(data):
    done = data.draw(st.lists(strange(), max_size=2))
    done += (
        data.draw(hostile.damages(FOLDER))
        if not done or data.draw(st.booleans())
        else []
    )
    with hostile.copy_of(FOLDER, done) as directory:
        hostile.refused_or_read(open_and_decode, directory)


# Weights.


@pytest.fixture(scope="module")
def tensors():
    """timm's state dict of the small model, of zeros and three classes."""
    model_ = variants.create(VARIANT, num_classes=3)
    abstract = abstract_params(model_)
    zeros = checkpoint.jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract
    )
    return timm.from_flax(zeros)


@pytest.fixture(scope="module", params=["timm", "hf"])
def saved(request, tensors, tmp_path_factory):
    """A directory as timm or transformers save it."""
    directory = tmp_path_factory.mktemp("weights")
    card = model_card.ModelCard(
        VARIANT, 32, ("a", "b", "c"), (0.5,) * 3, (0.5,) * 3, crop_ratio=0.9
    )
    configs = {"config.json": timm.config(card)}
    state_dict = tensors
    if request.param == "hf":
        state_dict = hugging_face.from_timm(tensors)
        configs["config.json"] = hugging_face.config(card)
        configs["preprocessor_config.json"] = hugging_face.preprocessor_config(card)
    files.write_safetensors(directory / "model.safetensors", state_dict)
    for name, content in configs.items():
        (directory / name).write_text(json.dumps(content))
    return hostile.snapshot(directory)


@given(DATA)
def test_damaged_configs_of_weights_are_refused_or_read(saved, data):
    names = [name for name in saved if name.endswith(".json")]
    done = data.draw(hostile.damages(names))
    with hostile.copy_of(saved, done) as directory:
        hostile.refused_or_read(load, directory)


SMALL = {
    "cls_token": np.ones((1, 1, 2), np.float32),
    "head.weight": np.ones((3, 2), np.float32),
    "blocks.0.norm1.bias": np.ones(2, np.float32),
}


def read_all(path):
    for tensor in files.read_tensors(path).values():
        values = tensor.read()
        assert values.shape == tensor.shape
        assert values.dtype == np.float32


def safetensors_of(header: str, payload: bytes, length: int | None = None) -> bytes:
    length = len(header.encode()) if length is None else length
    return struct.pack("<Q", length) + header.encode() + payload


@given(DATA)
def test_damaged_safetensors_are_refused_or_read(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("s") / "w.safetensors"
    files.write_safetensors(file, SMALL)
    content = file.read_bytes()
    if data.draw(st.booleans()):
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        place, odd = data.draw(st.integers(0, 999)), data.draw(hostile.ODD_VALUES)
        text = hostile.dump(hostile.replace(header, random.Random(place), odd))
        sizes = st.sampled_from([None, None, 0, 1, 2**31, 2**60, 2**63, 2**64 - 1])
        content = safetensors_of(text, content[8 + size :], data.draw(sizes))
        done = []
    else:
        done = data.draw(hostile.damages(["w.safetensors"]))
    with hostile.copy_of({"w.safetensors": content}, done) as directory:
        hostile.refused_or_read(lambda d: read_all(d / "w.safetensors"), directory)


def torch_files() -> dict[str, bytes]:
    torch = pytest.importorskip("torch")
    state_dict = {name: torch.tensor(value) for name, value in SMALL.items()}
    found = {}
    for name, zipped in (("w.pth", True), ("legacy.pth", False)):
        file = io.BytesIO()
        torch.save(
            {"model": state_dict, "epoch": 3},
            file,
            _use_new_zipfile_serialization=zipped,
        )
        found[name] = file.getvalue()
    return found


def rezip(content: bytes, changed: dict[str, bytes], **options) -> bytes:
    """A torch file, stored again with other members; the sums of a zip are true."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            inner = name.partition("/")[2]
            new.writestr(
                zipfile.ZipInfo(name), changed.get(inner, old.read(name)), **options
            )
    return file.getvalue()


@given(DATA)
def test_damaged_torch_files_are_refused_or_read(data):
    whole = torch_files()
    name = data.draw(st.sampled_from(sorted(whole)))
    done = data.draw(hostile.damages([name]))
    content = whole[name]
    if name == "w.pth" and data.draw(st.booleans()):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            inner = data.draw(st.sampled_from(["data.pkl", "data.pkl", "version"]))
            member = archive.read(f"archive/{inner}")
        with hostile.copy_of({"m": member}) as directory:
            for one in data.draw(hostile.damages(["m"])):
                one.apply(directory)
            if (directory / "m").is_file() and (directory / "m").stat().st_size < 10**6:
                content = rezip(content, {inner: (directory / "m").read_bytes()})
        done = []
    with hostile.copy_of({name: content}, done) as directory:
        hostile.refused_or_read(lambda d: read_all(d / name), directory)


def odd_tensors():
    torch = pytest.importorskip("torch")
    return [
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(0, 2**40),
        torch.zeros(1).expand(2**40),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(4)[::2],
        torch.zeros(2, 2).t(),
        torch.nn.Parameter(torch.full((2,), float("nan"))),
        torch.zeros(2, device="meta"),
        torch.zeros(2, dtype=torch.bool),
        torch.zeros(2, dtype=torch.float8_e4m3fn),
        torch.zeros(()),
    ]


@given(DATA)
def test_odd_things_in_torch_files_are_refused_or_read(data):
    torch = pytest.importorskip("torch")
    plain = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)
    )
    leaves = st.one_of(
        plain, st.sampled_from(range(12)).map(lambda i: odd_tensors()[i])
    )
    keys = st.one_of(
        st.sampled_from(
            ["model", "state_dict", "head.weight", "module.x", "pos_embed"]
        ),
        st.integers(0, 2),
        st.tuples(st.integers(0, 2)),
        st.none(),
    )
    trees = st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.dictionaries(keys, inner, max_size=3), st.lists(inner, max_size=2)
        ),
        max_leaves=6,
    )
    file = io.BytesIO()
    torch.save(
        data.draw(trees), file, _use_new_zipfile_serialization=data.draw(st.booleans())
    )
    with hostile.copy_of({"w.pth": file.getvalue()}) as directory:
        hostile.refused_or_read(lambda d: read_all(d / "w.pth"), directory)


class Runs:
    """Pickled, it calls something when it is loaded."""

    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


def payloads(canary: Path) -> list:
    touch = f"open({str(canary)!r}, 'w').close()"
    return [
        Runs(os.system, f"touch {canary}"),
        Runs(eval, touch),
        Runs(exec, touch),
        Runs(Path.touch, canary),
        Runs(subprocess.check_call, ["touch", str(canary)]),
        Runs(np.save, str(canary), 1),
    ]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("which", range(6))
def test_code_in_a_pickle_never_runs(tmp_path, which, protocol):
    canary = tmp_path / "ran"
    for content in (
        payloads(canary)[which],
        {"model": {"head.weight": payloads(canary)[which]}},
    ):
        evil = pickle.dumps(content, protocol)
        legacy = torch_files()["legacy.pth"]
        at = legacy.index(b"\x80\x02}", 30)  # of the state dict
        written = {
            "plain.pth": evil,
            "zip.pth": rezip(torch_files()["w.pth"], {"data.pkl": evil}),
            "legacy.pth": legacy[:at] + evil,
            "w.safetensors": evil,
            "model.json": evil,
            "config.json": evil,
            "summary.json": evil,
            "metrics.jsonl": evil,
            "manifest.json": evil,
            "a.png": evil,
        }
        with hostile.copy_of(written) as directory:
            for name in ("plain.pth", "zip.pth", "legacy.pth", "w.safetensors"):
                assert (
                    hostile.refused_or_read(
                        lambda d, n=name: read_all(d / n), directory
                    )
                    is None
                )
            for read in (use_small_files, teacher_logits.open_cache, look):
                assert hostile.refused_or_read(read, directory) is None
    assert not list(tmp_path.iterdir())
    pickle.loads(evil)  # it would have run
    assert [path.stem for path in tmp_path.iterdir()] == ["ran"]


def test_code_in_an_array_never_runs(cache, tmp_path):
    kind, whole = cache
    canary = tmp_path / "ran"
    evil = np.array([payloads(canary)[0]], object)
    rehash = hostile.Damage(teacher_logits.MANIFEST, "rehash")
    for name in [name for name in whole if name.endswith((".npy", ".npz"))]:
        file = io.BytesIO()
        save = np.save if name.endswith(".npy") else np.savez
        save(file, evil, allow_pickle=True)
        with hostile.copy_of(whole | {name: file.getvalue()}, [rehash]) as directory:
            read = hostile.refused_or_read(lambda d: use_cache(d, kind), directory)
            assert read is None
    assert not canary.exists()
    pickle.loads(pickle.dumps(evil))  # it would have run
    assert canary.exists()
