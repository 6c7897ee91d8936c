"""The images that a student sees in its train step, made outside of it.

What a teacher is asked about, what a start of training compares with what a teacher
has seen, and what is drawn to be looked at.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from deit_jax.data import batches, pipeline
from deit_jax.data.augment import augment_batch, mix
from deit_jax.data.augment.recipes import Augmentation
from deit_jax.data.pipeline import HostPipeline
from deit_jax.data.rng import host_device

# Where the images that a student is trained on are augmented.
PLACES = ("auto", "device", "host")
CHUNK = 16  # images that a core of the host augments at once


@dataclasses.dataclass(frozen=True)
class StudentViews:
    """All that the training images of a source follow from.

    Attributes:
      augment_seed: Of all draws, and of the pairs.
      repeats: Of repeated augmentation: views that share their pairs.
      size: Pixels a side.
      settings: What is done to the images.
    """

    augment_seed: int
    repeats: int
    size: int
    settings: Augmentation

    def unmixed(self) -> "StudentViews":
        """The same images before MixUp and CutMix; which pairs there are is no matter.

        `repeats` is 1 of all such.
        """
        return dataclasses.replace(self, repeats=1, settings=self.settings.unmixed())

    @property
    def _reading(self) -> dict:
        area, aspect = self.settings.crop_area, self.settings.crop_aspect
        return {"size": self.size, "area": area, "aspect": aspect}

    def open_images(self, source, *, workers: int):
        """A context manager, see `pipeline.open_images`."""
        return pipeline.open_images(source, workers=workers, **self._reading)

    def read_few(self, source) -> HostPipeline:
        """Reads single images of a source that may be large; a context manager."""
        return HostPipeline(source, workers=0, **self._reading)

    def augment(
        self,
        images: np.ndarray,
        index: np.ndarray,
        view: np.ndarray,
        *,
        mixed: bool = True,
    ) -> tuple[np.ndarray, mix.Mix]:
        """Augments and mixes as the train step does, on all cores of the host.

        Args:
          images: uint8 [B, S, S, 3], as `batches.read` gives them.
          index, view: int32 [B]; rows 2i and 2i + 1 are partners.
          mixed: As of `augment_batch`.

        Returns:
          uint8 [B, S, S, 3], and how each pair [B / 2] was mixed, as NumPy arrays.
        """
        count, size = len(images), min(CHUNK, len(images))
        program = _compiled(self, size, mixed)
        chunks = [
            batches.pad(rows, -count % size).reshape(-1, size, *rows.shape[1:])
            for rows in (images, index, view)
        ]
        made = _cores().map(functools.partial(_run, program), *chunks)
        images, mixes = jax.tree.map(lambda *parts: np.concatenate(parts), *made)
        return images[:count], jax.tree.map(lambda rows: rows[: count // 2], mixes)

    def replay(
        self, opened, requests: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[np.ndarray, mix.Mix]]:
        """Reads images, and augments and mixes them as the train step does.

        Args:
          opened: What `open_images` or `read_few` gives.
          requests: (index int32 [B], view int32 [B]), rows 2i and 2i + 1 partners.

        Yields:
          See `augment`.
        """
        requests, again = itertools.tee(requests)
        read = batches.read(opened, requests, augment_seed=self.augment_seed)
        for (images, _), (index, view) in zip(read, again, strict=True):
            yield self.augment(images, index, view)


@functools.lru_cache(maxsize=4)
def _compiled(seen: StudentViews, count: int, mixed: bool):
    """One program for all calls: a compilation takes seconds."""
    augment = functools.partial(
        augment_batch,
        augment_seed=seen.augment_seed,
        settings=seen.settings,
        mixed=mixed,
    )
    rows = jax.ShapeDtypeStruct((count,), np.int32)
    images = jax.ShapeDtypeStruct((count, seen.size, seen.size, 3), np.uint8)
    with jax.default_device(host_device()):
        # Not in threads of its own: it is the chunks that run side by side.
        return (
            jax.jit(augment)
            .lower(images, rows, rows)
            .compile(compiler_options={"xla_cpu_multi_thread_eigen": False})
        )


@functools.cache
def _cores() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "augment")


def _run(program: Callable, *chunk: np.ndarray):
    return jax.tree.map(np.asarray, program(*chunk))  # waits, without Python's lock
