"""Caches the teacher's logits of the images that a student will see.

    python -m teacher.export_logits --config=configs/deit.py:digits \\
        --teacher=runs/teacher-digits

The config is that of the student: it names the data set, its splits, the augmentation,
the number of views and the place of the cache, so that the two belong together. With
its distillation.view=same the teacher sees each image as the student will see it, in
each of the views, mixed pairs included (mixing=exact); with view=plain it sees the
image without augmentation, once. The same command goes on where a killed one stopped.

A bare state dict of a torchvision network is a teacher too:

    python -m teacher.export_logits --config=configs/deit.py:digits \\
        --teacher=resnet50.pt --arch=resnet50 --image_size=64

What is in a finished cache can be checked:

    ... --verify=100                  # computes 100 entries again and compares
    python -m teacher.export_logits --config=... --check=DIR    # the images, no teacher

Several processes, on one machine or on many, can each export a part; then one joins
them. Each part resumes by itself. For many classes --top_k keeps the largest logits.

    for i in 0 1 2 3; do
        CUDA_VISIBLE_DEVICES=$i python -m teacher.export_logits \\
            --config=configs/deit.py:imagenet --teacher=DIR --top_k=10 --shard=$i/4 &
    done; wait
    python -m teacher.export_logits --config=configs/deit.py:imagenet --join
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from deit_jax import command
from deit_jax.data import batches, sources
from deit_jax.data.plan import ExportOrder
from deit_jax.data.student_views import StudentViews
from deit_jax.distillation import (
    losses,
    teacher_encoding,
    teacher_logits,
    teacher_parts,
    teacher_views,
    teacher_writer,
)
from deit_jax.errors import InputError
from deit_jax.student import student_views
from teacher import classifier as classifiers
from teacher.blocks import seen_whole


@dataclasses.dataclass(frozen=True, eq=False)
class Export:
    """What a cache is made of; the same gives byte-identical files on one machine.

    Attributes:
      teacher: Of the classes of `train`.
      train: The source to cache (`deit_jax.data.sources`).
      test: The source that the teacher's own top-1 is measured on.
      seen: The images that the teacher sees; None for plain ones.
      num_views: Views of each image; 1 of plain ones.
      top_k: Largest logits that are kept; None for all.
      tau: Temperature for which the others' probability is kept.
      batch_size: Images a forward pass; even where pairs are seen.
      precision: See `classifier.choose_dtype`.
      device: See `classifier.choose_device`.
      workers: Processes that decode pictures which do not fit into memory.

    Raises:
      InputError: The classes differ, or a number or the device cannot work.
    """

    teacher: classifiers.Classifier
    train: object
    test: object
    seen: StudentViews | None = None
    num_views: int = 1
    top_k: int | None = None
    tau: float = 1.0
    batch_size: int = 64
    precision: str = "float32"
    device: str | None = None
    workers: int = 0

    def __post_init__(self):
        classifiers.check_classes(self.teacher, self.train)
        if self.num_views < 1 or (self.seen is None and self.num_views != 1):
            raise InputError(
                f"--views={self.num_views}: expected at least 1, and 1 of "
                "distillation.view=plain."
            )
        if self.seen is not None and self.batch_size % 2:
            raise InputError(
                f"--batch_size={self.batch_size} is odd, and what a student sees comes "
                "in pairs."
            )
        if self.seen is not None and self.num_views % self.seen.repeats:
            raise InputError(
                f"--views={self.num_views} is not a multiple of augment.repeats="
                f"{self.seen.repeats}."
            )
        _ = self.encoding, self.compute  # refuse what cannot work now

    @property
    def compute(self) -> dict:
        """device and dtype of the forward pass."""
        device = classifiers.choose_device(self.device)
        return {
            "device": device,
            "dtype": classifiers.choose_dtype(self.precision, device),
        }

    @property
    def encoding(self) -> teacher_encoding.Encoding:
        return teacher_encoding.Encoding(
            self.train.num_classes, self.top_k, self.tau if self.top_k else None
        )

    @property
    def order(self) -> ExportOrder:
        if self.seen is None:
            return ExportOrder(len(self.train), plain=True)
        return ExportOrder(
            len(self.train), self.num_views, self.seen.augment_seed, self.seen.repeats
        )

    def manifest(self) -> dict:
        """All that is known before the teacher has been measured."""
        view = "plain" if self.seen is None else "same"
        whole = self.seen is not None or seen_whole(self.train)
        return {
            "source": teacher_logits.describe_source(self.train),
            "views": teacher_views.describe(view, self.num_views, self.seen),
            "logits": self.encoding.describe(),
            "teacher": {
                "arch": self.teacher.arch,
                "stem": self.teacher.stem,
                "weights_sha256": classifiers.weights_sha256(self.teacher.model),
                "image_size": self.teacher.image_size,
                "mean": list(self.teacher.mean),
                "std": list(self.teacher.std),
                "crop_ratio": None if whole else self.teacher.crop_ratio,
                "precision": str(self.compute["dtype"]).removeprefix("torch."),
                "top1": None,
                "top1_split": self.test.split,
            },
        }

    def open(self):
        """The pictures for `logits`, a context manager."""
        if self.seen is None:
            return contextlib.nullcontext()
        return self.seen.open_pictures(self.train, workers=self.workers)

    def logits(
        self, opened, entries: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[np.ndarray]:
        """The teacher's float32 [B, C] for blocks of (index [B], view [B])."""
        # Ahead in a thread: JAX makes the next images while torch looks at these.
        images = batches.prefetch(self._images(opened, entries))
        with contextlib.closing(images):
            for block in images:
                yield classifiers.logits(self.teacher, block, **self.compute)

    def _images(self, opened, entries) -> Iterator[np.ndarray]:
        if self.seen is None:
            blocks = (index for index, _ in entries)
            for images, _ in classifiers.read_plain(self.teacher, self.train, blocks):
                yield images
            return
        # The last block is filled up, so that one compiled program serves all.
        entries, again = itertools.tee(entries)
        replayed = self.seen.replay(opened, (self._fill_up(*e) for e in entries))
        for (images, _), (index, _) in zip(replayed, again, strict=True):
            yield images[: len(index)].copy()  # torch wants it writable

    def _fill_up(self, index, view):
        missing = (self.batch_size - len(index)) // 2
        return tuple(
            np.concatenate([x, np.tile(x[-2:], missing)]).astype(np.int32)
            for x in (index, view)
        )


@classifiers.explain_out_of_memory()
def export(
    job: Export,
    out: str | os.PathLike,
    *,
    shard: teacher_parts.Shard | None = None,
    allow_weak_teacher: bool = False,
) -> None:
    """Writes the cache, or goes on with an unfinished one.

    Memory holds a few batches, whatever the length of the source and the number of
    views. The teacher is measured once: not again by an export that goes on, and of
    several shards by the first.

    Args:
      out: The cache's directory.
      shard: Write this part only, into a directory of its own in `out`
        (`deit_jax.distillation.teacher_parts`).
      allow_weak_teacher: Take a teacher near chance.

    Raises:
      InputError: The teacher is near chance, `out` holds another cache, the logits do
        not fit float16, or a GPU's memory runs out.
    """
    teacher_writer.check_unused(out)
    deterministic()
    manifest, order = job.manifest(), job.order
    directory, part = Path(out), ""
    first, last = 0, len(order)
    if shard:
        manifest["shard"] = shard.describe(len(order), job.batch_size)
        first, last = manifest["shard"]["start"], manifest["shard"]["stop"]
        directory = directory / shard.name
        part = f" (part {shard}: {last - first:,} of {len(order):,})"
        if teacher_parts.is_written(directory, manifest):
            print(f"{directory} is written already")
            return
    done, top1 = teacher_writer.find_unfinished(directory, manifest)
    first_part = shard is None or shard.number == 0
    measure = top1 is None and first_part
    _announce(job, manifest, directory, first, last, done, part)
    with job.open() as opened:
        rate = _images_per_second(job, opened)
        minutes = f"{(last - first - done) / rate / 60:.1f} minutes to export"
        if measure:
            minutes = (
                f"{len(job.test) / rate / 60:.1f} minutes to measure the teacher on "
                f"{job.test.split}, then {minutes}"
            )
        print(f"about {rate:,.0f} images/s: {minutes}", flush=True)
        if measure:
            top1, counts = classifiers.evaluate(
                job.teacher, job.test, batch_size=job.batch_size, **job.compute
            )
            print(f"the teacher's top-1 on {job.test.split}: {top1:.4f}", flush=True)
            if not allow_weak_teacher:
                classifiers.check_strength(
                    top1, counts, f"{job.test.name} {job.test.split}"
                )
        manifest["teacher"]["top1"] = top1
        examples = None
        if job.seen is not None and first_part:
            examples = teacher_views.examples(job.seen, job.train, job.num_views)
        writer = teacher_writer.Writer(directory, manifest, examples)
        _write(job, opened, writer, first, last, whole=shard is None)
    writer.finish()


@classifiers.explain_out_of_memory()
def estimate(job: Export) -> dict[str, float]:
    """What an export would cost, from the time of one batch.

    Returns:
      `images` to look at, those that measure the teacher included, `images_per_second`,
      `seconds` and `bytes` of the cache.
    """
    images = len(job.order) + len(job.test)
    with job.open() as opened:
        rate = _images_per_second(job, opened)
    return {
        "images": images,
        "images_per_second": rate,
        "seconds": images / rate,
        "bytes": len(job.order) * job.encoding.bytes_per_row,
    }


def _write(job, opened, writer, first: int, last: int, *, whole: bool) -> None:
    """The entries that are not there yet."""
    blocks, again = itertools.tee(
        job.order.entries(start, min(start + job.batch_size, last))
        for start in range(first + writer.entries_done, last, job.batch_size)
    )
    # On a terminal a bar; elsewhere a line a minute.
    bar = tqdm(
        total=last - first,
        initial=writer.entries_done,
        desc="export",
        unit="images",
        disable=not sys.stderr.isatty(),
    )
    said = time.monotonic()
    with bar, contextlib.closing(job.logits(opened, blocks)) as computed:
        for logits, (index, view) in zip(computed, again, strict=True):
            rows = view.astype(np.int64) * len(job.train) + index
            writer.append(logits, rows if whole else None)
            bar.update(len(index))
            if bar.disable and time.monotonic() - said > 60:
                said = time.monotonic()
                print(f"{writer.entries_done:,} of {last - first:,} images", flush=True)


def deterministic() -> None:
    """Autotuning picks kernels by the clock: two exports could differ in rounding."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _announce(job, manifest, directory, first, last, done, part) -> None:
    size = (last - first) * job.encoding.bytes_per_row
    if job.seen is None:
        seen = "1 plain view"
    else:
        mixed = "mixed" if job.seen.settings.mixes else "unmixed"
        seen = f"{job.num_views} {mixed} views of {job.seen.size} px"
    kept = f"{job.train.num_classes:,} classes"
    if job.top_k:
        kept = f"the {job.top_k} largest of {kept}"
    print(
        f"{job.train.name} {job.train.split}: {len(job.train):,} images x {seen}{part} "
        f"x {kept}, {size / 1e6:,.2f} MB in {directory}\n"
        f"{job.teacher.arch}, {job.teacher.stem} stem, {job.teacher.image_size} px, on "
        f"{job.compute['device']} in {manifest['teacher']['precision']}"
        + (f"\ngoing on after {done:,} images" if done else ""),
        flush=True,
    )


def _images_per_second(job: Export, opened) -> float:
    """Of one batch, after a first one that warms up."""
    stop = min(job.batch_size, len(job.order))
    block = job.order.entries(0, stop)
    began = 0.0
    for _ in job.logits(opened, [block, block]):
        began, before = time.perf_counter(), began
    return stop / (began - before)


@classifiers.explain_out_of_memory()
def verify(
    job: Export, cache: teacher_logits.TeacherLogits, count: int, seed: int = 0
) -> tuple[float, float]:
    """Computes random entries again and compares what is stored.

    Args:
      cache: The finished cache, of the same teacher and images.
      count: Entries, at least 1.

    Returns:
      The largest |cached - live|, and the most by which one exceeds half the distance
      of neighbouring float16 numbers, which rounding alone explains (0.03 for logits
      between 64 and 128).

    Raises:
      InputError: The cache is of another teacher, source or other views.
    """
    deterministic()
    ours, theirs = map(teacher_writer.identity, (job.manifest(), cache.manifest))
    differing = [
        f"  {field}: {there} in the cache, {here} here"
        for field, (there, here) in teacher_writer.differences(theirs, ours).items()
    ]
    if differing:
        raise InputError(
            f"{cache.directory} is of another teacher, data set or setting:\n"
            + "\n".join(differing)
            + "\n--verify wants the flags of the export."
        )
    unit = 1 if job.seen is None else 2
    total = len(job.order) // unit
    chosen = np.random.default_rng(seed).choice(
        total, min(-(-count // unit), total), replace=False
    )
    singles = [job.order.entries(unit * n, unit * (n + 1)) for n in np.sort(chosen)]
    per_block = job.batch_size // unit
    blocks = [
        tuple(
            np.concatenate(part)
            for part in zip(*singles[n : n + per_block], strict=True)
        )
        for n in range(0, len(singles), per_block)
    ]
    gaps, beyond = [], []
    with job.open() as opened:
        computed = job.logits(opened, blocks)
        for (index, view), live in zip(blocks, computed, strict=True):
            stored = {name: array[view, index] for name, array in cache.arrays.items()}
            live_logits = live
            if job.top_k:
                # Nearly equal logits may have changed places: compared by class.
                classes = stored["indices.npy"].astype(np.int64)
                live_logits = np.take_along_axis(live, classes, axis=1)
                tails = job.encoding.encode(live)["tails.npy"]
                beyond.append(np.abs(stored["tails.npy"] - tails).max())
            logits = stored["values.npy" if job.top_k else "logits.npy"]
            gap = np.abs(logits - live_logits)
            with np.errstate(invalid="ignore"):  # not a number is no neighbour
                rounding = np.abs(np.spacing(logits)) / 2
            gaps.append(gap.max())
            beyond.append((gap - rounding).max())
    return float(np.max(gaps)), float(np.maximum(np.max(beyond), 0))


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
    flags.DEFINE_integer(
        "views",
        None,
        "Views of each image; the config's distillation.num_views if not given.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "top_k", None, "Keep the K largest logits, for many classes.", lower_bound=1
    )
    flags.DEFINE_integer(
        "verify",
        None,
        "Compute this many random entries of a finished cache again and compare.",
        lower_bound=1,
    )
    flags.DEFINE_float(
        "tolerance",
        0.02,
        "Of --verify, on |cached - live| beyond float16's rounding; above it the exit "
        "code is 1.",
    )
    flags.DEFINE_string(
        "check", None, "A cache: only check that it belongs to the config."
    )
    flags.DEFINE_bool("estimate", False, "Only print time and size, as JSON.")
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
    # JAX makes the images and torch looks at them: JAX must not take all of a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    train = sources.load(dataset.name, dataset.train_split, data_dir=data_dir)
    distillation = values.config.distillation
    student = student_views(values.config, train)
    mixing = teacher_views.resolve_mixing(
        distillation.view, distillation.mixing, student
    )
    if values.check:
        check(values.check, train, student, values.config, mixing)
        return
    if not values.teacher:
        raise InputError(
            "say with --teacher whose logits to cache: a run directory of "
            "teacher.finetune, or a file of weights."
        )
    shard = teacher_parts.parse_shard(values.shard) if values.shard else None
    plain = distillation.view == "plain"
    job = Export(
        classifiers.load(
            values.teacher,
            arch=values.arch,
            stem=values.stem,
            image_size=values.image_size,
        ),
        train,
        sources.load(dataset.name, dataset.eval_split, data_dir=data_dir),
        seen=None if plain else teacher_views.seen_by_teacher(student, mixing),
        num_views=values.views or (1 if plain else distillation.num_views),
        top_k=values.top_k,
        tau=distillation.tau,
        batch_size=values.batch_size,
        precision=values.precision,
        device=values.device,
        workers=dataset.workers,
    )
    if values.estimate:
        print(json.dumps(estimate(job)))
        return
    if values.verify:
        cache = teacher_logits.open_cache(out)
        largest, beyond = verify(job, cache, values.verify)
        good = beyond <= values.tolerance  # not a number is not
        verdict = "within" if good else "ABOVE"
        print(
            f"max |cached - live| = {largest:.3g}, {beyond:.3g} more than float16 "
            f"rounds, {verdict} the tolerance of {values.tolerance:g}"
        )
        sys.exit(int(not good))
    export(job, out, shard=shard, allow_weak_teacher=values.allow_weak_teacher)
    if shard:
        print(
            f"part {shard} is in {out}. When all {shard.count} are there, repeat the "
            f"command with --join instead of --shard={shard}."
        )
    else:
        print(f"cached in {out}")


def check(directory: str, train, student, config, mixing: str) -> None:
    """What a start of training checks of its cache, by hand."""
    distillation = config.distillation
    tau = losses.teacher_temperature(distillation.kind, distillation.tau)
    cache = teacher_logits.open_cache(directory, tau=tau)
    teacher_views.check(
        cache,
        train,
        student,
        view=distillation.view,
        mixing=mixing,
        num_views=distillation.num_views,
        config=config_flags.get_config_filename(flags.FLAGS["config"]),
    )
    teacher_views.check_examples(cache, train, student, mixing=mixing)
    about = cache.manifest["views"]
    print(
        f"{directory} belongs to this config: {about['count']} {about['view']} view(s)"
        + (
            ""
            if about["view"] == "plain"
            else ", and its stored images are those of this program, pixel by pixel"
        )
    )


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
