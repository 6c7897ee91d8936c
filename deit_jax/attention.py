"""Draws what a model looks at: attention maps over images.

    python -m deit_jax.attention --workdir=runs/deit-digits seven.png --out=maps
    python -m deit_jax.attention --workdir=runs/deit-digits images/ --out=maps

One PNG an image. Left is what the model saw, with its predictions; then the attention
of the last block, a column a head, and the attention rollout over all blocks (Abnar and
Zuidema 2020). The upper row is the class token's (with model.pool=mean that of the
patches, on average), the lower, of a distilled model, the distillation token's. Each
map is scaled to its own maximum, which stands above it as a multiple of uniform
attention. A file that cannot be read is reported, the others go on, and the exit code
is 1.
"""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from scipy.special import softmax

from deit_jax import command, files, over_images

TOKENS = {"token": "class token", "mean": "mean of the patches"}  # by pooling
PANEL = 1.4  # inches a side


def draw(
    workdir: str | os.PathLike,
    paths: Sequence[str],
    out: str | os.PathLike,
    *,
    weights: str = "raw",
    step: int | None = None,
) -> int:
    """Draws the attention maps of every image at `paths` into the folder `out`.

    Args:
      workdir, weights, step: As for `trained_model.load`.
      paths: Images, and folders of images.
      out: Is made, with `<stem>.png` for each, numbered where two have the same.

    Returns:
      The number of files that could not be read.

    Raises:
      InputError: An argument cannot work, or `out` cannot be written.
    """
    found = over_images.find(paths)
    from deit_jax import trained_model
    from deit_jax.reporting import figures

    trained = trained_model.load(workdir, weights=weights, step=step)
    tokens = {"class": TOKENS[trained.card.pool], "distill": "distillation token"}
    out = Path(out)
    with files.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    names, unreadable = _names(found), 0
    # One by one: a ViT-B at 384 px has 48 million weights in the maps of an image.
    for file, view, seen in over_images.each(
        trained, trained.attention_of, found, batch_size=1
    ):
        if seen is None:
            unreadable += 1
            continue
        (heads, rollout), logits = seen
        said = [f"{tokens[h]}\n{_top(x, trained.card)}" for h, x in logits.items()]
        rows = [(text, view) for text in said]
        columns = [(f"head {n + 1}", heads[:, n]) for n in range(heads.shape[1])]
        columns.append(("rollout", rollout))
        drawn = figures.attention(rows, columns, side=PANEL)
        with files.writing(out / names[file]):
            (out / names[file]).write_bytes(drawn)
        print(out / names[file], flush=True)
    return unreadable


def _top(logits: np.ndarray, card) -> str:
    from deit_jax.reporting.labels import readable

    best = int(logits.argmax())
    name = readable(card.class_names[best], best, 24)
    return f"{name} {softmax(logits)[best]:.0%}"


def _names(files: Sequence[str]) -> dict[str, str]:
    """`<stem>.png` for each file, `<stem>-2.png` for the second of that stem, ..."""
    names: dict[str, str] = {}
    for file in files:
        name, number = f"{Path(file).stem}.png", itertools.count(2)
        while name in names:
            name = f"{Path(file).stem}-{next(number)}.png"
        names[name] = file
    return {file: name for name, file in names.items()}


def define_flags() -> None:
    command.define_model_flags()
    flags.DEFINE_string("out", None, "The folder to draw into; it is made.")


def main(argv) -> int:
    command.require(workdir="runs/deit-digits", out="maps")
    settings = command.values("weights", "step")
    return min(1, draw(flags.FLAGS.workdir, argv[1:], flags.FLAGS.out, **settings))


if __name__ == "__main__":
    define_flags()
    command.run(main, takes="images")
