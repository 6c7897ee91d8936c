"""Exports a teacher's logits for the images that a student will see: a cache."""

import contextlib
import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from deit_jax.data import batches
from deit_jax.data.plan import view_pairs
from deit_jax.data.student_views import StudentViews
from deit_jax.distillation import cache_writer, classes, match, teacher_cache
from deit_jax.distillation.encoding import Encoding
from deit_jax.errors import InputError
from deit_jax.patience import Patience
from teacher import classifier as classifiers
from teacher.blocks import seen_whole


@dataclasses.dataclass(frozen=True, eq=False)
class Export:
    """What a cache is made of; the same gives byte-identical files on one machine.

    Attributes:
      teacher: Has the classes of `train`, in any order where its file names them.
      train: The source to cache (`deit_jax.data.sources`).
      test: The source that the teacher's top-1 is measured on.
      seen: The images that the teacher sees; None for plain ones.
      num_views: Views of each image; 1 for plain ones.
      top_k: Largest logits that are kept; None for all.
      tau: Temperature for which the others' probability is kept.
      batch_size: Images a forward pass; even where pairs are seen.
      precision: See `classifier.choose_dtype`.
      device: See `classifier.choose_device`.
      workers: Processes that decode images which do not fit into memory.

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
        _ = self.classes
        if self.num_views < 1 or (self.seen is None and self.num_views != 1):
            raise InputError(
                f"--views={self.num_views}: expected at least 1, and 1 for "
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

    @functools.cached_property
    def classes(self) -> tuple[list[int], str]:
        """The teacher's columns for the classes of `train`, and a sentence on them."""
        return classes.match(self.teacher, self.train)

    @property
    def encoding(self) -> Encoding:
        return Encoding(
            self.train.num_classes, self.top_k, self.tau if self.top_k else None
        )

    @property
    def entries_per_view(self) -> int:
        return len(self.order(0))

    def order(self, view: int) -> np.ndarray:
        """The images of a view in the order of the export: int32 [n].

        Partners follow each other, so that each image is read once a view. An image
        that rests, where their number is odd, comes twice.
        """
        if self.seen is None:
            return np.arange(len(self.train), dtype=np.int32)
        seed, repeats = self.seen.augment_seed, self.seen.repeats
        return view_pairs(seed, view, len(self.train), repeats).reshape(-1)

    def manifest(self) -> dict:
        """All that is known before the teacher has been measured."""
        view = "plain" if self.seen is None else "same"
        whole = self.seen is not None or seen_whole(self.train)
        return {
            "source": teacher_cache.describe_source(self.train),
            "views": match.describe(view, self.num_views, self.seen),
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
        """The images for `logits`, a context manager."""
        if self.seen is None:
            return contextlib.nullcontext()
        return self.seen.open_images(self.train, workers=self.workers)

    def logits(
        self, opened, entries: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[np.ndarray]:
        """The teacher's float32 [B, C] for blocks of (index [B], view [B]).

        In the order of the classes of `train`.
        """
        columns, _ = self.classes
        # Ahead in a thread: JAX makes the next images while torch looks at these.
        images = batches.prefetch(self._images(opened, entries))
        with contextlib.closing(images):
            for block in images:
                answers = classifiers.logits(self.teacher, block, **self.compute)
                yield answers[:, columns]

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
    views: range | None = None,
    allow_weak_teacher: bool = False,
) -> bool:
    """Writes the views of a cache that are not there yet.

    Memory holds a few batches, whatever the length of the source and the number of
    views. The teacher is measured once, together with view 0.

    Args:
      out: The cache's directory.
      views: Only these, where several processes share an export; None: all.
      allow_weak_teacher: Take a teacher near chance.

    Returns:
      Whether the cache is finished; otherwise views are missing that are not in
      `views`.

    Raises:
      InputError: The teacher is near chance, `out` holds another cache, the logits do
        not fit float16, or a GPU's memory runs out.
    """
    deterministic()
    manifest = job.manifest()
    wanted = range(job.num_views) if views is None else views
    done = cache_writer.checksums(out, manifest)
    missing = [view for view in wanted if done[view] is None]
    top1 = cache_writer.measured_top1(out, manifest)
    _announce(job, manifest, out, missing)
    if missing:
        with job.open() as opened:
            _print_duration(job, opened, len(missing))
            if top1 is None and 0 in missing:
                top1 = _measure(job, allow_weak_teacher)
            for view in missing:
                _export_view(job, opened, out, view, manifest, top1)
    there = cache_writer.finished(out, manifest)
    if there and there["views"]["count"] >= job.num_views:
        return True
    if None in cache_writer.checksums(out, manifest):
        return False
    top1 = cache_writer.measured_top1(out, manifest)
    manifest["teacher"]["top1"] = top1
    examples = None
    if job.seen is not None:
        examples = match.examples(job.seen, job.train, job.num_views)
    cache_writer.finish(out, manifest, examples)
    return True


def _measure(job: Export, allow_weak_teacher: bool) -> float:
    top1, counts = classifiers.evaluate(
        job.teacher, job.test, batch_size=job.batch_size, **job.compute
    )
    print(f"the teacher's top-1 on {job.test.split}: {top1:.4f}", flush=True)
    if not allow_weak_teacher:
        classifiers.check_strength(top1, counts, f"{job.test.name} {job.test.split}")
    return top1


def _export_view(job, opened, out, view: int, manifest: dict, top1) -> None:
    writer = cache_writer.ViewWriter(out, view, manifest, top1)
    order = job.order(view)
    starts = range(writer.entries_done, len(order), job.batch_size)
    indices = [order[start : start + job.batch_size] for start in starts]
    blocks = ((index, np.full(len(index), view, np.int32)) for index in indices)
    progress = Patience(f"view {view}, images", len(order), writer.entries_done)
    with contextlib.closing(job.logits(opened, blocks)) as computed:
        for logits, index in zip(computed, indices, strict=True):
            writer.append(logits, index)
            progress.update(len(index))
    progress.close()
    writer.finish()


@classifiers.explain_out_of_memory()
def estimate(job: Export) -> dict[str, float]:
    """What an export would cost, from the time of one batch.

    Returns:
      `images` to look at, those that measure the teacher included, `images_per_second`,
      `seconds` and `bytes` of the cache.
    """
    images = job.num_views * job.entries_per_view + len(job.test)
    with job.open() as opened:
        rate = _images_per_second(job, opened)
    return {
        "images": images,
        "images_per_second": rate,
        "seconds": images / rate,
        "bytes": job.num_views * len(job.train) * job.encoding.bytes_per_row,
    }


def deterministic() -> None:
    """Autotuning picks kernels by the clock: two exports could differ in rounding."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _announce(job: Export, manifest: dict, out, missing: list[int]) -> None:
    size = job.num_views * len(job.train) * job.encoding.bytes_per_row
    if job.seen is None:
        seen = "1 plain view"
    else:
        mixed = "mixed" if job.seen.settings.mixes else "unmixed"
        seen = f"{job.num_views} {mixed} views of {job.seen.size} px"
    kept = f"{job.train.num_classes:,} classes"
    if job.top_k:
        kept = f"the {job.top_k} largest of {kept}"
    print(
        f"{job.train.name} {job.train.split}: {len(job.train):,} images x {seen} x "
        f"{kept}, {size / 1e6:,.2f} MB in {Path(out)}\n"
        f"{job.teacher.arch}, {job.teacher.stem} stem, {job.teacher.image_size} px, on "
        f"{job.compute['device']} in {manifest['teacher']['precision']}\n"
        + "".join(f"{sentence}\n" for sentence in job.classes[1:] if sentence)
        + _words(missing, job.num_views),
        flush=True,
    )


def _words(missing: list[int], count: int) -> str:
    if not missing:
        return "these views are there already"
    first, last = missing[0], missing[-1]
    return f"{len(missing)} of {count} views to export, from {first} to {last}"


def _print_duration(job: Export, opened, views: int) -> None:
    rate = _images_per_second(job, opened)
    minutes = views * job.entries_per_view / rate / 60
    print(f"about {rate:,.0f} images/s: {minutes:.1f} minutes to export", flush=True)


def _images_per_second(job: Export, opened) -> float:
    """The rate of one batch, after a first one that warms up."""
    index = job.order(0)[: job.batch_size]
    block = index, np.zeros(len(index), np.int32)
    began = 0.0
    for _ in job.logits(opened, [block, block]):
        began, before = time.perf_counter(), began
    return len(index) / (began - before)


@classifiers.explain_out_of_memory()
def verify(
    job: Export, cache: teacher_cache.TeacherCache, count: int, seed: int = 0
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
    ours, theirs = map(cache_writer.identity, (job.manifest(), cache.manifest))
    differing = [
        f"  {field}: {there} in the cache, {here} here"
        for field, (there, here) in cache_writer.differences(theirs, ours).items()
    ]
    if differing:
        raise InputError(
            f"{cache.directory} is of another teacher, data set or setting:\n"
            + "\n".join(differing)
            + "\n--verify wants the flags of the export."
        )
    blocks = _random_blocks(job, cache.num_views, count, seed)
    gaps, beyond = [], []
    with job.open() as opened:
        computed = job.logits(opened, blocks)
        for (index, view), live in zip(blocks, computed, strict=True):
            gap, more = _compare(job.encoding, cache.rows(view, index), live)
            gaps.append(gap)
            beyond.append(more)
    return float(np.max(gaps)), float(np.maximum(np.max(beyond), 0))


def _random_blocks(job: Export, num_views: int, count: int, seed: int) -> list:
    """Blocks (index, view) of random entries, whole pairs where pairs are seen."""
    unit = 1 if job.seen is None else 2
    per_view = job.entries_per_view // unit
    total = num_views * per_view
    chosen = np.random.default_rng(seed).choice(
        total, min(-(-count // unit), total), replace=False
    )
    singles = []
    for view, place in zip(*np.divmod(np.sort(chosen), per_view), strict=True):
        index = job.order(int(view))[unit * place : unit * (place + 1)]
        singles.append((index, np.full(unit, view, np.int32)))
    per_block = job.batch_size // unit
    return [
        tuple(map(np.concatenate, zip(*singles[n : n + per_block], strict=True)))
        for n in range(0, len(singles), per_block)
    ]


def _compare(encoding: Encoding, stored, live: np.ndarray) -> tuple[float, float]:
    """The largest |cached - live|, and the most beyond float16's rounding."""
    name, beyond = "logits", 0.0
    if encoding.top_k:
        # Nearly equal logits may have changed places: compared by class.
        name = "values"
        tails = encoding.encode(live)["tails"]
        beyond = np.abs(stored["tails"] - tails).max()
        live = np.take_along_axis(live, stored["indices"].astype(np.int64), axis=1)
    gap = np.abs(stored[name] - live)
    with np.errstate(invalid="ignore"):  # not a number is no neighbour
        rounding = np.abs(np.spacing(stored[name])) / 2
    return gap.max(), np.maximum(beyond, (gap - rounding).max())
