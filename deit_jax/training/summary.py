"""`summary.json`: what a finished run has come to, and how it is printed."""

import importlib.metadata
import json
import platform
from pathlib import Path

from deit_jax.files import replace_file
from deit_jax.training.progress import clock

SUMMARY = "summary.json"


def write(workdir: Path, facts: dict) -> dict:
    """Adds the versions to `facts`, writes and prints them; returns what it wrote."""
    versions = {p: importlib.metadata.version(p) for p in ("jax", "flax", "optax")}
    summary = facts | {"versions": {"python": platform.python_version()} | versions}
    replace_file(workdir / SUMMARY, json.dumps(summary, indent=1) + "\n")
    show(summary, workdir)
    return summary


def read(workdir: Path) -> dict | None:
    """The summary of a finished run; None where there is none."""
    path = workdir / SUMMARY
    return json.loads(path.read_text()) if path.exists() else None


def show(summary: dict, workdir: Path) -> None:
    """Prints the final table: each head, raw and EMA."""
    rate = summary["images_per_sec"]
    print(
        f"\n{summary['variant']} on {summary['dataset']} "
        f"({summary['eval_split']}, {summary['eval_images']:,} images), after step "
        f"{summary['steps']:,}, {clock(summary['seconds'])} of training"
        + (f" at {rate:,.0f} images/s" if rate else "")
    )
    print(f"{'weights':<10}{'head':<10}{'loss':>9}{'top-1':>9}{'top-5':>9}")
    for key, weights in (("eval", "raw"), ("eval_ema", "EMA")):
        for head, values in summary.get(key, {}).items():
            print(
                f"{weights:<10}{head:<10}{values['loss']:>9.4f}"
                f"{100 * values['top1']:>8.2f}%{100 * values['top5']:>8.2f}%"
            )
    print(
        f"\nSummary  {workdir / SUMMARY}\nCurves   tensorboard --logdir={workdir}",
        flush=True,
    )


def headline(results: dict) -> str:
    """Top-1 of every head in one line, for `{"eval": {"class": {...}}}`."""
    parts = []
    for prefix, per_head in results.items():
        scores = "  ".join(f"{h} {v['top1']:.4f}" for h, v in per_head.items())
        parts.append(f"{prefix} top-1: {scores}")
    return "  ".join(parts)
