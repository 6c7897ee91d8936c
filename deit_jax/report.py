"""Compares runs: a page with tables, curves and matrices, from run directories alone.

    python -m deit_jax.report runs/vit-digits runs/deit-digits --out=runs/report

writes report.html, which needs no other file and no network, and the same as report.md
with its images as PNG. Runs whose configs differ in nothing but the seed are shown as
mean and standard deviation. The first run is what the others are compared with. What
the figures show is said in words, with confidence intervals, which are paired where the
predictions.npz of the runs are of the same images. --images=12 --attention shows too
what the runs say about the same twelve evaluation images, which takes the data set, and
what they look at, which takes their checkpoints.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from deit_jax import command, files
from deit_jax.errors import InputError

HTML, MARKDOWN = "report.html", "report.md"
EXAMPLE = "python -m deit_jax.report runs/vit-digits runs/deit-digits --out=runs/report"


def report(
    directories: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    title: str = "Comparison of runs",
    images: int = 0,
    attention: bool = False,
) -> Path:
    """Writes the report of the runs in `directories` into the directory `out`.

    Args:
      directories: Run directories, finished or not; differences are to the first.
      out: Is made; files of an earlier report are replaced.
      images, attention: As for `contents.sections`.

    Returns:
      The HTML page. Beside it are report.md and the images.

    Raises:
      InputError: One of `directories` is no run directory or is damaged, or `out`
        cannot be written.
    """
    from deit_jax.reporting import contents, document, runs

    groups = runs.group(runs.read(directories))
    sections = contents.sections(groups, images=images, attention=attention)
    out = Path(out)
    with files.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for image in document.images(sections):
            (out / f"{image.name}.png").write_bytes(image.png)
        files.replace_file(out / MARKDOWN, document.to_markdown(title, sections))
        files.replace_file(out / HTML, document.to_html(title, sections))
    return out / HTML


def define_flags() -> None:
    flags.DEFINE_string("out", None, "Directory of the report; it is made.")
    flags.DEFINE_string("title", "Comparison of runs", "Of the page.")
    flags.DEFINE_integer("images", 0, "Evaluation images to show the answers to: 12.")
    flags.DEFINE_bool("attention", False, "Show attention in some of --images.")


def main(argv) -> None:
    directories, out = argv[1:], flags.FLAGS.out
    if not directories or out is None:
        raise InputError(f"give run directories and where to write, e.g. {EXAMPLE}")
    command.require_at_least(0, images=flags.FLAGS.images)
    if flags.FLAGS.attention and not flags.FLAGS.images:
        raise InputError("--attention needs --images, e.g. --images=12")
    page = report(directories, out, **command.values("title", "images", "attention"))
    print(f"{page}\n{page.with_name(MARKDOWN)}")


if __name__ == "__main__":
    define_flags()
    command.run(main, takes="run directories")
