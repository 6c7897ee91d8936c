"""Labelled images that lie in memory."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """A source (see `deit_jax.data.sources`) whose images are uint8 [N, H, W, 3]."""

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def pil_images(self, indices: Sequence[int]) -> Iterator[tuple[Image.Image, int]]:
        """Yields each image as a Pillow image, with its label."""
        for index in indices:
            yield Image.fromarray(self.images[index]), int(self.labels[index])
