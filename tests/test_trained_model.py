"""The Python API: what a user gets in two lines."""

import doctest
import functools
import subprocess
import sys

import commands
import jax
import numpy as np
import pytest
import run_directories
from PIL import Image
from scipy.special import softmax

import deit_jax
from deit_jax import trained_model
from deit_jax.data import sources
from deit_jax.data.sources import image_files
from deit_jax.errors import InputError
from deit_jax.training import metrics, step
from deit_jax.weights import save

DIGITS = sources.load("digits", "test[:7]").images
RANDOM = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    return path, *run_directories.make(path, ema=True)


@pytest.fixture(scope="module")
def model(run):
    return deit_jax.load(run[0])


def test_the_examples_of_the_module(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/deit-digits").symlink_to(run[0])
    Image.fromarray(DIGITS[0]).save("seven.png")
    done = doctest.testmod(trained_model, optionflags=doctest.ELLIPSIS)
    assert done.attempted >= 5
    assert done.failed == 0


def test_the_package_alone_imports_no_jax():
    """And no NumPy; 50 ms are more than its own few lines take."""
    lines = (
        "import sys, time; began = time.process_time(); import deit_jax",
        "spent = time.process_time() - began",
        "assert not {'jax', 'numpy'} & set(sys.modules)",
        "assert 'load' in dir(deit_jax) and not hasattr(deit_jax, 'lode')",
        "print(spent)",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=commands.ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    assert float(done.stdout) < 0.05


@pytest.mark.slow
def test_a_prediction_imports_nothing_that_it_does_without(run):
    lines = (
        "import sys, numpy, deit_jax",
        f"model = deit_jax.load({str(run[0])!r})",
        "model.predict(numpy.zeros((32, 32, 3), numpy.uint8))",
        "heavy = {'tensorflow', 'clu', 'matplotlib', 'torch', 'sklearn'}",
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=commands.ROOT, check=1)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_logits_are_those_of_the_model(run, weights):
    path, card, params = run
    statics = {"model": card.create_model(), "mean": card.mean, "std": card.std}
    apply = jax.jit(functools.partial(step.eval_step, **statics))
    expected = metrics.heads(jax.device_get(apply(params[weights], DIGITS)))
    # Three batches, the last of one image.
    found = deit_jax.load(path, weights=weights, step=3).logits(DIGITS, batch_size=3)
    for head, values in expected.items():
        np.testing.assert_allclose(found[head], values, atol=1e-5)
    assert np.ptp(found["class"]) > 0.5


def test_a_path_an_image_and_an_array_are_the_same_image(tmp_path):
    run_directories.make(tmp_path, "vit_nano_patch8_32", crop_ratio=0.8)
    model, path = deit_jax.load(tmp_path), tmp_path / "a.png"
    image = Image.fromarray(RANDOM)
    turned = Image.Exif()
    turned[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=turned)
    opened = Image.open(path)
    kinds = [path, str(path), opened, image, RANDOM, image.convert("RGBA")]
    kinds.append(image_files.read(str(path)))  # is not turned twice
    views = [model.view(kind) for kind in kinds]
    for view in views[1:]:
        np.testing.assert_array_equal(view, views[0])
    several = model.logits(kinds)["class"]
    np.testing.assert_allclose(several, several[:1].repeat(len(kinds), 0), atol=1e-5)
    np.testing.assert_allclose(model.logits(path)["class"], several[0], atol=1e-5)
    # Prepared already: not cropped again.
    np.testing.assert_array_equal(model.view(views[0]), views[0])


def test_one_image_has_no_first_axis_and_many_have(model):
    assert model.logits(DIGITS[0])["mean"].shape == (10,)
    assert model.logits(DIGITS[:1])["mean"].shape == (1, 10)
    assert model.logits([DIGITS[0], RANDOM])["mean"].shape == (2, 10)
    assert model.features(DIGITS[0]).shape == (96,)
    assert len(model.predict(DIGITS[0])) == 10
    assert [len(row) for row in model.predict(iter(DIGITS[:2]), top=3)] == [3, 3]
    maps, logits = model.attention(DIGITS[:2])
    assert (maps.heads.shape, maps.rollout.shape) == ((2, 2, 3, 4, 4), (2, 2, 4, 4))
    np.testing.assert_allclose(
        logits["class"], model.logits(DIGITS[:2])["class"], atol=1e-4
    )


def test_predicts_by_the_mean_of_the_heads(model):
    answers, logits = model.predict(DIGITS[3]), model.logits(DIGITS[3])["mean"]
    assert [a["class"] for a in answers] == np.argsort(-logits).tolist()
    np.testing.assert_allclose(
        [a["probability"] for a in answers], np.sort(softmax(logits))[::-1], rtol=1e-4
    )
    assert answers[0]["name"] == model.card.class_names[logits.argmax()]


def test_equal_classes_are_ranked_by_their_number():
    ranked = trained_model.rank(np.array([1.0, 2.0, 1.0]), ["a", "b", "c"])
    assert [r["name"] for r in ranked] == ["b", "a", "c"]
    assert sum(r["probability"] for r in ranked) == pytest.approx(1)


@pytest.mark.slow
def test_few_shapes_are_compiled(model):
    trained_model._logits.clear_cache()
    for count in (1, 2, 3, 4, 5, 6, 7):
        model.logits(DIGITS[:count], batch_size=6)
    assert trained_model._logits._cache_size() == 4  # 1, 2, 4 and 6


def test_images_are_read_a_few_batches_ahead_only(model, tmp_path, monkeypatch):
    Image.fromarray(DIGITS[0]).save(tmp_path / "a.png")
    real, read = image_files.read, []
    monkeypatch.setattr(image_files, "read", lambda f: (read.append(f), real(f))[1])
    files = [str(tmp_path / "a.png")] * 100
    results = model.each(model.logits_of, files, batch_size=4)
    next(results)
    results.close()
    assert 4 <= len(read) <= 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images were given"),
        (np.zeros((0, 32, 32, 3), np.uint8), "an array of uint8 .0, 32, 32, 3. is no"),
        (np.zeros((32, 32, 3)), "an array of float64 .32, 32, 3. is no image"),
        (np.zeros((32, 32), np.uint8), "Expected uint8 .H, W, 3."),
        ([DIGITS[0], np.zeros((4, 4), np.uint8)], "an array of uint8 .4, 4. is no"),
        ("nowhere.png", r"nowhere\.png cannot be read: No such file"),
        (["tests"], "tests is no regular file"),
    ],
)
def test_refuses_what_is_no_image(model, images, message, monkeypatch):
    monkeypatch.chdir(commands.ROOT)
    with pytest.raises(InputError, match=message):
        model.predict(images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": "distill"}, "vit_nano_patch8_32 has no distillation token"),
        ({"tokens": "cls"}, "expected one of class, distill, patches, all, mean"),
        ({"layer": 4}, r"layer=4: vit_nano_patch8_32 has 4 blocks, so .* -4 \.\. 3"),
        ({"layer": -5}, "layer=-5"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
    ],
)
def test_refuses_features_that_there_are_not(tmp_path, settings, message):
    run_directories.make(tmp_path, "vit_nano_patch8_32")
    with pytest.raises(InputError, match=message):
        deit_jax.load(tmp_path).features(DIGITS[0], **settings)


def test_a_file_of_weights_is_as_good_as_a_run(run, tmp_path):
    path, card, params = run
    [file, *_] = save.save(
        tmp_path / "w.safetensors", params["raw"], card, layout="timm"
    )
    loaded, trained = deit_jax.load(file), deit_jax.load(path)
    assert (loaded.step, trained.step) == (0, 3)
    assert "no class names were found" in " ".join(loaded.notes)
    assert loaded.predict(DIGITS[0])[0]["name"] in loaded.card.class_names
    jax.tree.map(np.testing.assert_array_equal, loaded.params, trained.params)


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("nowhere", {}, "nowhere does not exist. Expected a run directory"),
        (".", {}, r"has no model\.safetensors or pytorch_model\.bin"),
        ("w.safetensors", {"step": 3}, "step=3: .* is no run directory"),
        ("w.safetensors", {"weights": "best"}, "expected raw or ema"),
    ],
)
def test_refuses_what_is_no_model(tmp_path, monkeypatch, source, settings, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=message):
        deit_jax.load(source, **settings)
