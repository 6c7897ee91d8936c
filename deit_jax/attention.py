"""Draws what a model looks at: attention maps over images.

    python -m deit_jax.attention --workdir=runs/deit-digits seven.png --out=maps
    python -m deit_jax.attention --workdir=runs/deit-digits images/ --out=maps

One PNG an image. Left is what the model saw, with its predictions; then the attention
of the last block, a column a head, and the attention rollout over all blocks (Abnar and
Zuidema 2020). The upper row is the class token's, the lower, of a distilled model, the
distillation token's. With model.pool=mean the upper row is that of the patches, on
average. Each map is scaled to its own maximum, which stands above it as
a multiple of uniform attention. A file that cannot be read is reported, the others go
on, and the exit code is 1.
"""

import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from scipy.special import softmax

from deit_jax import command, files, over_images
from deit_jax.errors import InputError

TOKENS = {"token": "class token", "mean": "mean of the patches"}  # by pooling
PANEL = 1.7  # inches a side
DPI = 120


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
      out: Is made, with `<stem of the file>.png` for each, numbered where two have
        the same.

    Returns:
      The number of files that could not be read.

    Raises:
      InputError: `workdir` or `paths` cannot work, or `out` cannot be written.
    """
    from deit_jax import trained_model
    from deit_jax.reporting.labels import readable

    found = over_images.find(paths)
    trained = trained_model.load(workdir, weights=weights, step=step)
    out = Path(out)
    with files.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    names = dict(zip(found, _names(found), strict=True))
    unreadable = 0
    # One by one: a ViT-B at 384 px has 48 million weights in the maps of an image.
    for file, view, seen in over_images.each(
        trained, trained.attention_of, found, batch_size=1
    ):
        if seen is None:
            unreadable += 1
            continue
        maps, logits = seen
        classes = trained.card.class_names
        rows = {"class": TOKENS[trained.card.pool], "distill": "distillation token"}
        answers = {rows[h]: _top(values, classes) for h, values in logits.items()}
        title = readable(Path(file).name, found.index(file), 60, kind="image")
        figure = plot(view, maps.heads, maps.rollout, answers, title=title)
        with files.writing(out / names[file]):
            figure.savefig(out / names[file], dpi=DPI)
        print(out / names[file], flush=True)
    return unreadable


def plot(
    view: np.ndarray,
    heads: np.ndarray,
    rollout: np.ndarray,
    predictions: dict[str, str],
    *,
    title: str,
):
    """Plots one image.

    Args:
      view: What the model saw, uint8 [S, S, 3].
      heads: float [t, H, s, s], the last block's attention to the patches.
      rollout: float [t, s, s].
      predictions: For each of the t rows of maps its name and what its head says.
    """
    from matplotlib.figure import Figure

    from deit_jax.reporting.figures import overlay

    tokens, columns = heads.shape[0], heads.shape[1] + 2
    size = PANEL * columns, (PANEL + 0.25) * tokens + 0.3
    figure = Figure(size, layout="constrained")
    figure.suptitle(title, fontsize=9, parse_math=False)
    bare = {"xticks": [], "yticks": []}
    panels = figure.subplots(tokens, columns, squeeze=False, subplot_kw=bare)
    show = functools.partial(overlay, view=view)
    for row, (name, answer) in enumerate(predictions.items()):
        panels[row, 0].imshow(view)
        panels[row, 0].set_title(answer, fontsize=8, parse_math=False)
        panels[row, 0].set_ylabel(name, fontsize=8)
        for column in range(columns - 2):
            show(panels[row, 1 + column], heads[row, column], f"head {column + 1}")
        show(panels[row, -1], rollout[row], "rollout")
    return figure


def _top(logits: np.ndarray, class_names: Sequence[str]) -> str:
    from deit_jax.reporting.labels import readable

    best = int(logits.argmax())
    name = readable(class_names[best], best, 24)
    return f"{name} {softmax(logits)[best]:.0%}"


def _names(files: Sequence[str]) -> list[str]:
    """`<stem>.png` for each file, `<stem>-2.png` for the second of that stem, ..."""
    names: dict[str, None] = {}
    for stem in (Path(file).stem for file in files):
        numbered = (f"{stem}-{number}.png" for number in itertools.count(2))
        candidates = itertools.chain([f"{stem}.png"], numbered)
        names[next(name for name in candidates if name not in names)] = None
    return list(names)


def define_flags() -> None:
    command.define_model_flags()
    flags.DEFINE_string("out", None, "The folder to draw into; it is made.")


def main(argv) -> int:
    command.require(workdir="runs/deit-digits", out="maps")
    if not argv[1:]:
        raise InputError("give images or folders of images to look at")
    settings = command.values("weights", "step")
    return min(1, draw(flags.FLAGS.workdir, argv[1:], flags.FLAGS.out, **settings))


if __name__ == "__main__":
    define_flags()
    command.run(main, takes="images")
