"""Copies of small images that have been JPEG are noticed; others are not."""

import made_sets
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from deit_jax.data import sources
from deit_jax.data.sources import decode, recompressed


@pytest.fixture(scope="module")
def photographs():
    """128 parts of a photograph, scaled to 32 px: uint8 [N, 32, 32, 3]."""
    photo, random = load_sample_image("china.jpg"), np.random.RandomState(0)
    images = []
    for _ in range(128):
        side = random.randint(64, 300)
        top, left = random.randint(0, 427 - side), random.randint(0, 640 - side)
        part = Image.fromarray(photo[top : top + side, left : left + side])
        images.append(np.asarray(part.resize((32, 32), Image.Resampling.BOX)))
    return np.stack(images)


def jpeg(images, quality):
    files = [made_sets.encoded(image, "JPEG", quality=quality) for image in images]
    return np.stack([np.asarray(decode.open_rgb(file, "")) for file in files])


@pytest.mark.parametrize("quality", [50, 75, 90, 95])
def test_jpeg_is_noticed(photographs, quality):
    assert recompressed.has_been_jpeg(jpeg(photographs, quality))


@pytest.mark.parametrize("change", ["none", "shifted", "flat", "noise", "digits"])
def test_other_images_are_not_taken_for_jpeg(photographs, change):
    images = {
        "none": photographs,
        # JPEG before it was cropped or scaled is what all photographs have been.
        "shifted": np.roll(jpeg(photographs, 75), (3, 5), axis=(1, 2)),
        "flat": np.full((8, 32, 32, 3), 7, np.uint8),
        "noise": np.random.RandomState(0).randint(0, 256, (99, 32, 32, 3), np.uint8),
        "digits": sources.load("digits", "test").images,
    }[change]
    assert not recompressed.has_been_jpeg(images)


@pytest.mark.parametrize("lossy", [True, False])
def test_a_source_says_so(photographs, tmp_path, lossy, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = jpeg(photographs, 75) if lossy else photographs
    labels = np.arange(128) % 4
    monkeypatch.setattr(made_sets, "COUNTS", {"train": 128})
    monkeypatch.setattr(made_sets, "images", lambda split: (images, labels))
    made_sets.parquet(tmp_path / "set/train.parquet")
    for name in (f"hf:{tmp_path}/set", f"cifar:{made_sets.cifar(tmp_path, '10-bin')}"):
        said = [n for n in sources.load(name, "train").notes if "have been JPEG" in n]
        assert len(said) == lossy
