"""The command as a user types it, and what it writes."""

import re

import commands
import numpy as np
import pytest
from PIL import Image

from deit_jax import show_augmentations
from deit_jax.data import sources
from deit_jax.errors import InputError
from deit_jax.recipe import student_views
from deit_jax.reporting import grid


@pytest.mark.slow
def test_the_command(tmp_path):
    out = tmp_path / "new" / "grid.png"
    done = commands.run(
        "deit_jax.show_augmentations",
        "--config=configs/deit.py:digits",
        "--config.augment.flip=True",
        f"--out={out}",
        "--indices=3,17",
        "--views=3",
        "--first_view=5",
    )
    assert done.returncode == 0, done.stderr
    drawn, augmentation = done.stdout.splitlines()
    assert drawn.startswith("2 images of digits train in views 5 .. 7, ")
    assert drawn.endswith(f": {out}")
    assert augmentation == "augmentation none, seed 0: crop_padding 2, flip"
    width, height = map(int, re.search(r"(\d+) x (\d+) pixels", drawn).groups())
    with Image.open(out) as picture:
        assert (picture.format, picture.size) == ("PNG", (width, height))


def test_the_file_is_the_grid_of_the_config(digits_config, tmp_path):
    digits_config.dataset.train_split = "train[:21]"
    digits_config.augment.seed = 4
    digits_config.augment.cutmix = 1.0
    out = tmp_path / "grid.PNG"
    told = show_augmentations.show(digits_config, out, images=2, views=2, first_view=1)
    assert "2 images of digits train[:21] in views 1 .. 2" in told
    assert "augmentation none, seed 4: crop_padding 2, cutmix 1.0" in told
    source = sources.load("digits", "train[:21]")
    expected = grid.draw(
        student_views(digits_config, source),
        source,
        index=[0, 10],
        views=[1, 2],
        title="recipe none, seed 4",
    )
    np.testing.assert_array_equal(np.asarray(Image.open(out)), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "--images=0: expected at least 1."),
        ({"views": 0}, "--views=0: expected at least 1."),
        ({"first_view": -1}, "--first_view=-1: expected at least 0."),
        ({"indices": [1440]}, "no image 1440 in digits train"),
        ({"out": "grid.jpg"}, "grid.jpg: expected a file name that ends in .png"),
        ({"out": "grid"}, "grid: expected a file name that ends in .png"),
        ({"out": "a_file/grid.png"}, "grid.png cannot be written: .* another --out"),
        ({"out": "a_folder.png"}, "a_folder.png cannot be written: Is a directory"),
    ],
)
def test_what_cannot_be_drawn_is_refused(digits_config, tmp_path, options, message):
    (tmp_path / "a_file").touch()
    (tmp_path / "a_folder.png").mkdir()
    options = {"out": "grid.png", "images": 1, "views": 1} | options
    out = tmp_path / options.pop("out")
    with pytest.raises(InputError, match=message):
        show_augmentations.show(digits_config, out, **options)
    assert not out.is_file()
