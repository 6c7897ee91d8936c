"""Decoding an encoded image to upright RGB.

Pillow is the one decoder, for every kind of source, so that the same bytes give the
same pixels everywhere.

- The EXIF orientation is applied: the image stands as its photographer held it.
- Transparent pixels are composited on white, as a browser shows them; Pillow's plain
  conversion would uncover whatever colour lies hidden under the transparency.
- 16-bit grey is scaled (65,535 becomes 255); Pillow's plain conversion would clip at
  255, which makes nearly everything white. Of 16-bit colour Pillow keeps the high byte.
- Of an animation or a multi-page file the first frame counts.
- Colour profiles are not applied; CMYK is converted by Pillow's formula.
- Metadata that is damaged or too large is passed over, as by a viewer.
"""

import contextlib
import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from deit_jax.data.sources.metadata import orientation, strip_metadata
from deit_jax.errors import InputError

# Named, so that no file reaches one of Pillow's decoders that start other programs
# (EPS). JPEG covers MPO, what phones write into files that end in .jpg.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
FORMATS_NAMED = "JPEG, PNG, WebP, GIF, BMP or TIFF"

# Pillow warns of metadata that it passes over, and from half its limit of pixels on.
warnings.filterwarnings("ignore", module=r"PIL\.")

# What undoes each EXIF orientation. Pillow's `exif_transpose` also rewrites the EXIF
# block, and fails where a camera has written an odd one.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_rgb(encoded: bytes | Image.Image, where: str) -> Image.Image:
    """The image in `encoded` as an upright Pillow image of mode RGB.

    Args:
      encoded: A whole JPEG, PNG, WebP, GIF, BMP or TIFF file; the content decides
        which, not a name. Or an image that Pillow has opened.
      where: What an error message calls the image: its path, or its data set, split
        and position.

    Raises:
      InputError: It is empty, truncated, no image, larger than Pillow's limit
        against decompression bombs (about 179 million pixels), or its levels have no
        known range (floating point, 32-bit integers).
    """
    if not encoded:
        raise InputError(f"{where} is empty (0 bytes). Replace or remove it.")
    try:
        image = encoded if isinstance(encoded, Image.Image) else _load(encoded)
        return _rgb(_upright(image))
    except UnidentifiedImageError as error:
        raise InputError(
            f"{where} is not an image ({FORMATS_NAMED}), or its beginning is damaged. "
            "Replace or remove it."
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{where} is too large: {error} Scale it down.") from error
    except Exception as error:  # damaged files raise anything: SyntaxError, zlib.error
        raise InputError(
            f"{where} cannot be decoded: {error or type(error).__name__}. Replace or "
            "remove it."
        ) from error


def square_side(encoded: bytes) -> int:
    """Pixels a side, by the header; 0 where it is no square, or damaged."""
    try:
        width, height = Image.open(io.BytesIO(encoded), formats=FORMATS).size
    except Exception:  # see `open_rgb`
        return 0
    return width if width == height else 0


def _load(encoded: bytes) -> Image.Image:
    try:
        return _load_whole(encoded)
    except Image.DecompressionBombError:
        raise
    except Exception:
        with contextlib.suppress(Exception):
            pixels, found = strip_metadata(encoded)
            image = _load_whole(pixels)
            image.info |= found
            return image
        raise  # the first: it was not for the metadata


def _load_whole(encoded: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    image.load()
    return image


def _upright(image: Image.Image) -> Image.Image:
    method = UPRIGHT.get(orientation(image))
    if method is None:
        return image
    turned = image.transpose(method)
    # It carries the orientation along, which would turn it a second time.
    turned.info = {k: v for k, v in image.info.items() if k == "transparency"}
    return turned


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(
                "32-bit levels have no known range; save it as 8 or 16 bit"
            )
        levels = levels.astype(np.uint32)  # in place: an image can be huge
        levels += 128
        levels //= 257
        image = Image.fromarray(levels.astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point levels have no known range; save it as 8 bit")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
