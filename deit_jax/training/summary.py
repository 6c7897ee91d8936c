"""`summary.json`: the results of a finished run, and how they are printed."""

import importlib.metadata
import json
import platform
import re
from collections.abc import Sequence
from pathlib import Path

from deit_jax import files
from deit_jax.errors import InputError, listed
from deit_jax.files import replace_file
from deit_jax.training.progress import clock

SUMMARY = "summary.json"
WEIGHTS = (("eval", "raw"), ("eval_ema", "EMA"))  # where their results stand
# Of the final table: the metric, its title and its format.
COLUMNS = (
    ("loss", "loss", ".4f"),
    ("top1", "top-1", ".2%"),
    ("top5", "top-5", ".2%"),
    ("f1", "F1", ".4f"),
    ("auc", "AUC", ".4f"),
    ("ece", "ECE", ".4f"),
)


def write(workdir: Path, facts: dict) -> dict:
    """Adds the versions to `facts`, writes and prints them; returns what it wrote."""
    versions = {p: importlib.metadata.version(p) for p in ("jax", "flax", "optax")}
    summary = facts | {"versions": {"python": platform.python_version()} | versions}
    replace_file(workdir / SUMMARY, _encode(summary) + "\n")
    show(summary, workdir)
    return summary


def _encode(summary: dict) -> str:
    """JSON with one line for each list of plain values, such as a confusion's row."""
    text = json.dumps(summary, indent=1)
    # JSON escapes a line end in a string, so no string can change.
    return re.sub(
        r"\[\n *([^\[\]{}]*?)\n *\]",
        lambda match: "[" + re.sub(r"\n *", " ", match[1]) + "]",
        text,
    )


def read(workdir: Path) -> dict | None:
    """The summary of a finished run; None where there is none.

    Raises:
      InputError: It is damaged.
    """
    path = workdir / SUMMARY
    if not path.exists():
        return None
    try:
        summary = files.read_json(path)
        files.check(summary, {"eval": {...: (dict, float)}})
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged: {error}. Delete it: the same training command writes "
            "it anew."
        ) from error
    return summary


def show(summary: dict, workdir: Path) -> None:
    """Prints the final table: each head, raw and EMA."""
    rate = summary["images_per_sec"]
    print(
        f"\n{summary['variant']} on {summary['dataset']} "
        f"({summary['eval_split']}, {summary['eval_images']:,} images), after step "
        f"{summary['steps']:,}, {clock(summary['seconds'])} of training"
        + (f" at {rate:,.0f} images/s" if rate else "")
    )
    print(table(summary))
    print(
        f"\nSummary  {workdir / SUMMARY}\nCurves   tensorboard --logdir={workdir}",
        flush=True,
    )


def table(results: dict, columns: Sequence[tuple[str, str, str]] = COLUMNS) -> str:
    """A line for each head, raw and EMA, of the metrics that all of them have.

    Args:
      results: `eval` and maybe `eval_ema`, {head: {metric: value}}, maybe
        `absent_classes`, and maybe `intervals`, whose ends stand under a head.
      columns: The metrics, with their titles and formats.
    """
    scored = [
        (key, weights, head, values)
        for key, weights in WEIGHTS
        for head, values in results.get(key, {}).items()
        if isinstance(values, dict)
    ]
    columns = [c for c in columns if all(c[0] in values for *_, values in scored)]
    titles = "".join(f"{title:>9}" for _, title, _ in columns)
    lines = [f"{'weights':<10}{'head':<10}{titles}"]
    intervals = results.get("intervals", {})
    for key, weights, head, values in scored:
        lines.append(_row(weights, head, values, columns))
        for end, title in enumerate(("from", "to")):
            if ends := intervals.get(key, {}).get(head):
                values = {name: both[end] for name, both in ends.items()}
                lines.append(_row("", f"  {title}", values, columns))
    if absent := results.get("absent_classes"):
        names = listed(absent)
        lines.append(
            f"no images of {len(absent)} classes, left out of F1 and AUC: {names}"
        )
    return "\n".join(lines)


def _row(weights: str, head: str, values: dict, columns) -> str:
    cells = [
        f"{values[n]:>9{form}}" if n in values else 9 * " " for n, _, form in columns
    ]
    return f"{weights:<10}{head:<10}{''.join(cells)}".rstrip()


def headline(results: dict) -> str:
    """Top-1 of every head in one line, for `{"eval": {"class": {...}}}`."""
    parts = []
    for prefix, per_head in results.items():
        scored = {h: v["top1"] for h, v in per_head.items() if isinstance(v, dict)}
        scores = "  ".join(f"{head} {top1:.4f}" for head, top1 in scored.items())
        parts.append(f"{prefix} top-1: {scores}")
    return "  ".join(parts)
