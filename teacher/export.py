"""Exports a teacher's answers to the images that a student will see: a cache."""

import contextlib
import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from deit_jax.data import batches
from deit_jax.data.plan import view_pairs
from deit_jax.data.student_views import StudentViews
from deit_jax.distillation import (
    cache_format,
    cache_writer,
    classes,
    match,
)
from deit_jax.distillation.encoding import Encoding
from deit_jax.distillation.teacher import Answers, check_number, describe, describe_one
from deit_jax.errors import InputError
from deit_jax.patience import Patience
from teacher import accuracy
from teacher.blocks import read_plain, seen_whole

# For a teacher that knows nothing.
ADVICE = (
    "Check --arch, --image_size, --stem and the order of the classes, train it longer, "
    "or pass --allow_weak_teacher."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Export:
    """What a cache is made of; the same gives byte-identical files on one machine.

    Attributes:
      teachers: Have the classes of `train`, in any order where their files name them;
        several are averaged. As `backend` takes them.
      train: The source to cache (`deit_jax.data.sources`).
      test: The source that the teachers' top-1 is measured on.
      backend: `teacher.classifier.TorchBackend` or `teacher.jax_backend.JaxBackend`.
      seen: The images that the teachers see; None for plain ones.
      num_views: Views of each image; 1 for plain ones.
      top_k: Largest logits that are kept; None for all.
      tau: Temperature for which the others' probability is kept, and at which several
        teachers are averaged.
      features: Whether its features are kept beside the logits.
      batch_size: Images a forward pass; even where pairs are seen.
      workers: Processes that decode images which do not fit into memory.

    Raises:
      InputError: The classes differ, or a number cannot work.
    """

    teachers: Sequence
    train: object
    test: object
    backend: object
    seen: StudentViews | None = None
    num_views: int = 1
    top_k: int | None = None
    tau: float = 1.0
    features: bool = False
    batch_size: int = 64
    workers: int = 0

    def __post_init__(self):
        _ = self.classes
        check_number("features" if self.features else "", len(self.teachers))
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
        _ = self.encoding  # refuse what cannot work now

    @functools.cached_property
    def classes(self) -> list[tuple[list[int], str]]:
        """Each teacher's columns for the classes of `train`, and a sentence on them."""
        found = []
        for number, teacher in enumerate(self.teachers, 1):
            try:
                found.append(classes.match(teacher, self.train))
            except InputError as error:
                if len(self.teachers) == 1:
                    raise
                raise InputError(
                    f"teacher {number} of {len(self.teachers)}: {error}"
                ) from error
        return found

    @property
    def encoding(self) -> Encoding:
        return Encoding(
            self.train.num_classes,
            self.top_k,
            self.tau if self.top_k else None,
            self.teachers[0].num_features if self.features else 0,
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
        """All that is known before the teachers have been measured."""
        view = "plain" if self.seen is None else "same"
        return {
            "source": cache_format.describe_source(self.train),
            "views": match.describe(view, self.num_views, self.seen),
            "logits": self.encoding.describe(),
            "teacher": self._describe_teachers(),
        }

    def _describe_teachers(self) -> dict:
        whole = self.seen is not None or seen_whole(self.train)
        each = [
            describe_one(teacher)
            | {"crop_ratio": None if whole else teacher.crop_ratio, "top1": None}
            for teacher in self.teachers
        ]
        return describe(
            each,
            self.tau,
            precision=self.backend.precision,
            backend=self.backend.name,
            top1=None,
            top1_split=self.test.split,
        )

    def open(self):
        """The images for `answers`, a context manager."""
        if self.seen is None:
            return contextlib.nullcontext()
        return self.seen.open_images(self.train, workers=self.workers)

    def answers(
        self, opened, entries: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[Answers]:
        """The teachers' float32 [B, ...] for blocks of (index [B], view [B]).

        In the order of the classes of `train`.
        """
        columns = [columns for columns, _ in self.classes]
        # Ahead in a thread: the next images are made while a teacher looks at these.
        images = batches.prefetch(self._images(opened, entries))
        with contextlib.closing(images):
            for seen in images:
                each = accuracy.answers(
                    self.teachers, seen, self.backend, columns, features=self.features
                )
                yield accuracy.together(each, self.tau)

    def _images(self, opened, entries) -> Iterator[list[np.ndarray]]:
        """What each teacher sees."""
        if self.seen is None:
            blocks = [index for index, _ in entries]
            for images, _ in read_plain(self.teachers, self.train, blocks):
                yield images
            return
        # The last block is filled up, so that one compiled program serves all.
        entries, again = itertools.tee(entries)
        replayed = self.seen.replay(opened, (self._fill_up(*e) for e in entries))
        for (images, _), (index, _) in zip(replayed, again, strict=True):
            images = images[: len(index)].copy()  # torch wants it writable
            yield [images] * len(self.teachers)

    def _fill_up(self, index, view):
        missing = (self.batch_size - len(index)) // 2
        return tuple(
            np.concatenate([x, np.tile(x[-2:], missing)]).astype(np.int32)
            for x in (index, view)
        )


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
    cache_writer.set_top1(manifest, cache_writer.measured_top1(out, manifest))
    examples = None
    if job.seen is not None:
        examples = match.examples(job.seen, job.train, job.num_views)
    cache_writer.finish(out, manifest, examples)
    return True


def _measure(job: Export, allow_weak_teacher: bool) -> list[float]:
    top1, counts = accuracy.evaluate(
        job.teachers, job.test, job.backend, batch_size=job.batch_size, tau=job.tau
    )
    names = ["the teacher"]
    if len(job.teachers) > 1:
        each = enumerate(job.teachers, 1)
        names = ["all teachers together", *(f"teacher {n}, {t.arch}" for n, t in each)]
    for name, share in zip(names, top1, strict=True):
        print(f"{name}: top-1 {share:.4f} on {job.test.split}", flush=True)
        if not allow_weak_teacher:
            split = f"{job.test.name} {job.test.split}"
            classes.check_strength(share, counts, split, ADVICE, name)
    return top1


def _export_view(job, opened, out, view: int, manifest: dict, top1) -> None:
    writer = cache_writer.ViewWriter(out, view, manifest, top1)
    order = job.order(view)
    starts = range(writer.entries_done, len(order), job.batch_size)
    indices = [order[start : start + job.batch_size] for start in starts]
    blocks = ((index, np.full(len(index), view, np.int32)) for index in indices)
    progress = Patience(f"view {view}, images", len(order), writer.entries_done)
    with contextlib.closing(job.answers(opened, blocks)) as computed:
        for answers, index in zip(computed, indices, strict=True):
            writer.append(answers, index)
            progress.update(len(index))
    progress.close()
    writer.finish()


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
    if job.features:
        kept += f" and {job.encoding.features:,} features"
    print(
        f"{job.train.name} {job.train.split}: {len(job.train):,} images x {seen} x "
        f"{kept}, {size / 1e6:,.2f} MB in {Path(out)}\n"
        + "".join(
            f"{teacher.arch}, {teacher.stem} stem, {teacher.image_size} px\n"
            for teacher in job.teachers
        )
        + f"with {job.backend.name} on {job.backend.device} in "
        f"{manifest['teacher']['precision']}\n"
        + "".join(f"{sentence}\n" for _, sentence in job.classes if sentence)
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
    for _ in job.answers(opened, [block, block]):
        began, before = time.perf_counter(), began
    return len(index) / (began - before)
