"""Names what is in images, with the model of a run directory.

    python -m deit_jax.predict --workdir=runs/deit-digits seven.png three.jpg
    python -m deit_jax.predict --workdir=runs/deit-digits images/ --json
    python -m deit_jax.predict --workdir=runs/deit-digits images/ \\
        --logits_out=logits.npz

An image is brought to the model's size as in the evaluation of its training run. The
probabilities are those of the mean of both heads' logits, as DeiT predicts, or of the
one head there is. A file that cannot be read is reported, the others go on, and the
exit code is 1.
"""

import collections
import json
import os
from collections.abc import Sequence

import numpy as np
from absl import flags

from deit_jax import command, files, over_images

NAME_WIDTH = 60  # of the table's first column, at most


def predict(
    workdir: str | os.PathLike,
    paths: Sequence[str],
    *,
    weights: str = "raw",
    step: int | None = None,
    top: int = 5,
    batch_size: int = 64,
    as_json: bool = False,
    logits_out: str | None = None,
) -> int:
    """Prints the classes of the images at `paths`; returns how many are unreadable.

    Args:
      workdir, weights, step: As for `trained_model.load`.
      paths: Images, and folders of images.
      as_json: One JSON object a line instead of the table.
      logits_out: An .npz file for `files`, str [N], and the logits of every head,
        float32 [N, C]; without the unreadable.

    Raises:
      InputError: An argument cannot work, or `logits_out` cannot be written.
    """
    command.require_at_least(1, top=top, batch_size=batch_size)
    if logits_out is not None:
        over_images.check_npz(logits_out, "--logits_out")
    found = over_images.find(paths)
    from deit_jax import trained_model

    trained = trained_model.load(workdir, weights=weights, step=step)
    width = min(NAME_WIDTH, max(map(len, found)))
    kept, unreadable = collections.defaultdict(list, files=[]), 0
    each = over_images.each(trained, trained.logits_of, found, batch_size=batch_size)
    for file, view, logits in each:
        if logits is None:
            unreadable += 1
            if as_json:
                print(json.dumps({"file": file, "error": str(view)}))
            continue
        decisive = logits.get("mean", logits["class"])
        answers = trained_model.rank(decisive, trained.card.class_names)[:top]
        print(_line(file, answers, None if as_json else width), flush=True)
        if logits_out is not None:
            for name, value in {"files": file, **logits}.items():
                kept[name].append(value)
    if logits_out is not None:
        with files.writing(logits_out, "--logits_out"):
            np.savez(logits_out, **kept)
    return unreadable


def _line(file: str, answers: list[dict], width: int | None) -> str:
    """A line of the table, its first column `width` wide; JSON without a width."""
    if width is None:
        return json.dumps({"file": file, "top": answers})
    shown = (f"{100 * a['probability']:5.1f}% {a['name']}" for a in answers)
    return f"{file:<{width}}  {'  '.join(shown)}"


def define_flags() -> None:
    command.define_model_flags()
    flags.DEFINE_integer("top", 5, "Classes shown for an image.")
    flags.DEFINE_integer("batch_size", 64, "Images at once.")
    flags.DEFINE_bool("json", False, "One JSON object a line instead of a table.")
    flags.DEFINE_string("logits_out", None, "Write all logits to this .npz file.")


def main(argv) -> int:
    command.require(workdir="runs/deit-digits")
    settings = command.values("weights", "step", "top", "batch_size", "logits_out")
    settings["as_json"] = flags.FLAGS.json
    return min(1, predict(flags.FLAGS.workdir, argv[1:], **settings))


if __name__ == "__main__":
    define_flags()
    command.run(main, takes="images")
