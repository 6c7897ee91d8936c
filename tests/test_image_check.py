"""Images that cannot be read are found before hours are spent."""

import itertools
import os
from pathlib import Path

import pytest

from configs import vit
from deit_jax import dry_run
from deit_jax.data import image_check, sources
from deit_jax.data.sources import folder as folders
from deit_jax.errors import InputError
from deit_jax.train import train_and_evaluate


@pytest.fixture
def damaged(folder):
    """Two training images and an evaluation image are cut short."""
    paths = []
    for split, index in (("train", 3), ("train", 20), ("val", 1)):
        path = Path(sources.load(folder, split).where(index))
        path.write_bytes(path.read_bytes()[:60])
        paths.append(path)
    return paths


def test_all_damaged_images_are_listed(folder, damaged):
    with pytest.raises(InputError) as found:
        image_check.check_images(sources.load(folder, "train"))
    assert str(found.value).startswith("2 of 32 train images cannot be read:")
    assert all(str(path) in str(found.value) for path in damaged[:2])


def test_a_whole_folder_passes_and_time_can_be_short(folder):
    source = sources.load(folder, "train")
    assert image_check.check_images(source) == 32
    assert image_check.check_images(source, seconds=-1) == 0
    # Images that lie in memory, of another size than the model's, pass too.
    assert image_check.check_images(sources.load("digits", "test[:9]")) == 9


def test_the_classes_are_counted(folder):
    train = sources.load(folder, "train")
    line = image_check.describe_classes(train)
    assert line == "train images of each class: bright 16, dark 16"
    first = Path(train.where(0)).parent.parent / "bright"
    for path in sorted(first.iterdir())[1:]:
        path.unlink()
    line = image_check.describe_classes(sources.load(folder, "train"))
    assert "dark 16, bright 1\nthe classes are very unequal" in line


def config_of(folder):
    config = vit.get_config("folder")
    config.dataset.name = folder
    config.model.variant = "vit_nano_patch8_32"
    config.batch_size = 8
    return config


@pytest.mark.slow
def test_a_dry_run_decodes_every_image(folder, damaged, tmp_path):
    with pytest.raises(InputError, match="2 of 32 train images cannot be read"):
        dry_run.show(config_of(folder), tmp_path / "run")


def test_a_start_looks_at_the_evaluation_images(folder, damaged, tmp_path):
    with pytest.raises(InputError, match="1 of 8 val images cannot be read"):
        train_and_evaluate(config_of(folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", folders.TRANSIENT)
@pytest.mark.parametrize("failures", [1, 3, 4])
def test_a_disk_that_is_away_for_a_moment_is_waited_for(
    tmp_path, monkeypatch, number, failures
):
    path = tmp_path / "a.png"
    path.write_bytes(b"an image")
    calls, waited, real = itertools.count(1), [], Path.read_bytes

    def failing(path):
        if next(calls) <= failures:
            raise OSError(number, os.strerror(number))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    monkeypatch.setattr(folders.time, "sleep", waited.append)
    if failures == 4:
        with pytest.raises(InputError, match=r"a\.png cannot be read"):
            folders.read_image_file(path)
    else:
        assert folders.read_image_file(path) == b"an image"
    assert len(waited) == min(failures, 3)
    assert sum(folders.RETRY_SECONDS) > 1


def test_other_errors_are_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.time, "sleep", None)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Not a directory"):
        folders.read_image_file(tmp_path / "file" / "a.png")
