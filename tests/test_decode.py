"""Decoding: every kind of image that people have becomes upright RGB."""

import io

import numpy as np
import pytest
from PIL import Image

from deit_jax.data.sources.decode import decode_rgb, open_rgb
from deit_jax.errors import InputError

ORIENTATION = 0x0112  # the EXIF tag
COLOUR = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)
GREY = COLOUR[..., 0]


def encode(image, format="PNG", **options) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


@pytest.mark.parametrize(
    ("format", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True})],
)
def test_lossless_formats_keep_every_pixel(format, options):
    image = decode_rgb(encode(COLOUR, format, **options), "x")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, COLOUR)


def test_jpeg_is_what_pillow_decodes():
    encoded = encode(COLOUR, "JPEG", quality=75)
    expected = np.asarray(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(decode_rgb(encoded, "x"), expected)


def test_the_result_is_a_plain_rgb_image():
    assert open_rgb(encode(COLOUR), "x").mode == "RGB"


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
        (99, lambda a: a),  # not an orientation
    ],
)
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_exif_orientation_is_applied_once(orientation, upright, format):
    encoded = encode(COLOUR, format, exif=exif(orientation))
    np.testing.assert_array_equal(decode_rgb(encoded, "x"), upright(COLOUR))


def test_a_jpeg_of_a_phone_stands_upright():
    other = Image.new("RGB", (2, 2))
    encoded = encode(COLOUR, "MPO", exif=exif(6), save_all=True, append_images=[other])
    assert decode_rgb(encoded, "x").shape == (7, 5, 3)


def test_odd_exif_does_not_lose_the_picture():
    encoded = encode(COLOUR, "JPEG", exif=b"Exif\0\0no exif at all")
    assert decode_rgb(encoded, "x").shape == COLOUR.shape


def test_grey_has_three_equal_channels():
    expected = np.repeat(GREY[..., None], 3, axis=-1)
    np.testing.assert_array_equal(decode_rgb(encode(GREY), "x"), expected)


def test_black_and_white():
    bits = Image.fromarray(GREY > 127)
    expected = np.repeat((GREY > 127)[..., None] * 255, 3, axis=-1)
    np.testing.assert_array_equal(decode_rgb(encode(bits), "x"), expected)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(format):
    levels = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    image = decode_rgb(encode(levels, format), "x")
    np.testing.assert_array_equal(image[0, :, 0], [0, 0, 1, 1, 128, 255])
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


def test_palette():
    image = Image.fromarray(COLOUR).quantize(200)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_rgb(encode(image), "x"), expected)


def test_transparency_becomes_white():
    alpha = np.zeros((5, 7, 1), np.uint8)
    alpha[0], alpha[1] = 255, 51  # opaque, one fifth
    image = decode_rgb(encode(np.concatenate([COLOUR, alpha], -1)), "x")
    np.testing.assert_array_equal(image[0], COLOUR[0])
    blend = COLOUR[1] * 0.2 + 255 * 0.8
    np.testing.assert_allclose(image[1], blend, atol=1)
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
    assert (decode_rgb(encode(image, **options), "x") == 255).all()


def test_cmyk():
    # Full ink of cyan is no red.
    ink = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    for format in ("JPEG", "TIFF"):
        pixel = decode_rgb(encode(ink, format), "x")[0, 0]
        np.testing.assert_allclose(pixel, [0, 255, 255], atol=2)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    encoded = encode(
        frames[0], format, save_all=True, append_images=frames[1:], **options
    )
    np.testing.assert_array_equal(decode_rgb(encoded, "x")[0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    ("encoded", "says"),
    [
        (b"", "is empty"),
        (b"<html>404 Not Found</html>", "is not an image"),
        (encode(COLOUR)[:20], "is not an image|cannot be decoded"),
        (encode(COLOUR)[:80], "cannot be decoded"),
        (encode(COLOUR, "JPEG")[:-40], "truncated"),
        (encode(COLOUR, "WEBP")[:-20], "is not an image|cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        (encode(GREY.astype(np.float32), "TIFF"), "floating-point levels"),
        (encode(GREY.astype(np.int32) + 2**20, "TIFF"), "no known range"),
    ],
    ids=["empty", "html", "header", "png", "jpeg", "webp", "eps", "float", "int32"],
)
def test_what_is_no_picture_is_named(encoded, says):
    with pytest.raises(InputError, match=rf"^cats/1\.jpg .*({says})"):
        decode_rgb(encoded, "cats/1.jpg")


def test_a_flipped_byte_in_a_png_is_found():
    encoded = bytearray(encode(COLOUR))
    encoded[60] ^= 255
    with pytest.raises(InputError, match="cannot be decoded"):
        decode_rgb(bytes(encoded), "x")


def test_a_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # an error from twice as many
    with pytest.raises(InputError, match=r"^big\.png is too large.*35 pixels"):
        decode_rgb(encode(COLOUR), "big.png")
