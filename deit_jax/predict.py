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

import concurrent.futures
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from scipy.special import softmax

from deit_jax import command, files
from deit_jax.errors import InputError

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
    """Prints the most probable classes of every image at `paths`, sorted by name.

    Args:
      workdir: A run directory.
      paths: Images, and folders of images.
      weights, step: As for `trained_model.load`.
      top: Classes shown for an image; all, of fewer.
      batch_size: Images at once.
      as_json: One JSON object a line instead of the table.
      logits_out: An .npz file for `files`, str [N], and the logits of every head,
        float32 [N, C], in the order of the file names; without the unreadable.

    Returns:
      The number of files that could not be read.

    Raises:
      InputError: `workdir`, `paths` or a setting cannot work, or `logits_out` cannot
        be written.
    """
    _check_settings(top, batch_size, logits_out)
    from deit_jax import trained_model

    found = _find(paths)
    trained = trained_model.load(workdir, weights=weights, step=step)
    width = min(NAME_WIDTH, max(map(len, found)))
    kept: dict[str, list] = {"files": []}
    unreadable = 0
    for file, logits in _logits(trained, found, min(batch_size, len(found))):
        if isinstance(logits, InputError):
            unreadable += 1
            print(f"error: {logits}", file=sys.stderr)
            if as_json:
                print(json.dumps({"file": file, "error": str(logits)}))
            continue
        decisive = logits.get("mean", logits["class"])
        answers = rank(decisive, trained.card.class_names)[:top]
        print(_line(file, answers, width=None if as_json else width), flush=True)
        kept["files"].append(file)
        for head, row in logits.items() if logits_out is not None else ():
            kept.setdefault(head, []).append(row)
    if logits_out is not None:
        with files.writing(logits_out, "--logits_out"):
            np.savez(logits_out, **kept)
    if unreadable:
        print(f"{unreadable:,} of {len(found):,} files unreadable", file=sys.stderr)
    return unreadable


def _find(paths: Sequence[str]) -> list[str]:
    from deit_jax.data.sources import image_files

    found, passed_over = image_files.find(paths)
    if passed_over:
        counted = ", ".join(f"{n:,} {ending}" for ending, n in passed_over.items())
        print(f"files passed over, no images: {counted}", file=sys.stderr)
    return found


def _line(file: str, answers: list[dict], *, width: int | None) -> str:
    """A line of the table, its first column `width` wide; JSON without a width."""
    if width is None:
        return json.dumps({"file": file, "top": answers})
    shown = (f"{100 * a['probability']:5.1f}% {a['name']}" for a in answers)
    return f"{file:<{width}}  {'  '.join(shown)}"


def _check_settings(top: int, batch_size: int, logits_out: str | None) -> None:
    command.require_at_least(1, top=top, batch_size=batch_size)
    if logits_out is not None and not logits_out.endswith(".npz"):
        raise InputError(f"--logits_out={logits_out}: expected a name ending in .npz.")
    if logits_out is not None and not Path(logits_out).parent.is_dir():
        raise InputError(f"--logits_out={logits_out}: its folder does not exist.")


def rank(logits: np.ndarray, class_names: Sequence[str]) -> list[dict]:
    """All classes, the most probable first; of equals the one with the lower number.

    Args:
      logits: float [C].

    Returns:
      {"class": its number, "name": str, "probability": 0 .. 1} of each.
    """
    probabilities = softmax(logits.astype(np.float64))
    ranked = np.argsort(-probabilities, kind="stable").tolist()
    return [
        {"class": c, "name": class_names[c], "probability": float(probabilities[c])}
        for c in ranked
    ]


def _logits(trained, files: list[str], batch_size: int) -> Iterator[tuple]:
    """Yields every file with {head: float32 [C]}, or with the error that it raised."""
    from deit_jax.data.batches import prefetch

    # The next images are decoded while the model looks at these.
    for block, read in prefetch(_read(trained, files, batch_size), size=1):
        views = [view for view in read if not isinstance(view, InputError)]
        rows = iter(())
        if views:
            filled = views + views[-1:] * (batch_size - len(views))  # one shape only
            logits = trained.logits(np.stack(filled))
            rows = (
                {head: x[i] for head, x in logits.items()} for i in range(batch_size)
            )
        for file, view in zip(block, read, strict=True):
            yield file, view if isinstance(view, InputError) else next(rows)


def _read(trained, files: list[str], batch_size: int) -> Iterator[tuple]:
    """Yields blocks of files, each file with its uint8 [S, S, 3] or its error."""
    from deit_jax.data.sources import image_files

    def view(file):
        try:
            return trained.view(image_files.read(file))
        except InputError as error:
            return error

    # Threads suffice: Pillow decodes and resizes without Python's lock.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for first in range(0, len(files), batch_size):
            block = files[first : first + batch_size]
            yield block, list(pool.map(view, block))


def define_flags() -> None:
    command.define_model_flags()
    flags.DEFINE_integer("top", 5, "Classes shown for an image.")
    flags.DEFINE_integer("batch_size", 64, "Images at once.")
    flags.DEFINE_bool("json", False, "One JSON object a line instead of a table.")
    flags.DEFINE_string("logits_out", None, "Write all logits to this .npz file.")


def main(argv) -> int:
    command.require(workdir="runs/deit-digits")
    workdir = flags.FLAGS.workdir
    if not argv[1:]:
        raise InputError(
            "give images or folders of images, e.g. "
            f"python -m deit_jax.predict --workdir={workdir} image.jpg"
        )
    settings = command.values("weights", "step", "top", "batch_size", "logits_out")
    return min(1, predict(workdir, argv[1:], as_json=flags.FLAGS.json, **settings))


if __name__ == "__main__":
    define_flags()
    command.run(main, takes="images")
