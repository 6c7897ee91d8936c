import pytest

from deit_jax import config_flag
from deit_jax.errors import InputError

DEIT = str(config_flag.RECIPES / "deit.py")


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("deit:digits", f"{DEIT}:digits"),
        ("deit", DEIT),
        ("configs/deit.py:digits", f"{DEIT}:digits"),
        (f"{DEIT}:digits", f"{DEIT}:digits"),
        ("nowhere/deit.py:digits", "nowhere/deit.py:digits"),
    ],
)
def test_a_recipe_is_found_from_any_directory(tmp_path, monkeypatch, recipe, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deit").mkdir()
    assert config_flag.find(recipe) == expected


@pytest.mark.parametrize("name", ["deit", "configs/deit.py"])
def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / name).touch()
    assert config_flag.find(f"{name}:digits") == f"{name}:digits"


@pytest.mark.parametrize("name", ["diet", "configs/diet.py", "diet.py"])
def test_an_unknown_name_lists_the_recipes(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    expected = f"no file {name} .* Did you mean deit:digits. Recipes: deit, .*vit"
    with pytest.raises(InputError, match=expected):
        config_flag.find(f"{name}:digits")
