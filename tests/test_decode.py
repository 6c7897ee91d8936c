"""Decoding: every kind of image that people have becomes upright RGB."""

import io
import subprocess
import sys

import numpy as np
import pytest
from broken_metadata import IMAGE, TURNED, UPRIGHT, chunk, png
from made_sets import encoded
from PIL import Image

from deit_jax.data.sources.decode import open_rgb
from deit_jax.errors import InputError

ORIENTATION = 0x0112  # the EXIF tag
COLOUR = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)
GREY = COLOUR[..., 0]


def decode(file: bytes, where: str = "x") -> np.ndarray:
    image = open_rgb(file, where)
    assert image.mode == "RGB"
    return np.asarray(image)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


@pytest.mark.parametrize(
    ("format", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True})],
)
def test_lossless_formats_keep_every_pixel(format, options):
    image = decode(encoded(COLOUR, format, **options))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, COLOUR)


def test_jpeg_is_what_pillow_decodes():
    file = encoded(COLOUR, "JPEG", quality=75)
    np.testing.assert_array_equal(decode(file), Image.open(io.BytesIO(file)))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_exif_orientation_is_applied_once(orientation, upright, format):
    file = encoded(COLOUR, format, exif=exif(orientation))
    np.testing.assert_array_equal(decode(file), upright(COLOUR))


def test_a_jpeg_of_a_phone_stands_upright():
    other = Image.new("RGB", (2, 2))
    file = encoded(COLOUR, "MPO", exif=exif(6), save_all=True, append_images=[other])
    assert decode(file).shape == (7, 5, 3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (GREY, GREY[..., None]),
        (Image.fromarray(GREY > 127), (GREY > 127)[..., None] * 255),
        (Image.fromarray(COLOUR).quantize(9), None),
    ],
    ids=["grey", "black and white", "palette"],
)
def test_other_modes(image, expected):
    expected = image.convert("RGB") if expected is None else expected.repeat(3, -1)
    np.testing.assert_array_equal(decode(encoded(image)), expected)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(format):
    levels = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    image = decode(encoded(levels, format))
    np.testing.assert_array_equal(image[0, :, 0], [0, 0, 1, 1, 128, 255])
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


def test_transparency_becomes_white():
    alpha = np.zeros((5, 7, 1), np.uint8)
    alpha[0], alpha[1] = 255, 51  # opaque, one fifth
    image = decode(encoded(np.concatenate([COLOUR, alpha], -1)))
    np.testing.assert_array_equal(image[0], COLOUR[0])
    np.testing.assert_allclose(image[1], COLOUR[1] * 0.2 + 255 * 0.8, atol=1)
    assert (image[2:] == 255).all()


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.zeros((2, 2, 2), np.uint8), "LA"),
        Image.fromarray(np.zeros((2, 2), np.uint8)).convert("P"),
        Image.fromarray(np.zeros((2, 2), np.uint8)),
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)),
    ],
    ids=lambda image: image.mode,
)
def test_transparency_without_an_alpha_channel_of_its_own(image):
    # A palette, grey or RGB image can name one colour as transparent: here black.
    colour = {"L": 0, "P": 0, "RGB": (0, 0, 0)}.get(image.mode)
    options = {} if colour is None else {"transparency": colour}
    assert (decode(encoded(image, **options)) == 255).all()


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_full_ink_of_cyan_is_no_red(format):
    ink = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    pixel = decode(encoded(ink, format))[0, 0]
    np.testing.assert_allclose(pixel, [0, 255, 255], atol=2)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(format):
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if format == "WEBP" else {}
    file = encoded(red, format, save_all=True, append_images=[blue], **options)
    np.testing.assert_array_equal(decode(file)[0, 0], [255, 0, 0])


def flipped(file: bytes) -> bytes:
    return file[:60] + bytes([file[60] ^ 255]) + file[61:]


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (b"", "is empty"),
        (b"<html>404 Not Found</html>", "is not an image"),
        (encoded(COLOUR)[:20], "is not an image|cannot be decoded"),
        (encoded(COLOUR)[:80], "cannot be decoded"),
        (flipped(encoded(COLOUR)), "cannot be decoded"),
        (png(chunk(b"gAMA", b""))[:90], "cannot be decoded: Truncated gAMA"),
        (encoded(COLOUR, "JPEG")[:-40], "truncated"),
        (encoded(COLOUR, "WEBP")[:-20], "is not an image|cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        (encoded(GREY.astype(np.float32), "TIFF"), "floating-point levels"),
        (encoded(GREY.astype(np.int32) + 2**20, "TIFF"), "no known range"),
    ],
)
def test_what_is_no_image_is_named(file, says):
    with pytest.raises(InputError, match=rf"^cats/1\.jpg .*({says})"):
        decode(file, "cats/1.jpg")


def test_a_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # an error from twice as many
    with pytest.raises(InputError, match=r"^big\.png is too large.*35 pixels"):
        decode(encoded(COLOUR), "big.png")


@pytest.mark.parametrize("name", [*UPRIGHT, *TURNED])
def test_broken_metadata_costs_no_pixel(name):
    plain = decode(encoded(IMAGE, name.split()[0]))
    expected = np.rot90(plain, -1) if name in TURNED else plain
    np.testing.assert_array_equal(decode((UPRIGHT | TURNED)[name]), expected)


def test_pillow_warns_of_nothing(tmp_path):
    """Neither of more than half its limit of pixels nor of what it passes over."""
    for name, file in (UPRIGHT | TURNED).items():
        (tmp_path / name).write_bytes(file)
    program = (
        "import sys, pathlib, PIL.Image as pillow\n"
        "from deit_jax.data.sources.decode import open_rgb\n"
        f"pillow.MAX_IMAGE_PIXELS = {IMAGE.shape[0] * IMAGE.shape[1] - 1}\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    open_rgb(path.read_bytes(), path.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", program, tmp_path],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
