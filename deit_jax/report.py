"""Compares runs: a page with tables, curves and matrices, from run directories alone.

    python -m deit_jax.report runs/vit-digits runs/deit-digits --out=runs/report

writes report.html, which needs no other file and no network, and the same as report.md
with its images as PNG. Runs whose configs differ in nothing but the seed are shown as
mean and standard deviation. The first run is what the others are compared with.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from deit_jax import command, files
from deit_jax.errors import InputError

HTML, MARKDOWN = "report.html", "report.md"


def report(
    directories: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    title: str = "Comparison of runs",
) -> Path:
    """Writes the report of the runs in `directories` into the directory `out`.

    Args:
      directories: Run directories, finished or not; differences are to the first.
      out: Is made; files of an earlier report are replaced.

    Returns:
      The HTML page. Beside it are report.md and the images.

    Raises:
      InputError: One of `directories` is no run directory or is damaged, or `out`
        cannot be written.
    """
    from deit_jax.reporting import contents, document, runs

    sections = contents.sections(runs.group(runs.read(directories)))
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


def main(argv) -> None:
    directories, out = argv[1:], flags.FLAGS.out
    if not directories or out is None:
        raise InputError(
            "give run directories and where to write, e.g. "
            "python -m deit_jax.report runs/vit-digits runs/deit-digits "
            "--out=runs/report"
        )
    page = report(directories, out, title=flags.FLAGS.title)
    print(f"{page}\n{page.with_name(MARKDOWN)}")


if __name__ == "__main__":
    define_flags()
    command.run(main, takes="run directories")
