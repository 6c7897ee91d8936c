"""Features of image files, written to a file."""

import commands
import numpy as np
import pytest
import run_directories
from PIL import Image

import deit_jax
from deit_jax import embed
from deit_jax.data import sources
from deit_jax.errors import InputError

DIGITS = sources.load("digits", "test[:7]").images


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(DIGITS):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "layer"),
    [("deit_nano_distilled_patch8_32", -1), ("vit_nano_patch8_32", 1)],
)
def test_the_features_of_every_image_that_can_be_read(
    images, tmp_path, capsys, variant, layer
):
    run, out = tmp_path / "run", str(tmp_path / "features.npz")
    run_directories.make(run, variant)
    (images / "4.png").write_bytes(b"")
    assert embed.embed(run, [images], out, batch_size=3, layer=layer) == 1
    told = capsys.readouterr()
    assert "4.png is empty" in told.err
    assert "1 of 7 files unreadable" in told.err
    tokens = ["class", *(["distill"] if "distilled" in variant else []), "mean"]
    assert f"6 images, {', '.join(tokens)} of 96 numbers" in told.out
    with np.load(out) as written:
        assert set(written) == {"files", *tokens}
        kept = [i for i in range(7) if i != 4]
        assert written["files"].tolist() == [str(images / f"{i}.png") for i in kept]
        model = deit_jax.load(run)
        for token in tokens:
            expected = model.features(DIGITS[kept], tokens=token, layer=layer)
            assert written[token].dtype == np.float32
            np.testing.assert_allclose(written[token], expected, atol=1e-4)
        assert written["class"].std() > 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"out": "x.npy"}, r"--out=x\.npy: expected a name ending in \.npz"),
        ({"out": "/nowhere/x.npz"}, "its folder does not exist"),
        ({"batch_size": 0}, "--batch_size=0: expected at least 1"),
        ({"layer": 9}, "layer=9: "),
        ({"paths": ["nowhere"]}, "nowhere does not exist"),
    ],
)
def test_refuses_what_cannot_work(images, tmp_path, settings, message):
    run_directories.make(tmp_path / "run")
    given = {"paths": [images], "out": str(tmp_path / "x.npz")} | settings
    with pytest.raises(InputError, match=message):
        embed.embed(tmp_path / "run", **given)


@pytest.mark.slow
def test_files_none_of_which_can_be_read(images, tmp_path):
    """Their message and exit code, as a user meets them."""
    run_directories.make(tmp_path / "run")
    (tmp_path / "a.png").write_bytes(b"x")
    out = tmp_path / "x.npz"
    options = [f"--workdir={tmp_path / 'run'}", f"--out={out}"]
    done = commands.run("deit_jax.embed", tmp_path / "a.png", *options)
    assert done.returncode == 2
    assert "error: none of the 1 files can be read" in done.stderr
    assert not out.exists()
