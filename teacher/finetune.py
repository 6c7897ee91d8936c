"""Trains a torchvision classifier on a data set, to teach a student.

    python -m teacher.finetune --dataset=digits --arch=resnet50 \\
        --out=runs/teacher-digits
    python -m teacher.finetune --dataset=cifar10 --arch=resnet50 --weights=DEFAULT \\
        --image_size=224 --learning_rate=0.01 --flip --out=runs/teacher-cifar10

The same command goes on from the last whole epoch after a kill. --epochs=0 stores the
given weights as they are, with their accuracy.
"""

import math
import os
import shlex
import time
import types
from pathlib import Path

import numpy as np
import torch
from absl import flags
from torch.nn import functional

from deit_jax import command, program
from deit_jax.data import sources
from deit_jax.errors import InputError
from deit_jax.patience import Patience
from deit_jax.weights import tensor_files
from deit_jax.weights.torchvision import TEACHER
from teacher import accuracy, network
from teacher import classifier as classifiers
from teacher.blocks import augmented_batches

CHECKPOINT = "checkpoint.pt"
STATE = ("model", "optimizer", "scaler")  # what it holds of a training
SMALL_IMAGE = 64  # pixels: images up to it keep their size if none is given
WARMUP = 0.2  # of all steps
# Arguments of configs/deit.py for the data sets that it names.
RECIPES = {"digits": "digits", "cifar10": "cifar10", "imagenet2012": "imagenet"}


# The flags that make a training what it is; the others say where it lies.
SETTINGS = (
    "dataset",
    "train_split",
    "eval_split",
    "arch",
    "weights",
    "stem",
    "image_size",
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "label_smoothing",
    "crop_padding",
    "flip",
    "precision",
    "device",
    "seed",
)


@classifiers.explain_out_of_memory()
def finetune(
    *, out: str | os.PathLike, data_dir: str | None, **settings
) -> classifiers.Classifier:
    """Trains a classifier and leaves `teacher.pt` in `out`.

    Every draw is a function of (seed, epoch), so a resumed run needs no generator
    state; on a CPU it equals an uninterrupted one bit for bit.

    Args:
      settings: The flags `SETTINGS`.

    Raises:
      InputError: An argument cannot work, `out` holds another run, the loss is not
        finite, or a GPU's memory runs out.
    """
    training = Training(types.SimpleNamespace(**settings), Path(out), data_dir)
    if "top1" in training.stored:
        print(f"{out} holds this teacher already, trained to its end.")
        return classifiers.load(out)
    return training.run()


class Training:
    """A training of one network; `stored` is what `out` holds of it already."""

    def __init__(self, settings, out: Path, data_dir: str | None):
        self.settings, self.out = settings, out
        self.backend = classifiers.TorchBackend(settings.precision, settings.device)
        self.device = self.backend.device
        self.train, self.test = (
            sources.load(settings.dataset, split, data_dir=data_dir)
            for split in (settings.train_split, settings.eval_split)
        )
        if tuple(self.train.class_names) != tuple(self.test.class_names):
            splits = f"{settings.train_split} and {settings.eval_split}"
            raise InputError(f"{splits} have different classes.")
        self.image_size = settings.image_size or _default_size(self.train.image_shape)
        self.batch_size = min(settings.batch_size, len(self.train))
        self.steps = len(self.train) // self.batch_size  # whole batches of an epoch
        self.identity = vars(settings) | {
            "image_size": self.image_size,
            "precision": self.backend.precision,
            "device": self.device.type,
            "fingerprint": self.train.fingerprint,
        }
        self.stored = _stored(out, self.identity)

    def run(self) -> classifiers.Classifier:
        settings = self.settings
        torch.manual_seed(settings.seed)
        self._build()
        for name in STATE if self.stored else ():
            getattr(self, name).load_state_dict(self.stored[name])
        done = self.stored.get("epoch", 0)
        self._announce(done)
        for epoch in range(done, settings.epochs):
            began = time.perf_counter()
            loss = self._train_epoch(epoch)
            # Before the accuracy is measured: a damaged image there costs no epoch.
            self._save(epoch + 1)
            self._measure()
            print(
                f"epoch {epoch + 1}/{settings.epochs}: loss {loss:.4f}, top-1 "
                f"{self.teacher.top1:.4f} on {settings.eval_split}, "
                f"{time.perf_counter() - began:.1f} s",
                flush=True,
            )
        if self.teacher.top1 is None:  # no epoch was left to train
            self._measure()
        self.teacher.top1_split = settings.eval_split
        classifiers.save(self.out / TEACHER, self.teacher, settings=self.identity)
        (self.out / CHECKPOINT).unlink(missing_ok=True)
        return self.teacher

    def _build(self) -> None:
        settings = self.settings
        model = network.build(
            settings.arch,
            self.train.num_classes,
            image_size=self.image_size,
            weights=settings.weights,
            stem=settings.stem,
            class_names=self.train.class_names,
        )
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.teacher = classifiers.Classifier(
            model,
            arch=settings.arch,
            stem=settings.stem,
            image_size=self.image_size,
            class_names=tuple(self.train.class_names),
        )
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=settings.learning_rate,
            momentum=0.9,
            nesterov=True,
            weight_decay=settings.weight_decay,
        )
        # Only float16 underflows: bfloat16 has the range of float32.
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.backend.dtype == torch.float16
        )

    def _save(self, epoch: int) -> None:
        content = {"epoch": epoch, "settings": self.identity}
        for name in STATE:
            content[name] = getattr(self, name).state_dict()
        classifiers.replace_file(self.out / CHECKPOINT, content)

    def _announce(self, done: int) -> None:
        settings = self.settings
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        for note in dict.fromkeys((*self.train.notes, *self.test.notes)):
            print(note)
        print(
            f"{self.teacher.words}, {millions:.1f} M parameters\n"
            f"{settings.dataset}: {len(self.train):,} images of "
            f"{self.train.num_classes} classes, {len(self.test):,} to evaluate\n"
            f"{settings.epochs} epochs of {self.steps} steps of {self.batch_size} "
            f"images on {self.device} in {self.backend.precision}"
            + (f", {done} of them done" if done else ""),
            flush=True,
        )

    def _train_epoch(self, epoch: int) -> float:
        """Trains one epoch; returns its mean loss."""
        settings = self.settings
        torch.manual_seed(settings.seed + 1_000_003 * (epoch + 1))  # dropout
        total_loss = torch.zeros((), device=self.device)
        self.model.train()
        batches = augmented_batches(
            self.train,
            self.batch_size,
            image_size=self.image_size,
            crop_padding=settings.crop_padding,
            flip=settings.flip,
            seed=settings.seed,
            epoch=epoch,
        )
        progress = Patience(f"epoch {epoch + 1}/{settings.epochs}", self.steps)
        for step, (images, labels) in enumerate(progress.over(batches)):
            share = schedule((epoch + step / self.steps) / settings.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = settings.learning_rate * share
            total_loss += self._step(images, labels)
        loss = float(total_loss) / self.steps
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} in epoch {epoch + 1}. Lower --learning_rate (now "
                f"{settings.learning_rate:g}) and delete {self.out} or give another "
                "--out."
            )
        return loss

    def _step(self, images: np.ndarray, labels: np.ndarray) -> torch.Tensor:
        loss = functional.cross_entropy(
            self.backend.forward(self.teacher, images),
            torch.from_numpy(labels).to(self.device),
            label_smoothing=self.settings.label_smoothing,
        )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def _measure(self) -> None:
        [self.teacher.top1], _ = accuracy.evaluate(
            [self.teacher], self.test, self.backend, batch_size=self.batch_size
        )


def _default_size(shape: tuple[int, ...] | None) -> int:
    """Small images keep their size; others are seen at 224 px."""
    return max(shape) if shape is not None and max(shape) <= SMALL_IMAGE else 224


def schedule(progress: float) -> float:
    """One cycle: the share of the peak rate at `progress` (0 .. 1) of all steps."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def _stored(out: Path, settings: dict) -> dict:
    """The finished or unfinished run in `out`, or nothing; refuses another run's."""
    there = [out / name for name in (TEACHER, CHECKPOINT) if (out / name).exists()]
    if not there:
        return {}
    stored = tensor_files.load_torch(there[0])
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


def define_flags() -> None:
    """Defines the command's flags; an import defines none."""
    flags.DEFINE_string("dataset", None, "Data set, e.g. digits.", required=True)
    flags.DEFINE_string("out", None, "Run directory.", required=True)
    flags.DEFINE_string("data_dir", None, "Where the data set lies or goes.")
    flags.DEFINE_string("train_split", "train", "Split to train on.")
    flags.DEFINE_string("eval_split", "test", "Split to measure top-1 on.")
    flags.DEFINE_string("arch", "resnet50", "torchvision's name of the network.")
    flags.DEFINE_string("weights", "none", "none, DEFAULT (torchvision's), or a file.")
    flags.DEFINE_string(
        "stem", "standard", "standard, or cifar: of ResNets, for 32 px."
    )
    flags.DEFINE_integer(
        "image_size",
        None,
        "In pixels; by default that of the images up to 64, else 224.",
    )
    flags.DEFINE_integer("epochs", 30, "Epochs in all.", lower_bound=0)
    flags.DEFINE_integer("batch_size", 32, "Images a step.", lower_bound=2)
    flags.DEFINE_float("learning_rate", 0.01, "Peak of the one-cycle schedule.")
    flags.DEFINE_float("weight_decay", 5e-4, "L2 penalty of SGD.")
    flags.DEFINE_float("label_smoothing", 0.0, "0 .. 1.", 0.0, 1.0)
    flags.DEFINE_integer(
        "crop_padding", 4, "Pixels around squares of one size before a random crop.", 0
    )
    flags.DEFINE_bool("flip", False, "Mirror at random; wrong for digits and text.")
    flags.DEFINE_enum(
        "precision", "auto", classifiers.PRECISIONS, "auto: bfloat16 where it is fast."
    )
    flags.DEFINE_string("device", None, "cpu, cuda, cuda:1; a GPU if there is one.")
    flags.DEFINE_integer("seed", 0, "Of initialisation, order and augmentation.")


def main(_) -> None:
    values = command.values(*SETTINGS, "out", "data_dir")
    teacher, out = finetune(**values), values["out"]
    student = student_flags(
        *(values[n] for n in ("dataset", "data_dir", "train_split", "eval_split"))
    )
    print(
        program.as_started(
            f"{out}/{TEACHER}: {teacher.arch}, top-1 {teacher.top1:.4f} on "
            f"{teacher.top1_split}\nNext, cache its logits for the student:\n"
            f"  python -m teacher.export_logits --teacher={shlex.quote(out)} {student}"
        )
    )


def student_flags(
    dataset: str, data_dir: str | None, train_split: str, eval_split: str
) -> str:
    """The flags of a student's command that name the same data."""
    recipe = RECIPES.get(dataset)
    if dataset.startswith(sources.PLACES) and not dataset.startswith("cifar:"):
        recipe = "folder"
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
