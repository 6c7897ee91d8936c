"""Prediction for images on disk."""

import json
import shutil
import subprocess
import sys

import commands
import numpy as np
import pytest
import run_directories
from PIL import Image
from scipy.special import softmax

from deit_jax import predict, trained_model
from deit_jax.data import sources
from deit_jax.errors import InputError

DIGITS = sources.load("digits", "test[:7]")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    card, _ = run_directories.make(path, ema=True)
    return path, card


@pytest.fixture
def pictures(tmp_path):
    for i, image in enumerate(DIGITS.images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_gives_the_model_logits_of_every_image(run, pictures, weights):
    path, _ = run
    out = str(pictures / "logits.npz")
    # Three at once: a last batch that is padded.
    settings = {"batch_size": 3, "logits_out": out, "weights": weights}
    assert predict.predict(path, [pictures], **settings) == 0
    written = np.load(out)
    assert set(written) == {"files", "class", "distill", "mean"}
    assert written["files"].tolist() == [str(pictures / f"{i}.png") for i in range(7)]
    expected = trained_model.load(path, weights=weights).logits(DIGITS.images)
    for head, values in expected.items():
        np.testing.assert_allclose(written[head], values, atol=1e-5)
    assert np.ptp(written["class"]) > 0.5  # a constant would prove nothing


def test_shows_the_most_probable_classes_of_the_mean_head(run, pictures, capsys):
    path, card = run
    predict.predict(path, [pictures / "3.png"], as_json=True, top=3)
    answer = json.loads(capsys.readouterr().out)
    logits = trained_model.load(path).logits(DIGITS.images[3])["mean"]
    best = np.argsort(-logits)[:3]
    assert answer["file"] == str(pictures / "3.png")
    assert [a["class"] for a in answer["top"]] == best.tolist()
    assert [a["name"] for a in answer["top"]] == [card.class_names[i] for i in best]
    shown = [a["probability"] for a in answer["top"]]
    np.testing.assert_allclose(shown, softmax(logits)[best], rtol=1e-4)


def test_an_unreadable_file_is_reported_and_the_rest_go_on(run, pictures, capsys):
    (pictures / "4.png").write_bytes(b"")
    out = str(pictures / "logits.npz")
    settings = {"batch_size": 2, "logits_out": out, "top": 2}
    assert predict.predict(run[0], [pictures], **settings) == 1
    shown = capsys.readouterr()
    assert "4.png is empty (0 bytes)" in shown.err
    assert "1 of 7 files unreadable" in shown.err
    names = [f"{i}.png" for i in (0, 1, 2, 3, 5, 6)]
    assert [line.split()[0][-5:] for line in shown.out.splitlines()] == names
    assert [line.count("%") for line in shown.out.splitlines()] == [2] * 6
    assert [file[-5:] for file in np.load(out)["files"]] == names
    assert len(np.load(out)["mean"]) == 6
    assert predict.predict(run[0], [pictures / "4.png"], as_json=True) == 1
    assert "is empty" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top": 0}, "--top=0: expected at least 1"),
        ({"batch_size": 0}, "--batch_size=0: expected at least 1"),
        ({"logits_out": "x.npy"}, r"expected a name ending in \.npz"),
        ({"logits_out": "/nowhere/x.npz"}, "its folder does not exist"),
        ({"weights": "best"}, "expected raw or ema"),
        ({"step": 4}, "no checkpoint of step 4. Steps there: 3"),
    ],
)
def test_refuses_bad_settings(run, pictures, settings, message):
    with pytest.raises(InputError, match=message):
        predict.predict(run[0], [pictures], **settings)


@pytest.mark.slow
def test_the_command(run, pictures):
    """Its exit codes and messages, as a user meets them."""
    shutil.copy(pictures / "0.png", pictures / "\udcff.png")
    (pictures / "bad.png").write_bytes(b"x")
    done = commands.run("deit_jax.predict", pictures, f"--workdir={run[0]}", "--top=1")
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 8)
    assert r"\udcff.png" in done.stdout
    assert done.stderr.splitlines()[0].startswith("error: ")
    assert "1 of 9 files unreadable" in done.stderr


@pytest.mark.slow
def test_output_that_nobody_reads_ends_the_command(run, pictures):
    arguments = [sys.executable, "-m", "deit_jax.predict", f"--workdir={run[0]}"]
    done = subprocess.Popen(
        [*arguments, str(pictures)],
        cwd=commands.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    done.stdout.close()  # as `| head` does
    errors = done.stderr.read()
    done.stderr.close()
    assert done.wait() == 1
    assert errors == ""
