"""Draws what a config does to training images: a grid of images and their views.

    python -m deit_jax.show_augmentations --config=configs/deit.py:digits --out=grid.png
    python -m deit_jax.show_augmentations --config=configs/deit.py:digits \\
        --config.augment.recipe=deit --out=grid.png --indices=3,17 --first_view=5

The images are those of the train step, pixel by pixel. Under an image of a mixed pair
stand its own share and the class of its partner.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from PIL import Image

from deit_jax import command, config_flag, files
from deit_jax.errors import InputError


def show(
    config,
    out: str | os.PathLike,
    *,
    images: int = 8,
    views: int = 8,
    first_view: int = 0,
    indices: Sequence[int] | None = None,
) -> str:
    """Draws training images of `config` into the PNG file `out`.

    Returns what was drawn, in words; the flags explain the arguments.

    Raises:
      InputError: An argument cannot work, or the file cannot be written.
    """
    out = Path(out)
    command.require_at_least(1, images=images, views=views)
    command.require_at_least(0, first_view=first_view)
    if out.suffix.lower() != ".png":
        raise InputError(f"--out={out}: expected a file name that ends in .png.")
    # Flags are refused without waiting for JAX.
    from deit_jax.data import sources
    from deit_jax.recipe import student_views
    from deit_jax.reporting import grid

    dataset = config.dataset
    source = sources.load(
        dataset.name, dataset.train_split, data_dir=dataset.data_dir or None
    )
    student = student_views(config, source)
    with files.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    index = grid.spread(images, len(source)) if indices is None else indices
    columns = range(first_view, first_view + views)
    title = f"recipe {config.augment.recipe}, seed {student.augment_seed}"
    drawn = grid.draw(student, source, index=index, views=columns, title=title)
    with files.writing(out):
        Image.fromarray(drawn).save(out, "PNG")
    height, width = drawn.shape[:2]
    return (
        f"{len(index):,} images of {source.name} {source.split} in views {first_view} "
        f".. {columns[-1]}, {width} x {height} pixels: {out}\n"
        f"augmentation {config.augment.recipe}, seed {student.augment_seed}: "
        f"{student.settings}"
    )


def define_flags() -> None:
    config_flag.define()
    flags.DEFINE_string("out", None, "The PNG file to write; its folder is made.")
    flags.DEFINE_integer("images", 8, "Images, evenly spread over the training split.")
    flags.DEFINE_integer("views", 8, "Views of each image.")
    flags.DEFINE_integer("first_view", 0, "The first of them.")
    flags.DEFINE_list("indices", None, "These images instead, e.g. 3,17.")


def main(_) -> None:
    command.require(config="configs/deit.py:digits", out="grid.png")
    indices = command.numbers("indices", flags.FLAGS.indices, int, "3,17")
    settings = command.values("config", "out", "images", "views", "first_view")
    print(show(**settings, indices=indices))


if __name__ == "__main__":
    define_flags()
    command.run(main)
