"""Is it worth it that the teacher sees the same image? Several caches, several seeds.

    python -m experiments.teacher_views --teacher=resnet50.pt --arch=resnet50 \\
        --image_size=64 --data_dir=$DATA_DIR --out=runs/teacher-views

One small student on 5,000 training images of CIFAR-10, tested on all 10,000: without a
teacher, with the teacher's answers to the plain images (mixed linearly), with its
answers to the student's own views before the mixing (mixed linearly) or after (exact),
exact with fewer views than epochs, and exact with the teacher's features too. Every run
and export is a command that can be repeated by hand; a stopped study goes on where it
was. At the end a table is printed, and written as Markdown and JSON into --out.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.cores import Cores
from experiments import study

TRAIN_SPLIT = "train[:5000]"
EPOCHS = 20
RECIPE = "seed_study"
CACHES = {
    "plain": {"view": "plain", "mixing": "linear"},
    "linear": {"view": "same", "mixing": "linear"},
    "exact": {"view": "same", "mixing": "exact"},
}
# This cache is exported with the teacher's features, for the rows that learn them.
CACHE_WITH_FEATURES = "exact"
WITH_FEATURES = {"kind": "features"}
# What each row of the table learns from: a cache, how many of its views, and how.
ROWS = {
    "no teacher": (None, None, {}),
    "plain, linear": ("plain", 1, {}),
    "same, linear": ("linear", EPOCHS, {}),
    "same, exact": ("exact", EPOCHS, {}),
    "same, exact, 16 views": ("exact", 16, {}),
    "same, exact, 4 views": ("exact", 4, {}),
    "features": ("exact", EPOCHS, WITH_FEATURES),
    "features, mean": ("exact", EPOCHS, WITH_FEATURES | {"features.student": "mean"}),
    "features, L1": (
        "exact",
        EPOCHS,
        WITH_FEATURES | {"features.distance": "smooth_l1"},
    ),
}
HEADS = ("class", "distill", "mean")


def config_flags(
    flags, cache: str | None, num_views: int | None, how: dict
) -> list[str]:
    """Flags of a run, and of the export that it needs."""
    name, variant = "vit", "vit_nano_patch8_32"
    fields = {
        "dataset.data_dir": flags.data_dir,
        "dataset.train_split": TRAIN_SPLIT,
        "augment.recipe": RECIPE,
    }
    if cache:
        name, variant = "deit", "deit_nano_distilled_patch8_32"
        distillation = CACHES[cache] | {
            "logits_dir": flags.out / cache,
            "num_views": num_views,
            **how,
        }
        fields |= {f"distillation.{key}": value for key, value in distillation.items()}
    fields["model.variant"] = variant
    return [f"--config=configs/{name}.py:cifar10"] + [
        f"--config.{key}={value}" for key, value in fields.items()
    ]


def export_command(flags, cache: str) -> list[str]:
    how = WITH_FEATURES if cache == CACHE_WITH_FEATURES else {}
    return [*study.export(flags), *config_flags(flags, cache, EPOCHS, how)]


def train_command(flags, row: str, seed: int) -> list[str]:
    return study.python(
        "deit_jax.main",
        *config_flags(flags, *ROWS[row]),
        f"--config.seed={seed}",
        f"--config.epochs={EPOCHS}",
        "--config.schedule.warmup_epochs=2",
        "--config.ema.decay=0.99",
        "--config.eval.every_epochs=0",
        "--config.checkpoint.every_steps=0",
        f"--workdir={workdir(flags, row, seed)}",
    )


def workdir(flags, row: str, seed: int) -> Path:
    return flags.out / f"{row.replace(', ', '-').replace(' ', '-')}-seed{seed}"


def table(flags) -> tuple[str, dict]:
    """Markdown, and {row: {weights/head: top-1 of each seed}}."""
    figures = {}
    for row in ROWS:
        summaries = [
            json.loads((workdir(flags, row, seed) / "summary.json").read_text())
            for seed in range(flags.seeds)
        ]
        figures[row] = {
            f"{weights}/{head}": [s[weights][head]["top1"] for s in summaries]
            for weights in ("eval", "eval_ema")
            for head in HEADS
            if head in summaries[0][weights]
        }
    lines = [
        "| teacher's views | class | distill | mean | EMA class | EMA mean |",
        "|---|---|---|---|---|---|",
    ]
    columns = ("eval/class", "eval/distill", "eval/mean", "eval_ema/class")
    for row, values in figures.items():
        cells = []
        for column in (*columns, "eval_ema/mean"):
            if column in values:
                top1 = 100 * np.array(values[column])
                cells.append(f"{top1.mean():.2f} +- {top1.std(ddof=1):.2f}")
            else:
                cells.append("")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n", figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--arch")
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--out", type=Path, default=Path("runs/teacher-views"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2, help="runs at the same time")
    parser.add_argument("--gpu", action="store_true", help="train on JAX's default")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)

    cores = Cores(flags.cores, gpu=flags.gpu)
    exports = {
        f"export-{cache}": export_command(flags, cache)
        for cache in CACHES
        if not (flags.out / cache / "manifest.json").exists()
    }
    cores.run(exports, flags.out)
    runs = {
        workdir(flags, row, seed).name: train_command(flags, row, seed)
        for seed in range(flags.seeds)
        for row in ROWS
        if not (workdir(flags, row, seed) / "summary.json").exists()
    }
    cores.run(runs, flags.out)
    text, figures = table(flags)
    (flags.out / "table.md").write_text(text)
    (flags.out / "table.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
