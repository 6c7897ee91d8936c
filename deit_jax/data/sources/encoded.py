"""Labelled images that stay encoded on disk until they are asked for."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from deit_jax.data.sources import fingerprints, recompressed
from deit_jax.data.sources.decode import open_rgb


@dataclasses.dataclass(eq=False, repr=False)
class EncodedSource:
    """A source (see `deit_jax.data.sources`) over encoded images.

    It pickles to its paths, never to its images: a worker process opens the files
    itself.

    Attributes:
      records: Where the images lie: `len(records)`; `records.labels`, int32 [N];
        `records.read(indices)`, of each (encoded bytes, label), from any thread;
        `records.where(index)`, what an error message calls the image.
      order: sha256 (hex) of class names, files and labels, but for what is in the
        files; None where only `fingerprint` says so.
      passed_over: How many files were not taken for images, by ending (`.heic`) or
        as `hidden`.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    records: object
    fingerprint: str
    order: str | None = None
    image_shape: tuple[int, int, int] | None = None
    passed_over: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        self.notes = (*self.notes, *recompressed.notes(self))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def labels(self) -> np.ndarray:
        """int32 [N]. A TFDS set of more than 1 GiB is read whole for it, once."""
        return self.records.labels

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        image, label = self.pil_image(index)
        return {"image": np.array(image), "label": label}

    def pil_image(self, index: int) -> tuple[Image.Image, int]:
        """The upright RGB image, not resized, and its label.

        Raises:
          InputError: The file is missing, damaged or no image; it is named.
        """
        return next(self.pil_images([range(len(self))[index]]))

    def pil_images(self, indices: Sequence[int]) -> Iterator[tuple[Image.Image, int]]:
        """As `pil_image`, of each of `indices`.

        A set of TFDS reads all of them at once: a reading takes half a millisecond.
        """
        read = self.records.read(indices)
        for index, (encoded, label) in zip(indices, read, strict=True):
            yield open_rgb(encoded, self.where(index)), label

    def where(self, index: int) -> str:
        """What an error message calls the image."""
        return self.records.where(range(len(self))[index])


def open_records(
    name: str,
    split: str,
    class_names: Sequence[str],
    records,
    sizes: np.ndarray,
    **more,
) -> EncodedSource:
    """A source of which `fingerprints.of_records` is the fingerprint.

    Args:
      records: See `EncodedSource`.
      sizes: int64 [N], the bytes of each encoded image.
      more: Fields of `EncodedSource`.
    """
    read = fingerprints.sample(records, int(sizes.sum()))
    found = fingerprints.of_records(split, class_names, records.labels, sizes, read)
    return EncodedSource(name, split, tuple(class_names), records, found, **more)
