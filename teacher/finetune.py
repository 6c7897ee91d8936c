"""Trains a torchvision classifier on a data set, to teach a student.

    python -m teacher.finetune --dataset=digits --arch=resnet50 \\
        --out=runs/teacher-digits
    python -m teacher.finetune --dataset=cifar10 --arch=resnet50 --weights=DEFAULT \\
        --image_size=224 --learning_rate=0.01 --flip --out=runs/teacher-cifar10

The same command goes on from the last whole epoch after a kill. --epochs=0 stores the
given weights as they are, with their accuracy.
"""

import inspect
import math
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from absl import flags
from PIL import Image
from torch.nn import functional
from tqdm import tqdm

from deit_jax import command
from deit_jax.data import sources
from deit_jax.data.crops import CROP_WORDS, crop_and_resize, random_resized_crop_box
from deit_jax.errors import InputError
from teacher import classifier as classifiers
from teacher.blocks import read_blocks, seen_whole

CHECKPOINT = "checkpoint.pt"
SMALL_IMAGE = 64  # pixels: images up to it keep their size if none is given
WARMUP = 0.2  # of all steps
# Arguments of configs/deit.py for the data sets that it names.
RECIPES = {"digits": "digits", "cifar10": "cifar10", "imagenet2012": "imagenet"}


@classifiers.explain_out_of_memory()
def finetune(
    *,
    dataset: str,
    out: str | os.PathLike,
    data_dir: str | None,
    train_split: str,
    eval_split: str,
    arch: str,
    weights: str,
    stem: str,
    image_size: int | None,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    label_smoothing: float,
    crop_padding: int,
    flip: bool,
    precision: str,
    device: str | None,
    seed: int,
) -> classifiers.Classifier:
    """Trains and leaves `teacher.pt` in `out`. The arguments are the command's flags.

    Every draw is a function of (seed, epoch), so a resumed run needs no generator
    state; on a CPU it equals an uninterrupted one bit for bit.

    Raises:
      InputError: An argument cannot work, `out` holds another run, the loss is not
        finite, or a GPU's memory runs out.
    """
    settings = {k: v for k, v in locals().items() if k not in ("out", "data_dir")}
    out = Path(out)
    device = classifiers.choose_device(device)
    dtype = classifiers.choose_dtype(precision, device)
    train = sources.load(dataset, train_split, data_dir=data_dir)
    test = sources.load(dataset, eval_split, data_dir=data_dir)
    if tuple(train.class_names) != tuple(test.class_names):
        raise InputError(f"{train_split} and {eval_split} have different classes.")
    if image_size is None:
        shape = train.image_shape
        small = shape is not None and max(shape) <= SMALL_IMAGE
        image_size = max(shape) if small else 224
    settings |= {
        "image_size": image_size,
        "precision": str(dtype).removeprefix("torch."),
        "device": device.type,
        "fingerprint": train.fingerprint,
    }
    stored = _stored(out, settings)
    if "top1" in stored:
        print(f"{out} holds this teacher already, trained to its end.")
        return classifiers.load(out)

    torch.manual_seed(seed)
    model = classifiers.build(
        arch, train.num_classes, image_size=image_size, weights=weights, stem=stem
    )
    classifiers.check_image_size(model, arch, image_size)
    model.to(device, memory_format=torch.channels_last)
    teacher = classifiers.Classifier(
        model, arch, stem, image_size, class_names=tuple(train.class_names)
    )
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=weight_decay,
    )
    # Only float16 underflows: bfloat16 has the range of float32.
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    done = 0
    if stored:
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        scaler.load_state_dict(stored["scaler"])
        done = stored["epoch"]
    batch_size = min(batch_size, len(train))
    steps = len(train) // batch_size  # an epoch is its whole batches
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{arch}, {stem} stem, {image_size} px, {millions:.1f} M parameters, "
        f"weights: {weights}\n"
        f"{dataset} {train_split}: {len(train):,} images of {train.num_classes} "
        f"classes; evaluated on {eval_split}: {len(test):,}\n"
        f"{epochs} epochs of {steps} steps of {batch_size} images on {device} in "
        f"{settings['precision']}" + (f", {done} of them done" if done else ""),
        flush=True,
    )

    for epoch in range(done, epochs):
        began = time.perf_counter()
        torch.manual_seed(seed + 1_000_003 * (epoch + 1))  # dropout, stochastic depth
        total_loss = torch.zeros((), device=device)
        model.train()
        batches = augmented_batches(
            train,
            batch_size,
            image_size=image_size,
            crop_padding=crop_padding,
            flip=flip,
            seed=seed,
            epoch=epoch,
        )
        bar = tqdm(
            batches,
            desc=f"epoch {epoch + 1}/{epochs}",
            total=steps,
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        for step, (images, labels) in enumerate(bar):
            rate = learning_rate * schedule((epoch + step / steps) / epochs)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with classifiers.autocast(device, dtype):
                output = model(
                    classifiers.preprocess(
                        images, image_size, teacher.mean, teacher.std, device
                    )
                )
            loss = functional.cross_entropy(
                output.float(),
                torch.from_numpy(labels).to(device),
                label_smoothing=label_smoothing,
            )
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            total_loss += loss.detach()
        train_loss = float(total_loss) / steps
        if not math.isfinite(train_loss):
            raise InputError(
                f"the loss is {train_loss} in epoch {epoch + 1}. Lower --learning_rate "
                f"(now {learning_rate:g}) and delete {out} or give another --out."
            )
        teacher.top1, _ = classifiers.evaluate(
            teacher, test, batch_size=batch_size, device=device, dtype=dtype
        )
        print(
            f"epoch {epoch + 1}/{epochs}: loss {train_loss:.4f}, top-1 "
            f"{teacher.top1:.4f} on {eval_split}, {time.perf_counter() - began:.1f} s",
            flush=True,
        )
        checkpoint = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "epoch": epoch + 1,
            "settings": settings,
        }
        classifiers.replace_file(out / CHECKPOINT, checkpoint)

    if teacher.top1 is None:  # no epoch was left to train
        teacher.top1, _ = classifiers.evaluate(
            teacher, test, batch_size=batch_size, device=device, dtype=dtype
        )
    teacher.top1_split = eval_split
    classifiers.save(out / classifiers.TEACHER, teacher, settings=settings)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return teacher


def schedule(progress: float) -> float:
    """One cycle: the share of the peak rate at `progress` (0 .. 1) of all steps."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def augmented_batches(
    source,
    batch_size: int,
    *,
    image_size: int,
    crop_padding: int,
    flip: bool,
    seed: int,
    epoch: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields one shuffled epoch of whole batches: uint8 [B, H, W, 3], int64 [B].

    Images that are all squares of one size are padded and cropped, in their own size.
    Of other pictures a random part is resized to `image_size`.

    Args:
      crop_padding: Black pixels added on each side before a random crop of the
        original size, in pixels of the source.
      flip: Mirror half of the images.
      seed, epoch: Order and augmentation are a function of them.
    """
    generator = np.random.default_rng([seed, epoch])
    count = len(source) // batch_size * batch_size
    order = generator.permutation(len(source))[:count].reshape(-1, batch_size)
    padding = crop_padding if seen_whole(source) else 0

    def view(picture: Image.Image, index: int) -> np.ndarray:
        # + 1, since NumPy takes a zero at the end for nothing: (seed, epoch) alone.
        draws = np.random.default_rng([seed, epoch, index + 1])
        draws = draws.integers(0, 2**32, CROP_WORDS, np.uint32)
        box = random_resized_crop_box(draws, *picture.size)
        return crop_and_resize(picture, box, image_size)

    for images, labels in read_blocks(source, order, view):
        if padding:
            images = _pad_and_crop(images, padding, generator)
        if flip:
            mirrored = generator.random(len(images)) < 0.5
            images[mirrored] = images[mirrored, :, ::-1]
        yield images, labels


def _pad_and_crop(
    images: np.ndarray, padding: int, generator: np.random.Generator
) -> np.ndarray:
    b, h, w, _ = images.shape
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    top, left = generator.integers(0, 2 * padding + 1, (2, b))
    return np.stack(
        [
            image[y : y + h, x : x + w]
            for image, y, x in zip(padded, top, left, strict=True)
        ]
    )


def _stored(out: Path, settings: dict) -> dict:
    """The finished or unfinished run in `out`, or nothing; refuses another run's."""
    for name in (classifiers.TEACHER, CHECKPOINT):
        if not (out / name).exists():
            continue
        stored = classifiers.load_file(out / name)
        theirs = stored.get("settings", {})
        differing = [
            f"{key} {theirs.get(key)!r}, now {value!r}"
            for key, value in settings.items()
            if theirs.get(key) != value
        ]
        if differing:
            raise InputError(
                f"{out} holds a run with other settings ({'; '.join(differing)}). "
                "Repeat them, delete it, or give another --out."
            )
        return stored
    return {}


def define_flags() -> None:
    """Defines the command's flags; an import defines none."""
    flags.DEFINE_string("dataset", None, "Data set, e.g. digits.", required=True)
    flags.DEFINE_string("out", None, "Run directory.", required=True)
    flags.DEFINE_string("data_dir", None, "Where the data set lies or goes.")
    flags.DEFINE_string("train_split", "train", "Split to train on.")
    flags.DEFINE_string("eval_split", "test", "Split to measure top-1 on.")
    flags.DEFINE_string("arch", "resnet50", "torchvision's name of the network.")
    flags.DEFINE_string(
        "weights", "none", "none, DEFAULT (torchvision's, downloaded), or a file."
    )
    flags.DEFINE_string(
        "stem", "standard", "standard, or cifar: 3x3 stride 1, no max-pool (ResNets)."
    )
    flags.DEFINE_integer(
        "image_size",
        None,
        "Pixels that images are resized to; if not given, their own size up to 64, "
        "else 224.",
        lower_bound=1,
    )
    flags.DEFINE_integer("epochs", 30, "Epochs in all.", lower_bound=0)
    flags.DEFINE_integer("batch_size", 32, "Images a step.", lower_bound=2)
    flags.DEFINE_float("learning_rate", 0.01, "Peak of the one-cycle schedule.")
    flags.DEFINE_float("weight_decay", 5e-4, "L2 penalty of SGD.")
    flags.DEFINE_float("label_smoothing", 0.0, "0 .. 1.", 0.0, 1.0)
    flags.DEFINE_integer(
        "crop_padding",
        4,
        "Pixels padded before a random crop; 0: none. Of pictures that are not all "
        "squares of one size a random part is seen instead.",
        lower_bound=0,
    )
    flags.DEFINE_bool("flip", False, "Mirror at random; wrong for digits and text.")
    flags.DEFINE_enum(
        "precision", "auto", classifiers.PRECISIONS, "auto: bfloat16 where it is fast."
    )
    flags.DEFINE_string("device", None, "cpu, cuda, cuda:1; a GPU if there is one.")
    flags.DEFINE_integer("seed", 0, "Of initialisation, order and augmentation.")


def main(_) -> None:
    names = inspect.signature(finetune).parameters
    values = {name: flags.FLAGS[name].value for name in names}
    teacher = finetune(**values)
    out = values["out"]
    print(
        f"{out}/{classifiers.TEACHER}: {teacher.arch}, top-1 {teacher.top1:.4f} on "
        f"{teacher.top1_split}\n"
        "Next, cache its logits for the student:\n"
        f"  python -m teacher.export_logits --teacher={shlex.quote(out)} "
        + student_flags(
            values["dataset"],
            values["data_dir"],
            values["train_split"],
            values["eval_split"],
        )
    )


def student_flags(
    dataset: str, data_dir: str | None, train_split: str, eval_split: str
) -> str:
    """The flags of a student's command that name the same data."""
    recipe = "folder" if dataset.startswith("folder:") else RECIPES.get(dataset)
    result = [f"--config=configs/deit.py:{recipe or 'cifar10'}"]
    fields = {
        "name": None if dataset in RECIPES else dataset,
        "data_dir": data_dir,
        "train_split": None if train_split == "train" else train_split,
        "eval_split": None if eval_split == "test" else eval_split,
    }
    result += [f"--config.dataset.{k}={v}" for k, v in fields.items() if v]
    return shlex.join(result)


if __name__ == "__main__":
    define_flags()
    command.run(main)
