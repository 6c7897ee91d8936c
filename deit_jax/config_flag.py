"""The flag --config: a recipe of this package, from any directory, or a Python file."""

import difflib
import importlib.machinery
import importlib.util
import re
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from deit_jax import configs
from deit_jax.errors import InputError

RECIPES = Path(configs.__path__[0])

flags.disclaim_key_flags()  # the command's that defines it, so that --help shows it


def define() -> None:
    """Defines --config, and lets the files that it names import `configs`."""
    config_flags.DEFINE_config_file(
        "config",
        help_string="The recipe, e.g. deit:digits, or a file, configs/deit.py:digits.",
    )
    flags.FLAGS["config"].parser = _Parser("config")
    if _Importer not in sys.meta_path:
        sys.meta_path.append(_Importer)


def find(recipe: str) -> str:
    """`deit:digits` or `configs/deit.py:digits` with the path of a file.

    A file that is there comes before one of `RECIPES`.
    """
    name, colon, argument = recipe.partition(":")
    short = re.fullmatch(r"(?:configs/)?(\w+)(?:\.py)?", name)
    if not short or Path(name).is_file():
        return recipe
    names = sorted(path.stem for path in RECIPES.glob("[!_]*.py"))
    if short[1] in names:
        return f"{RECIPES / short[1]}.py{colon}{argument}"
    close = difflib.get_close_matches(short[1], names, n=1)
    raise InputError(
        f"there is no file {name} and no recipe of that name."
        + (f" Did you mean {close[0]}{colon}{argument}?" if close else "")
        + f" Recipes: {', '.join(names)}."
    )


class _Parser(ConfigFileFlagParser):
    def parse(self, path: str):
        return super().parse(find(path))


class _Importer:
    """Finds `configs` for a config that imports a recipe, where nothing else does."""

    @staticmethod
    def find_spec(name: str, path=None, target=None):
        if name == "configs":
            return importlib.util.spec_from_file_location(
                name, RECIPES / "__init__.py", submodule_search_locations=[str(RECIPES)]
            )
        if name.startswith("configs."):
            return importlib.machinery.PathFinder.find_spec(name, [str(RECIPES)])
        return None
