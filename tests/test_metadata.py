"""Metadata, broken in every way, costs no pixel."""

import subprocess
import sys

import numpy as np
import pytest
from broken_metadata import IMAGE, TURNED, UPRIGHT, chunk, encode, png

from deit_jax.data.sources.decode import decode_rgb
from deit_jax.errors import InputError


@pytest.mark.parametrize("name", [*UPRIGHT, *TURNED])
def test_broken_metadata_costs_no_pixel(name):
    format = name.split()[0].upper()
    options = {"lossless": True} if format == "WEBP" else {}
    plain = decode_rgb(encode(format, **options), "plain")
    expected = np.rot90(plain, -1) if name in TURNED else plain
    encoded = (UPRIGHT | TURNED)[name]
    np.testing.assert_array_equal(decode_rgb(encoded, name), expected)


def test_broken_pixels_beside_broken_metadata_are_found():
    encoded = png(chunk(b"gAMA", b""))
    with pytest.raises(InputError, match="cannot be decoded: Truncated gAMA"):
        decode_rgb(encoded[:90], "x")


def test_pillow_warns_of_nothing(tmp_path):
    """Neither of more than half its limit of pixels nor of what it passes over."""
    for name, encoded in (UPRIGHT | TURNED).items():
        (tmp_path / name).write_bytes(encoded)
    program = (
        "import sys, pathlib, PIL.Image as pillow\n"
        "from deit_jax.data.sources.decode import decode_rgb\n"
        f"pillow.MAX_IMAGE_PIXELS = {IMAGE.shape[0] * IMAGE.shape[1] - 1}\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    decode_rgb(path.read_bytes(), path.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", program, tmp_path],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
