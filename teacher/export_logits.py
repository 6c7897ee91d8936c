"""Caches the teacher's logits of the training images, for a student to learn from.

    python -m teacher.export_logits --config=configs/deit.py:digits \\
        --teacher=runs/teacher-digits

The config is that of the student: it names the data set, its splits and the place of
the cache, so that the two belong together. The same command goes on where a killed
one stopped. A bare state dict of a torchvision network is a teacher too:

    python -m teacher.export_logits --config=configs/deit.py:digits \\
        --teacher=resnet50.pt --arch=resnet50 --image_size=64

Several processes, on one machine or on many, can each export a part; then one joins
them. Each part resumes by itself.

    for i in 0 1 2 3; do
        CUDA_VISIBLE_DEVICES=$i python -m teacher.export_logits \\
            --config=configs/deit.py:imagenet --teacher=DIR --shard=$i/4 &
    done; wait
    python -m teacher.export_logits --config=configs/deit.py:imagenet --join
"""

import os
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from deit_jax import command
from deit_jax.data import sources
from deit_jax.distillation import teacher_logits, teacher_parts
from deit_jax.errors import InputError
from teacher import classifier as classifiers
from teacher.blocks import consecutive, seen_whole


@classifiers.explain_out_of_memory()
def export(
    teacher: classifiers.Classifier,
    train,
    test,
    out: str | os.PathLike,
    *,
    shard: teacher_parts.Shard | None = None,
    batch_size: int = 64,
    precision: str = "float32",
    device: str | None = None,
    allow_weak_teacher: bool = False,
) -> None:
    """Writes the logits of every image of `train` without augmentation (plain view).

    The same arguments give byte-identical files on the same machine. Memory holds a
    few batches, whatever the length of the source. The teacher is measured on `test`
    once: not again by an export that goes on, and of several shards by the first.

    Args:
      teacher: Of the classes of `train`.
      train: The source to cache (`deit_jax.data.sources`).
      test: The source that the teacher's own top-1 is measured on.
      out: The cache's directory; an unfinished export in it is continued.
      shard: Write this part of the rows only, into a directory of its own in `out`
        (`deit_jax.distillation.teacher_parts`).
      batch_size: Images a forward pass.
      precision: See `classifier.choose_dtype`.
      device: See `classifier.choose_device`.
      allow_weak_teacher: Take a teacher near chance.

    Raises:
      InputError: The classes differ, the teacher is near chance, `out` holds another
        cache, the logits do not fit float16, or a GPU's memory runs out.
    """
    classifiers.check_classes(teacher, train)
    teacher_logits.check_unused(out)
    device = classifiers.choose_device(device)
    dtype = classifiers.choose_dtype(precision, device)
    # Autotuning picks kernels by the clock: two exports could differ in rounding.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True

    manifest = {
        "source": teacher_logits.describe_source(train),
        "views": {"count": 1, "view": "plain", "mixing": "none"},
        "teacher": {
            "arch": teacher.arch,
            "stem": teacher.stem,
            "weights_sha256": classifiers.weights_sha256(teacher.model),
            "image_size": teacher.image_size,
            "mean": list(teacher.mean),
            "std": list(teacher.std),
            "crop_ratio": None if seen_whole(train) else teacher.crop_ratio,
            "precision": str(dtype).removeprefix("torch."),
            "top1": None,
            "top1_split": test.split,
        },
    }
    directory, part = Path(out), ""
    first, last = 0, len(train)
    shape = (1, len(train), train.num_classes)
    if shard:
        manifest["shard"] = shard.describe(len(train), batch_size)
        first, last = manifest["shard"]["start"], manifest["shard"]["stop"]
        shape = (last - first, train.num_classes)
        directory = directory / shard.name
        part = f" (part {shard}: {first:,} to {last - 1:,})"
        if teacher_parts.is_written(directory, manifest):
            print(f"{directory} is written already")
            return
    rows_done, top1 = teacher_logits.find_unfinished(directory, manifest)
    measure = top1 is None and (shard is None or shard.number == 0)
    print(
        f"{train.name} {train.split}: {len(train):,} images{part} x 1 plain view x "
        f"{train.num_classes:,} classes, {np.prod(shape) * 2 / 1e6:,.2f} MB in "
        f"{directory}\n"
        f"{teacher.arch}, {teacher.stem} stem, {teacher.image_size} px, on {device} in "
        f"{str(dtype).removeprefix('torch.')}"
        + (f"\ngoing on after {rows_done:,} images" if rows_done else ""),
        flush=True,
    )
    rate = _images_per_second(teacher, train, batch_size, device, dtype)
    minutes = f"{(last - first - rows_done) / rate / 60:.1f} minutes to export"
    if measure:
        minutes = (
            f"{len(test) / rate / 60:.1f} minutes to measure the teacher on "
            f"{test.split}, then {minutes}"
        )
    print(f"about {rate:,.0f} images/s: {minutes}", flush=True)
    if measure:
        top1, counts = classifiers.evaluate(
            teacher, test, batch_size=batch_size, device=device, dtype=dtype
        )
        print(f"the teacher's top-1 on {test.split}: {top1:.4f}", flush=True)
        if not allow_weak_teacher:
            classifiers.check_strength(top1, counts, f"{test.name} {test.split}")
    manifest["teacher"]["top1"] = top1

    writer = teacher_logits.Writer(directory, manifest, shape)
    # On a terminal a bar; elsewhere a line a minute.
    bar = tqdm(
        total=last - first,
        initial=writer.rows_done,
        desc="export",
        unit="images",
        disable=not sys.stderr.isatty(),
    )
    said = time.monotonic()
    with bar:
        blocks = consecutive(first + writer.rows_done, last, batch_size)
        for images, _ in classifiers.read_plain(teacher, train, blocks):
            writer.append(
                classifiers.logits(teacher, images, device=device, dtype=dtype)
            )
            bar.update(len(images))
            if bar.disable and time.monotonic() - said > 60:
                said = time.monotonic()
                print(f"{writer.rows_done:,} of {last - first:,} images", flush=True)
    writer.finish()


def _images_per_second(teacher, source, batch_size, device, dtype) -> float:
    """Of one batch, after a first one that warms up."""
    block = np.arange(min(batch_size, len(source)))
    for _ in range(2):
        began = time.perf_counter()
        for images, _labels in classifiers.read_plain(teacher, source, [block]):
            classifiers.logits(teacher, images, device=device, dtype=dtype)
    return len(block) / (time.perf_counter() - began)


def define_flags() -> None:
    """Defines the command's flags; an import defines none."""
    config_flags.DEFINE_config_file(
        "config", None, "The student's recipe, e.g. configs/deit.py:digits."
    )
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("teacher", None, "Run of teacher.finetune, or a .pt file.")
    flags.DEFINE_string(
        "out", None, "The config's distillation.logits_dir if not given."
    )
    flags.DEFINE_string("shard", None, "i/n: only part i (from 0) of n.")
    flags.DEFINE_bool("join", False, "Make one cache of the parts, when all are there.")
    flags.DEFINE_string("arch", None, "Of a bare state dict: torchvision's name.")
    flags.DEFINE_string("stem", None, "Of a bare state dict: standard or cifar.")
    flags.DEFINE_integer("image_size", None, "Of a bare state dict, in pixels.", 1)
    flags.DEFINE_integer("batch_size", 64, "Images a forward pass.", lower_bound=1)
    flags.DEFINE_enum(
        "precision",
        "float32",
        classifiers.PRECISIONS,
        "Half precision is faster on a GPU and rounds the logits more coarsely.",
    )
    flags.DEFINE_string("device", None, "cpu, cuda, cuda:1; a GPU if there is one.")
    flags.DEFINE_bool("allow_weak_teacher", False, "Take a teacher near chance.")


def main(_) -> None:
    values = flags.FLAGS
    dataset = values.config.dataset
    data_dir = dataset.get("data_dir") or None
    out = values.out or values.config.distillation.logits_dir
    if not out:
        raise InputError(
            "the config has no distillation.logits_dir: say with --out=DIR where the "
            "cache goes."
        )
    if values.join:
        teacher_parts.join(out, command=exporting_command(sys.argv[1:]))
        print(f"cached in {out}")
        return
    if not values.teacher:
        raise InputError(
            "say with --teacher whose logits to cache: a run directory of "
            "teacher.finetune, or a file of weights."
        )
    shard = teacher_parts.parse_shard(values.shard) if values.shard else None
    teacher = classifiers.load(
        values.teacher,
        arch=values.arch,
        stem=values.stem,
        image_size=values.image_size,
    )
    export(
        teacher,
        sources.load(dataset.name, dataset.train_split, data_dir=data_dir),
        sources.load(dataset.name, dataset.eval_split, data_dir=data_dir),
        out,
        shard=shard,
        batch_size=values.batch_size,
        precision=values.precision,
        device=values.device,
        allow_weak_teacher=values.allow_weak_teacher,
    )
    if shard:
        print(
            f"part {shard} is in {out}. When all {shard.count} are there, repeat the "
            f"command with --join instead of --shard={shard}."
        )
    else:
        print(f"cached in {out}")


def exporting_command(arguments: list[str]) -> str:
    """What exports a part but for its `--shard`, made of a command with `--join`."""
    names = [argument.lstrip("-").partition("=")[0] for argument in arguments]
    kept = [a for a, name in zip(arguments, names, strict=True) if name != "join"]
    if "teacher" not in names:
        kept.append("--teacher=...")
    return shlex.join(["python", "-m", "teacher.export_logits", *kept])


if __name__ == "__main__":
    define_flags()
    command.run(main)
