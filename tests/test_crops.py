"""Crops on the host: torchvision's distribution and pixels, in integers."""

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from deit_jax.data import crops

torchvision = pytest.importorskip("torchvision")
import torch  # noqa: E402
from torchvision import transforms  # noqa: E402
from torchvision.transforms import functional  # noqa: E402

BICUBIC = functional.InterpolationMode.BICUBIC


def draws(count, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 2**32, (count, crops.CROP_WORDS), dtype=np.uint32)


def picture(width, height, seed=0):
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def boxes(count, width, height, **bounds):
    return np.array(
        [
            crops.random_resized_crop_box(row, width, height, **bounds)
            for row in draws(count)
        ]
    )


@pytest.mark.parametrize(
    ("width", "height", "bounds"),
    [
        (500, 375, {}),
        (300, 900, {}),  # many attempts do not fit
        (640, 480, {"area": (0.3, 0.6), "aspect": (0.5, 3.0)}),
    ],
)
def test_boxes_are_distributed_as_torchvisions(width, height, bounds):
    count = 10_000
    area = bounds.get("area", (0.08, 1.0))
    aspect = bounds.get("aspect", (3 / 4, 4 / 3))
    ours = boxes(count, width, height, **bounds)
    torch.manual_seed(0)
    size = torch.empty(3, height, width)
    theirs = np.array(
        [
            transforms.RandomResizedCrop.get_params(size, area, aspect)
            for _ in range(count)
        ]
    )
    top, left, h, w = theirs.T
    theirs = np.stack([left, top, left + w, top + h], axis=1)

    def statistics(box):
        left, top, right, bottom = box.T.astype(float)
        w, h = right - left, bottom - top
        slack = np.maximum(width - w, 1), np.maximum(height - h, 1)
        return w * h, w / h, left, top, left / slack[0], top / slack[1], w, h

    for parts in zip(statistics(ours), statistics(theirs), strict=True):
        # Equal distributions differ by less, but for once in 10 million.
        assert stats.ks_2samp(*parts, method="asymp").pvalue > 1e-7


@pytest.mark.parametrize(
    ("width", "height"),
    [(1, 1), (1, 9), (2, 3), (7, 5), (401, 299), (1, 5000), (5000, 3)],
)
def test_boxes_lie_inside_and_are_not_empty(width, height):
    rows = [*draws(300), *np.full((2, crops.CROP_WORDS), [[0], [2**32 - 1]], np.uint32)]
    found = [crops.random_resized_crop_box(row, width, height) for row in rows]
    left, top, right, bottom = np.array(found).T
    assert (left >= 0).all() and (right <= width).all() and (left < right).all()
    assert (top >= 0).all() and (bottom <= height).all() and (top < bottom).all()


@pytest.mark.parametrize(
    ("width", "height"), [(10, 1000), (1000, 10), (3, 700), (999, 20), (61, 47)]
)
def test_where_no_attempt_fits_the_centre_is_torchvisions(width, height):
    # No part can have twice the image's area.
    row = draws(1)[0]
    left, top, right, bottom = crops.random_resized_crop_box(
        row, width, height, area=(2.0, 2.0)
    )
    i, j, h, w = transforms.RandomResizedCrop.get_params(
        torch.empty(3, height, width), (2.0, 2.0), (3 / 4, 4 / 3)
    )
    assert (left, top, right, bottom) == (j, i, j + w, i + h)


def test_golden_boxes():
    """The same on every machine: a teacher's cache depends on it."""
    counter = np.arange(4 * crops.CROP_WORDS, dtype=np.uint32).reshape(4, -1)
    rows = counter * np.uint32(2654435769)
    assert [crops.random_resized_crop_box(row, 500, 375) for row in rows] == GOLDEN


GOLDEN = [
    (134, 252, 261, 370),
    (177, 1, 493, 374),
    (144, 30, 385, 231),
    (53, 186, 199, 320),
]


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (500, 375, (55, 26, 356, 369)),
        (500, 375, (10, 20, 242, 252)),  # already the size
        (40, 30, (3, 1, 20, 28)),  # is enlarged
        (9, 700, (0, 300, 9, 312)),
    ],
)
@pytest.mark.parametrize("size", [32, 232])
def test_crop_and_resize_equals_torchvision(width, height, box, size):
    image = picture(width, height)
    left, top, right, bottom = box
    expected = functional.resized_crop(
        image, top, left, bottom - top, right - left, [size, size], BICUBIC
    )
    ours = crops.crop_and_resize(image, box, size)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, np.asarray(expected))


SHAPES = [(500, 375), (375, 500), (333, 333), (251, 640), (17, 13), (248, 249)]
STRIPES = [(900, 20), (20, 900), (8, 700), (4000, 101), (101, 4000)]


@pytest.mark.parametrize(("width", "height"), [*SHAPES, (4001, 301), *STRIPES])
@pytest.mark.parametrize(
    ("size", "ratio"), [(224, 0.9), (224, 0.875), (32, 1.0), (33, 0.7)]
)
def test_the_centre_view_is_torchvisions(width, height, size, ratio):
    """A stripe may differ by one level."""
    image = picture(width, height)
    expected = transforms.Compose(
        [
            transforms.Resize(int(size / ratio), interpolation=BICUBIC),
            transforms.CenterCrop(size),
        ]
    )(image)
    ours = crops.centre_view(image, size, ratio)
    assert ours.shape == (size, size, 3)
    difference = np.abs(ours.astype(int) - np.asarray(expected)).max()
    assert difference <= (max(width, height) > crops.LONGEST * min(width, height))


@pytest.mark.parametrize(("width", "height"), [(100_000, 1), (3, 30_000)])
def test_the_centre_view_of_a_stripe_takes_little_memory(width, height, monkeypatch):
    sizes = []
    real = Image.Image.resize

    def resize(self, size, *args, **options):
        sizes.append(size)
        return real(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    view = crops.centre_view(picture(width, height), 32, 1.0)
    assert view.shape == (32, 32, 3)
    assert all(w * h <= 32 * max(32, height) for w, h in sizes)
