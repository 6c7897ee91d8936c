"""Artifacts: the same numbers as the run directory, without the package."""

import importlib.util
import json
import os
import subprocess
import sys

import commands
import jax.export
import numpy as np
import pytest
import run_directories
from broken_metadata import TURNED, UPRIGHT
from PIL import Image
from scipy.special import softmax

from deit_jax import export, trained_model
from deit_jax.data.sources import image_files
from deit_jax.errors import InputError

DISTILLED = "deit_nano_distilled_patch8_32"
VIT = "vit_nano_patch8_32"
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)


def artifact_program(directory):
    """The artifact's predict.py as a module."""
    spec = importlib.util.spec_from_file_location("predict", directory / "predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(model, logits, *, batch, atol):
    """All outputs of an artifact, against the logits of the run directory."""
    outputs = model(IMAGES[:batch])
    expected = {head: values[:batch] for head, values in logits.items()}
    expected["probabilities"] = softmax(expected.get("mean", expected["class"]), axis=1)
    assert sorted(outputs) == list(expected)
    for name, values in expected.items():
        assert outputs[name].shape == values.shape
        assert outputs[name].dtype == np.float32
        np.testing.assert_allclose(outputs[name], values, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two checkpoints of a distilled model, each with a moving average."""
    path = tmp_path_factory.mktemp("run")
    for step in (3, 5):
        run_directories.make(path, DISTILLED, ema=True, step=step, seed=step)
    return path


@pytest.fixture(scope="module")
def artifact(run, tmp_path_factory):
    """Made by the command as a user types it, in a directory that is empty."""
    out = tmp_path_factory.mktemp("artifact")
    done = commands.run("deit_jax.export", f"--workdir={run}", f"--out={out}")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"try it: python {out}/predict.py IMAGE ...\n" in done.stdout
    return out


def test_of_any_batch_size_equals_the_run(run, artifact):
    logits = trained_model.load(run).logits(IMAGES)
    model = artifact_program(artifact).load()
    for batch in (1, 3, 64):
        check(model, logits, batch=batch, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "dtype", "weights", "step", "atol"),
    [
        (VIT, "float32", "raw", None, 1e-5),
        (DISTILLED, "float32", "ema", 3, 1e-5),
        (DISTILLED, "bfloat16", "raw", None, 2e-2),
    ],
)
def test_of_every_kind_equals_the_run(
    run, tmp_path, variant, dtype, weights, step, atol
):
    if (variant, dtype) != (DISTILLED, "float32"):
        run = tmp_path / "run"
        run_directories.make(run, variant, dtype=dtype, step=5)
    told = export.export(run, tmp_path / "out", weights=weights, step=step)
    assert f"{variant}, {weights} parameters of step {step or 5}, " in told
    model = artifact_program(tmp_path / "out").load()
    trained = trained_model.load(run, weights=weights, step=step)
    check(model, trained.logits(IMAGES[:2]), batch=2, atol=atol)


def test_says_what_it_is(run, artifact):
    written = sorted(path.name for path in artifact.iterdir())
    assert written == ["model.json", "model.stablehlo", "predict.py"]
    about = json.loads((artifact / "model.json").read_text())
    card = json.loads((run / "model.json").read_text())
    assert about == card | {
        "format": "stablehlo",
        "file": "model.stablehlo",
        "input": "images",
        "outputs": ["class", "distill", "mean", "probabilities"],
        "weights": "raw",
        "step": 5,
        "jax": jax.__version__,
    }


def test_runs_on_every_platform_and_names_no_file_of_this_machine(artifact):
    content = (artifact / "model.stablehlo").read_bytes()
    exported = jax.export.deserialize(bytearray(content))
    assert exported.platforms == ("cpu", "cuda", "rocm", "tpu")
    (images_in,) = exported.in_avals
    assert (str(images_in.shape), images_in.dtype) == ("(b, 32, 32, 3)", np.uint8)
    assert b"vit.py" not in content


@pytest.mark.parametrize("size", [(32, 32), (50, 37), (41, 90), (400, 31)])
def test_sees_the_pixels_of_the_run(artifact, tmp_path, monkeypatch, size):
    program = artifact_program(artifact)
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    for ratio in (1.0, 0.9):
        monkeypatch.setitem(program.CARD, "crop_ratio", ratio)
        expected = trained_model.crops.centre_view(Image.fromarray(pixels), 32, ratio)
        np.testing.assert_array_equal(program.view(tmp_path / "picture.png"), expected)


def test_sees_the_pixels_of_the_run_whatever_the_metadata(run, artifact, tmp_path):
    program, trained = artifact_program(artifact), trained_model.load(run)
    for number, encoded in enumerate([*UPRIGHT.values(), *TURNED.values()]):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(encoded)
        seen = trained.view(image_files.read(str(path)))
        np.testing.assert_array_equal(program.view(path), seen)


def test_is_run_by_a_machine_without_this_package(run, artifact, tmp_path):
    files = []
    for number, picture in enumerate(IMAGES[:2]):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(picture).save(files[-1])
    # None in sys.modules makes an import of that name fail.
    program = (
        "import runpy, sys\n"
        "for name in ('deit_jax', 'flax', 'absl', 'orbax', 'ml_collections'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, artifact / "predict.py", *files],
        cwd=tmp_path,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    logits = trained_model.load(run).logits(IMAGES[:2])["mean"]
    for file, row, line in zip(files, logits, done.stdout.splitlines(), strict=True):
        name, *answers = line.split("  ")
        assert name == str(file)
        best = np.argsort(-row)[:5]
        assert [answer.split()[1] for answer in answers] == [str(c) for c in best]
        percent = [float(answer.split("%")[0]) for answer in answers]
        np.testing.assert_allclose(percent, 100 * softmax(row)[best], atol=0.051)


@pytest.mark.slow
def test_onnx_equals_the_run(tmp_path, caplog):
    pytest.importorskip("jax2onnx", reason='pip install -e ".[onnx]"')
    run_directories.make(tmp_path / "run", DISTILLED, dtype="bfloat16")
    export.export(tmp_path / "run", tmp_path / "out", format="onnx")
    assert not caplog.records  # jax2onnx is talkative
    content = (tmp_path / "out" / "model.onnx").read_bytes()
    assert b"vit.py" not in content  # no file of this machine is named
    # Exported in float32 whatever the run computes in.
    card = tmp_path / "run" / "model.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"dtype": "float32"}))
    logits = trained_model.load(tmp_path / "run").logits(IMAGES)
    program = artifact_program(tmp_path / "out")
    assert program.CARD["dtype"] == "float32"
    model = program.load()
    for batch in (1, 3, 64):
        check(model, logits, batch=batch, atol=1e-5)


def test_onnx_that_is_not_installed_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(InputError, match=r"needs jax2onnx, .*: pip install jax2onnx"):
        export.export(run, tmp_path / "out", format="onnx")


def test_what_stands_at_out_is_left_alone(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for name, message in (
        ("full", r"full is a file or not empty\. Give a new or an empty directory"),
        ("full/mine", "mine is a file or not empty"),
        ("full/mine/deeper", r"deeper cannot be written: "),
    ):
        with pytest.raises(InputError, match=message):
            export.export(run, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "mine").read_text() == "mine"


def test_a_failed_export_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        export.export(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "out").symlink_to("elsewhere")  # that is no directory
    run_directories.make(tmp_path / "run", VIT)
    with pytest.raises(InputError, match="out cannot be written"):
        export.export(tmp_path / "run", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "run"}


@pytest.mark.slow
def test_the_program_takes_folders_and_goes_on_after_a_broken_file(
    run, artifact, tmp_path
):
    images = tmp_path / "images" / "deeper"
    images.mkdir(parents=True)
    random = np.random.default_rng(0)
    grey = random.integers(0, 2**16, (40, 50), np.uint16)
    Image.fromarray(grey).save(images / "sixteen.png")
    rgba = random.integers(0, 256, (40, 50, 4), np.uint8)
    Image.fromarray(rgba, "RGBA").save(images / "clear.PNG")
    (images / "broken.jpg").write_bytes(b"no image")
    (images / "._clear.PNG").write_bytes(b"what macOS leaves beside it")

    def start(*paths):
        return subprocess.run(
            [sys.executable, str(artifact / "predict.py"), *paths],
            env=os.environ | {"PYTHONIOENCODING": "cp1252:strict"},
            capture_output=True,
            text=True,
        )

    done = start(str(tmp_path / "images"))
    assert done.returncode == 1
    assert f"error: {images / 'broken.jpg'}: it is not an image" in done.stderr
    assert "._clear" not in done.stderr
    predict = artifact_program(artifact)
    trained = trained_model.load(run)
    for name in ("sixteen.png", "clear.PNG"):
        assert str(images / name) in done.stdout
        seen = trained.view(image_files.read(str(images / name)))
        np.testing.assert_array_equal(predict.view(images / name), seen)
    done = start()
    assert done.returncode == 2
    assert "python predict.py IMAGE_OR_FOLDER ..." in done.stdout
