"""Caches the teacher's logits of the training images, for a student to learn from.

    python -m teacher.export_logits --config=configs/deit.py:digits \\
        --teacher=runs/teacher-digits

The config is that of the student: it names the data set, its splits and the place of
the cache, so that the two belong together. The same command goes on where a killed
one stopped. A bare state dict of a torchvision network is a teacher too:

    python -m teacher.export_logits --config=configs/deit.py:digits \\
        --teacher=resnet50.pt --arch=resnet50 --image_size=64
"""

import os
import sys
import time

import numpy as np
import torch
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from deit_jax import command
from deit_jax.data import sources
from deit_jax.distillation import teacher_logits
from deit_jax.errors import InputError
from teacher import classifier as classifiers
from teacher.blocks import consecutive, read_blocks


def export(
    teacher: classifiers.Classifier,
    train,
    test,
    out: str | os.PathLike,
    *,
    batch_size: int = 64,
    precision: str = "float32",
    device: str | None = None,
    allow_weak_teacher: bool = False,
) -> None:
    """Writes the logits of every image of `train` as it is (one plain view).

    The same arguments give byte-identical files on the same machine. Memory holds a
    few batches, whatever the length of the source.

    Args:
      teacher: Of the classes of `train`.
      train: The source to cache (`deit_jax.data.sources`).
      test: The source that the teacher's own top-1 is measured on.
      out: The cache's directory; an unfinished export in it is continued.
      batch_size: Images a forward pass.
      precision: See `classifier.choose_dtype`.
      device: See `classifier.choose_device`.
      allow_weak_teacher: Take a teacher near chance.

    Raises:
      InputError: The classes differ, the teacher is near chance, `out` holds another
        cache, or the logits do not fit float16.
    """
    classifiers.check_classes(teacher, train)
    teacher_logits.check_unused(out)
    device = classifiers.choose_device(device)
    dtype = classifiers.choose_dtype(precision, device)
    # Autotuning picks kernels by the clock: two exports could differ in rounding.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True

    shape = (1, len(train), train.num_classes)
    print(
        f"{train.name} {train.split}: {shape[1]:,} images x 1 plain view x "
        f"{shape[2]:,} classes, {np.prod(shape) * 2 / 1e6:,.2f} MB in {out}\n"
        f"{teacher.arch}, {teacher.stem} stem, {teacher.image_size} px, on {device} in "
        f"{str(dtype).removeprefix('torch.')}",
        flush=True,
    )
    rate = _images_per_second(teacher, train, batch_size, device, dtype)
    print(
        f"about {rate:,.0f} images/s: {len(test) / rate / 60:.1f} minutes to measure "
        f"the teacher on {test.split}, then {len(train) / rate / 60:.1f} to export",
        flush=True,
    )
    top1, counts = classifiers.evaluate(
        teacher, test, batch_size=batch_size, device=device, dtype=dtype
    )
    print(f"the teacher's top-1 on {test.split}: {top1:.4f}", flush=True)
    if not allow_weak_teacher:
        classifiers.check_strength(top1, counts, f"{test.name} {test.split}")

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
            "precision": str(dtype).removeprefix("torch."),
            "top1": top1,
            "top1_split": test.split,
        },
    }
    writer = teacher_logits.Writer(out, manifest, shape)
    if writer.rows_done:
        print(f"going on after {writer.rows_done:,} images", flush=True)
    # On a terminal a bar; elsewhere a line a minute.
    bar = tqdm(
        total=len(train),
        initial=writer.rows_done,
        desc="export",
        unit="images",
        disable=not sys.stderr.isatty(),
    )
    said = time.monotonic()
    with bar:
        blocks = consecutive(writer.rows_done, len(train), batch_size)
        for images, _ in read_blocks(train, blocks, teacher.image_size):
            writer.append(
                classifiers.logits(teacher, images, device=device, dtype=dtype)
            )
            bar.update(len(images))
            if bar.disable and time.monotonic() - said > 60:
                said = time.monotonic()
                print(f"{writer.rows_done:,} of {len(train):,} images", flush=True)
    writer.finish()


def _images_per_second(teacher, source, batch_size, device, dtype) -> float:
    """Of one batch, after a first one that warms up."""
    block = np.arange(min(batch_size, len(source)))
    for _ in range(2):
        began = time.perf_counter()
        for images, _labels in read_blocks(source, [block], teacher.image_size):
            classifiers.logits(teacher, images, device=device, dtype=dtype)
    return len(block) / (time.perf_counter() - began)


def define_flags() -> None:
    """Defines the command's flags; an import defines none."""
    config_flags.DEFINE_config_file(
        "config", None, "The student's recipe, e.g. configs/deit.py:digits."
    )
    flags.mark_flag_as_required("config")
    flags.DEFINE_string(
        "teacher", None, "Run of teacher.finetune, or a .pt file.", required=True
    )
    flags.DEFINE_string(
        "out", None, "The config's distillation.logits_dir if not given."
    )
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
        batch_size=values.batch_size,
        precision=values.precision,
        device=values.device,
        allow_weak_teacher=values.allow_weak_teacher,
    )
    print(f"cached in {out}")


if __name__ == "__main__":
    define_flags()
    command.run(main)
