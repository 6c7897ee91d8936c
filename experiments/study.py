"""The study that this project grew from, in one command.

    python -m experiments.study --scale=micro --data_dir=$DATA_DIR \\
        --teacher=resnet50.pt --arch=resnet50 --image_size=64
    python -m experiments.study --scale=full --gpu --data_dir=$DATA_DIR
    make study ARGS="--scale=full --gpu --data_dir=$DATA_DIR"      # installs first

ViT, DeiT, and DeiT with augmentation on CIFAR-10, as configs/study.py has them: this
takes a teacher or trains one, caches its logits, trains the three with each of the
seeds, and writes the report. First it measures what that will cost, and prints it.
Everything is a command that can be repeated by hand, with its log in --out; a stopped
study goes on where it was. Longer runs (--epochs=100) want an --out of their own; moved
there, the directories logits-* serve them too.

- full: the study's own models, DeiT-Ti with patches of 4 px. For a GPU.
- small: patches of 4 px and a quarter of the parameters, 10 views of the augmented
  images. Some hours on two cores.
- micro: the nano models with patches of 8 px, a thirtieth of the work, and 5 views of
  the augmented images, each of them seen 4 times.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.cores import Cores

MODELS = ("vit", "deit", "deit_augment")
# Without the distillation token, and with it.
VARIANTS = {
    "micro": ("vit_nano_patch8_32", "deit_nano_distilled_patch8_32"),
    "small": ("vit_micro_patch4_32", "deit_micro_distilled_patch4_32"),
    "full": ("vit_tiny_patch4_32", "deit_tiny_distilled_patch4_32"),
}
# Views of deit_augment: 20 are one for each epoch.
VIEWS = {"micro": 5, "small": 10, "full": 20}
# A ResNet-50 for 32 px: minutes on a GPU, days on two cores.
TEACHER = ("--arch=resnet50", "--stem=cifar", "--image_size=32", "--flip")
TEACHER_EPOCHS = 30
# Epochs of a run that is only timed: some 40 steps.
TIMED_EPOCHS = 0.05
TRAIN_IMAGES, EVAL_IMAGES = 50_000, 10_000
# Evaluating an image is a forward pass, training on it three.
EVALUATION = 1 / 3


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def student_flags(flags, model: str) -> list[str]:
    """Flags of a run, and of the export that it needs."""
    variant = VARIANTS[flags.scale][model != "vit"]
    fields = {"dataset.data_dir": flags.data_dir, "model.variant": variant}
    if model != "vit":
        fields["distillation.logits_dir"] = cache(flags, model)
    if model == "deit_augment":
        fields["distillation.num_views"] = VIEWS[flags.scale]
    return [f"--config=configs/study.py:{model}"] + [
        f"--config.{name}={value}" for name, value in fields.items()
    ]


def cache(flags, model: str) -> Path:
    return flags.out / f"logits-{model}"


def workdir(flags, model: str, seed: int) -> Path:
    return flags.out / f"{model}-seed{seed}"


def teacher_command(flags) -> list[str]:
    return python(
        "teacher.finetune",
        "--dataset=cifar10",
        f"--data_dir={flags.data_dir}",
        *TEACHER,
        f"--epochs={TEACHER_EPOCHS}",
        "--batch_size=128",
        "--learning_rate=0.1",
        f"--out={flags.teacher}",
    )


def export(flags) -> list[str]:
    """An export with the teacher of `flags`, but for its config."""
    names = ("teacher", "precision", "arch", "image_size")
    given = {name: getattr(flags, name) for name in names if getattr(flags, name)}
    settings = (f"--{name}={value}" for name, value in given.items())
    return python("teacher.export_logits", *settings)


def export_command(flags, model: str, *more: str) -> list[str]:
    return [*export(flags), *student_flags(flags, model), *more]


def train_command(flags, model: str, seed: int, workdir: Path) -> list[str]:
    return python(
        "deit_jax.main",
        *student_flags(flags, model),
        f"--config.seed={seed}",
        f"--config.epochs={flags.epochs}",
        f"--workdir={workdir}",
    )


def exports(flags) -> dict[str, list[str]]:
    """Exports that are not there yet; the large one is shared between the cores."""
    commands = {}
    for model in MODELS[1:]:
        if (cache(flags, model) / "manifest.json").exists():
            continue
        views = VIEWS[flags.scale]
        parts = min(flags.cores, views) if model == "deit_augment" else 1
        ends = [part * views // parts for part in range(parts + 1)]
        for part, (start, stop) in enumerate(itertools.pairwise(ends)):
            share = [f"--only_views={start}:{stop}"] if parts > 1 else []
            name = f"export-{model}" + (f"-{part}" if share else "")
            commands[name] = export_command(flags, model, *share)
    return commands


def finishes(flags) -> dict[str, list[str]]:
    """Exports whose views are there, but not yet a cache."""
    return {
        f"finish-{model}": export_command(flags, model)
        for model in MODELS[1:]
        if not (cache(flags, model) / "manifest.json").exists()
    }


def runs(flags) -> dict[str, list[str]]:
    """Those that are not finished; seed by seed, so that early stops compare."""
    return {
        workdir(flags, model, seed).name: train_command(
            flags, model, seed, workdir(flags, model, seed)
        )
        for seed in range(flags.seeds)
        for model in MODELS
        if not (workdir(flags, model, seed) / "summary.json").exists()
    }


def report_command(flags) -> list[str]:
    directories = [workdir(flags, m, s) for m in MODELS for s in range(flags.seeds)]
    return python(
        "deit_jax.report",
        *map(str, directories),
        f"--out={flags.out / 'report'}",
        "--images=12",
        "--attention",
    )


def measure(flags, cores: Cores) -> dict[str, dict[str, float]]:
    """{stage: {"seconds", "bytes"}} of all that the study has to do.

    From short trials on one core: the stages use all of them, a command on each.
    """
    budget = {}
    for model in MODELS[1:]:
        done = cores.output(export_command(flags, model, "--estimate"))
        found = json.loads(done.splitlines()[-1])
        budget[f"export-{model}"] = {
            "seconds": found["seconds"] / flags.cores,
            "bytes": found["bytes"],
        }
    for model in ("vit", "deit_augment"):  # the cheapest and the dearest step
        with tempfile.TemporaryDirectory() as directory:
            command = train_command(flags, model, 0, Path(directory))
            command += [
                f"--config.epochs={TIMED_EPOCHS}",
                "--config.schedule.warmup_epochs=0",
                # The cache is not there yet: without the token and its loss, which
                # cost a few percent.
                f"--config.model.variant={VARIANTS[flags.scale][0]}",
                "--config.distillation.kind=none",
                "--config.distillation.head=class",
                "--config.log.every_steps=5",
                f"--config.dataset.eval_split=test[:{flags.cores * 64}]",
            ]
            cores.output(command)
            summary = json.loads((Path(directory) / "summary.json").read_text())
            checkpoint = sum(
                file.stat().st_size
                for file in Path(directory).rglob("checkpoints/**/*")
            )
        images = flags.epochs * (TRAIN_IMAGES + EVALUATION * EVAL_IMAGES)
        budget[f"train-{model}"] = {
            "seconds": images / summary["images_per_sec"] / flags.cores,
            "bytes": 2 * checkpoint,
        }
    budget["train-deit"] = budget["train-deit_augment"]
    return {
        stage: {
            name: value * (flags.seeds if stage.startswith("train") else 1)
            for name, value in cost.items()
        }
        for stage, cost in budget.items()
    }


def describe(budget: dict[str, dict[str, float]]) -> str:
    total = {k: sum(cost[k] for cost in budget.values()) for k in ("seconds", "bytes")}
    lines = [f"{'stage':<22}{'minutes':>9}{'MB':>9}"]
    for stage, cost in (budget | {"all": total}).items():
        lines.append(
            f"{stage:<22}{cost['seconds'] / 60:>9.1f}{cost['bytes'] / 1e6:>9.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", choices=VARIANTS, required=True)
    parser.add_argument("--data_dir", required=True, help="where TFDS has cifar10")
    parser.add_argument("--teacher", help="a run or weights; trained if not given")
    parser.add_argument("--arch", help="of a teacher that is a bare state dict")
    parser.add_argument("--image_size", type=int, help="of such a teacher")
    parser.add_argument("--precision", default="auto", help="of the teacher's answers")
    parser.add_argument("--out", type=Path, help="runs/study-<scale> if not given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="20 in the study")
    parser.add_argument("--cores", type=int, default=2, help="commands at once")
    parser.add_argument("--gpu", action="store_true", help="one command at a time")
    parser.add_argument("--budget", action="store_true", help="print it and stop")
    flags = parser.parse_args()
    flags.out = flags.out or Path(f"runs/study-{flags.scale}")
    flags.cores = 1 if flags.gpu else flags.cores
    flags.out.mkdir(parents=True, exist_ok=True)

    cores = Cores(flags.cores, gpu=flags.gpu)
    if not flags.teacher:
        flags.teacher = str(flags.out / "teacher")
        if not (flags.out / "teacher" / "teacher.pt").exists():
            print(f"no --teacher: training one in {flags.teacher}", flush=True)
            cores.run({"teacher": teacher_command(flags)}, flags.out)
    budget_file = flags.out / "budget.json"
    if not budget_file.exists():
        print("measuring what it will cost ...", flush=True)
        budget_file.write_text(json.dumps(measure(flags, cores), indent=1) + "\n")
    print(describe(json.loads(budget_file.read_text())), flush=True)
    if flags.budget:
        return
    cores.run(exports(flags), flags.out)
    cores.run(finishes(flags), flags.out)
    cores.run(runs(flags), flags.out)
    subprocess.run(report_command(flags), check=True)


if __name__ == "__main__":
    main()
