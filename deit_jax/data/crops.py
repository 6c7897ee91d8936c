"""Which part of an image is seen, and its resizing on the host.

The boxes are computed in integers only, from integer draws, so that a training image
is the same on every machine. Pillow, whose resizing is integer arithmetic too, does
the pixels: equal bit for bit to torchvision's transforms of Pillow images.

Worker processes import this module: it must not import JAX.
"""

import functools
import itertools
import math

import numpy as np
from PIL import Image

# Attempts of torchvision's RandomResizedCrop before it takes the centre.
ATTEMPTS = 10
# uint32 draws of a box: area and aspect ratio of every attempt, and the position.
CROP_WORDS = 2 * ATTEMPTS + 2
FIXED = 16  # bits after the point
ASPECTS = 1024  # on 800 pixels, half a pixel between neighbours
# Of `centre_view`, as facebookresearch/deit evaluates: 224 of 256 px, 384 of 438.
CROP_RATIO = 0.875
# Times the shorter side. Of a longer image only what is seen is resized for the
# centre view: the whole, resized, could take more memory than the machine has.
LONGEST = 16


def random_resized_crop_box(
    draws: np.ndarray,
    width: int,
    height: int,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """A random part of an image (Szegedy et al. 2014, as torchvision computes it).

    Args:
      draws: uint32 [CROP_WORDS], uniform.
      width: Of the image, in pixels.
      height: Of the image, in pixels.
      area: Bounds of the part's share of the image; uniform between them.
      aspect: Bounds of its width / height; log-uniform between them. Where no attempt
        fits into the image, the largest central part within these bounds is taken.

    Returns:
      (left, top, right, bottom), as `Image.crop` takes it.
    """
    draws = [int(draw) for draw in draws]
    low, high = (round(bound * 2**FIXED) for bound in area)
    table = _aspects(*aspect)
    for attempt in range(ATTEMPTS):
        share = (low << 32) + (high - low) * draws[2 * attempt]  # 32 + FIXED bits
        ratio = table[draws[2 * attempt + 1] * ASPECTS >> 32]  # FIXED bits
        part = width * height * share
        # round(sqrt(x)) is (isqrt(4 x) + 1) // 2, for a fraction x too.
        w = (math.isqrt(4 * part * ratio >> 32 + 2 * FIXED) + 1) // 2
        h = (math.isqrt(4 * part // ratio >> 32) + 1) // 2
        if 0 < w <= width and 0 < h <= height:
            left = (width - w + 1) * draws[-2] >> 32
            top = (height - h + 1) * draws[-1] >> 32
            return left, top, left + w, top + h

    low, high = (round(bound * 2**FIXED) for bound in aspect)
    w, h = width, height
    if width << FIXED < height * low:
        h = max(1, ((width << FIXED) + low // 2) // low)
    elif width << FIXED > height * high:
        w = max(1, (height * high + 2 ** (FIXED - 1)) >> FIXED)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


@functools.cache
def _aspects(low: float, high: float) -> tuple[int, ...]:
    """`ASPECTS` evenly spaced values of a log-uniform distribution, `FIXED` bits.

    Without logarithms, whose last bit depends on the machine: the value between two
    others is their geometric mean, an integer square root.
    """
    more = 2**FIXED
    values = [round(low * more) * more, round(high * more) * more]
    while len(values) <= 2 * ASPECTS:
        between = [math.isqrt(a * b) for a, b in itertools.pairwise(values)]
        values = sorted(values + between)
    return tuple((v + more // 2) // more for v in values[1::2])


def crop_and_resize(
    image: Image.Image, box: tuple[int, int, int, int], size: int
) -> np.ndarray:
    """The part `box` of an RGB image, bicubically resized: uint8 [size, size, 3].

    Cropped first: no pixel outside of the box is seen.
    """
    part = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(part)


def centre_view(image: Image.Image, size: int, crop_ratio: float) -> np.ndarray:
    """What a model evaluates: the centre of an RGB image, uint8 [size, size, 3].

    Args:
      image: Its shorter side is resized (bicubic) to `int(size / crop_ratio)`, and the
        centre is cropped.
      size: Pixels a side.
      crop_ratio: In (0, 1]; the reference's is `CROP_RATIO`, timm's for its models 0.9
        at 224 px, which makes 248, and 1 at 384 px.
    """
    shorter = int(size / crop_ratio)
    width, height = image.size
    if width <= height:
        resized = shorter, shorter * height // width
    else:
        resized = shorter * width // height, shorter
    # A half is rounded to the even neighbour, as in torchvision's CenterCrop.
    left, top = (round((side - size) / 2) for side in resized)
    if max(resized) > LONGEST * shorter:
        # The same pixels, at most one level off: the sampling positions are rounded
        # otherwise. Pillow resizes the whole image in this order, rows first.
        bicubic = Image.Resampling.BICUBIC
        x, y = width / resized[0], height / resized[1]
        box = max(left * x, 0), 0, min((left + size) * x, width), height
        image = image.resize((size, height), bicubic, box=box)
        box = 0, max(top * y, 0), size, min((top + size) * y, height)
        return np.asarray(image.resize((size, size), bicubic, box=box))
    image = image.resize(resized, Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + size, top + size)))
