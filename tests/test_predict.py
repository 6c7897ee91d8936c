"""Prediction for images on disk."""

import json
import shutil

import commands
import numpy as np
import pytest
from scipy.special import softmax

from deit_jax import predict, trained_model
from deit_jax.data import sources
from deit_jax.errors import InputError

DIGITS = sources.load("digits", "test[:7]")


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_gives_the_model_logits_of_every_image(random_run, digit_files, weights):
    path, *_ = random_run
    out = str(digit_files / "logits.npz")
    # Three at once: a last batch that is padded.
    settings = {"batch_size": 3, "logits_out": out, "weights": weights}
    assert predict.predict(path, [digit_files], **settings) == 0
    written = np.load(out)
    assert set(written) == {"files", "class", "distill", "mean"}
    assert written["files"].tolist() == [
        str(digit_files / f"{i}.png") for i in range(7)
    ]
    expected = trained_model.load(path, weights=weights).logits(DIGITS.images)
    for head, values in expected.items():
        np.testing.assert_allclose(written[head], values, atol=1e-5)
    assert np.ptp(written["class"]) > 0.5  # a constant would prove nothing


def test_shows_the_most_probable_classes_of_the_mean_head(
    random_run, digit_files, capsys
):
    path, card, _ = random_run
    predict.predict(path, [digit_files / "3.png"], as_json=True, top=3)
    answer = json.loads(capsys.readouterr().out)
    logits = trained_model.load(path).logits(DIGITS.images[3])["mean"]
    best = np.argsort(-logits)[:3]
    assert answer["file"] == str(digit_files / "3.png")
    shown = [(a["class"], a["name"]) for a in answer["top"]]
    assert shown == [(i, card.class_names[i]) for i in best.tolist()]
    probabilities = [a["probability"] for a in answer["top"]]
    np.testing.assert_allclose(probabilities, softmax(logits)[best], rtol=1e-4)


def test_an_unreadable_file_is_reported_and_the_rest_go_on(
    random_run, digit_files, capsys
):
    (digit_files / "4.png").write_bytes(b"")
    out = str(digit_files / "logits.npz")
    settings = {"batch_size": 2, "logits_out": out, "top": 2}
    assert predict.predict(random_run[0], [digit_files], **settings) == 1
    shown = capsys.readouterr()
    assert "4.png is empty (0 bytes)" in shown.err
    assert "1 of 7 files unreadable" in shown.err
    names = [f"{i}.png" for i in (0, 1, 2, 3, 5, 6)]
    assert [line.split()[0][-5:] for line in shown.out.splitlines()] == names
    assert [line.count("%") for line in shown.out.splitlines()] == [2] * 6
    assert [file[-5:] for file in np.load(out)["files"]] == names
    assert len(np.load(out)["mean"]) == 6
    assert predict.predict(random_run[0], [digit_files / "4.png"], as_json=True) == 1
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
def test_refuses_bad_settings(random_run, digit_files, settings, message):
    with pytest.raises(InputError, match=message):
        predict.predict(random_run[0], [digit_files], **settings)


@pytest.mark.slow
def test_the_command(random_run, digit_files):
    """Its exit codes and messages, as a user meets them."""
    shutil.copy(digit_files / "0.png", digit_files / "\udcff.png")
    (digit_files / "bad.png").write_bytes(b"x")
    options = f"--workdir={random_run[0]}", "--top=1"
    done = commands.run("deit_jax.predict", digit_files, *options)
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 8)
    assert r"\udcff.png" in done.stdout
    assert done.stderr.splitlines()[0].startswith("error: ")
    assert "1 of 9 files unreadable" in done.stderr


@pytest.mark.slow
def test_output_that_nobody_reads_ends_the_command(random_run, digit_files):
    """As `| head` does; the exit code is the command's."""
    done = commands.run(
        "deit_jax.predict",
        digit_files,
        f"--workdir={random_run[0]}",
        shell="{{ {}; echo $? >&2; }} | true",
    )
    assert done.stderr == "1\n"
