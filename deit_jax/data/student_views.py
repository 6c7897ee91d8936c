"""The images that a student sees in its train step, made outside of it.

What a teacher is asked about, what a start of training compares with what a teacher
has seen, and what is drawn to be looked at.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from deit_jax.data import batches, pipeline
from deit_jax.data.augment import augment_batch, mix
from deit_jax.data.augment.recipes import Augmentation
from deit_jax.data.pipeline import HostPipeline


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

    def open_images(self, source, *, workers: int):
        """A context manager, see `pipeline.open_images`."""
        return pipeline.open_images(
            source,
            size=self.size,
            workers=workers,
            area=self.settings.crop_area,
            aspect=self.settings.crop_aspect,
        )

    def read_few(self, source) -> HostPipeline:
        """Reads single images of a source that may be large; a context manager."""
        return HostPipeline(
            source,
            size=self.size,
            workers=0,
            area=self.settings.crop_area,
            aspect=self.settings.crop_aspect,
        )

    def replay(
        self, opened, requests: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[np.ndarray, mix.Mix]]:
        """Augments and mixes as the train step does.

        Args:
          opened: What `open_images` or `read_few` gives.
          requests: (index int32 [B], view int32 [B]), rows 2i and 2i + 1 partners. Each
            length B compiles once.

        Yields:
          uint8 [B, S, S, 3], and how each pair [B / 2] was mixed, as NumPy arrays.
        """
        augment = _compiled(self.augment_seed, self.settings)
        requests, again = itertools.tee(requests)
        read = batches.read(opened, requests, augment_seed=self.augment_seed)
        for (images, _), (index, view) in zip(read, again, strict=True):
            yield jax.tree.map(np.asarray, augment(images, index, view))


@functools.cache
def _compiled(augment_seed: int, settings: Augmentation):
    """One for all calls: a compilation takes seconds."""
    return jax.jit(
        functools.partial(augment_batch, augment_seed=augment_seed, settings=settings)
    )
