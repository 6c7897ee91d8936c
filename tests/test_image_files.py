"""Images by their paths."""

import shutil

import pytest
from PIL import Image

from deit_jax.data.sources import image_files
from deit_jax.errors import InputError


@pytest.fixture
def pictures(tmp_path):
    """b.PNG, a/c.jpg, an image without ending, and what is passed over."""
    (tmp_path / "a").mkdir()
    for name in ("b.PNG", "a/c.jpg"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    shutil.copy(tmp_path / "b.PNG", tmp_path / "scan")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_text("x")
    return tmp_path


def test_a_folder_gives_its_images_at_any_depth_sorted(pictures):
    files, passed_over = image_files.find([pictures])
    assert files == [str(pictures / "a/c.jpg"), str(pictures / "b.PNG")]
    assert passed_over == {".txt": 1, "hidden": 1, "no ending": 1}


def test_files_are_taken_by_any_name_and_once(pictures):
    asked = [pictures / "scan", pictures, pictures / "b.PNG"]
    files, _ = image_files.find(asked)
    assert files == [str(pictures / n) for n in ("a/c.jpg", "b.PNG", "scan")]
    assert image_files.read(files[-1]).getpixel((0, 0)) == (255, 0, 0)


def test_relative_paths_stay_relative(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    assert image_files.find(["."])[0] == ["a/c.jpg", "b.PNG"]
    assert image_files.find(["a", "./b.PNG"])[0] == ["a/c.jpg", "b.PNG"]


def test_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"gone\.png does not exist"):
        image_files.find([tmp_path / "gone.png"])
    with pytest.raises(InputError, match=r"holds no image .*so far: nothing"):
        image_files.find([tmp_path])
    (tmp_path / "a.heic").touch()
    with pytest.raises(InputError, match=r"no image .*; passed over so far: 1 \.heic"):
        image_files.find([tmp_path])


@pytest.mark.slow
def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputError, match=r"cut\.png is not an image"):
        image_files.read(str(tmp_path / "cut.png"))
    with pytest.raises(InputError, match=r"gone\.png cannot be read: No such file"):
        image_files.read(str(tmp_path / "gone.png"))
