"""Image files with broken metadata, written byte by byte."""

import struct
import zlib

import numpy as np
from made_sets import encoded

TILES = np.random.RandomState(0).randint(0, 256, (3, 4, 3))
IMAGE = TILES.repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)  # 24 x 32
XMP = '<x:xmpmeta tiff:Orientation="6" by="Å"/>'
BOMB = zlib.compress(bytes(2**22))  # four times Pillow's limit of a text


def tiff(*entries, order=">") -> bytes:
    """A TIFF directory: what EXIF consists of. Entries: tag, type, count, value."""
    name = b"MM" if order == ">" else b"II"
    directory = struct.pack(f"{order}2sHLH", name, 42, 8, len(entries))
    for tag, kind, count, value in entries:
        last = "L" if kind == 4 or count > 2 else "H2x"
        directory += struct.pack(f"{order}HHL{last}", tag, kind, count, value)
    return directory + bytes(4)


MAKE_OUTSIDE = (0x010F, 2, 40, 9999)  # text, far behind the end
ON_ITS_SIDE = (0x0112, 3, 1, 6)
EXIF = tiff(ON_ITS_SIDE)


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", crc)


def png(*chunks: bytes, end: bytes = b"") -> bytes:
    """A PNG with chunks before its pixels and behind them."""
    plain = encoded(IMAGE, "PNG")
    return plain[:33] + b"".join(chunks) + plain[33:-12] + end + plain[-12:]


def segment(marker: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, length or len(body) + 2) + body


def jpeg(*segments: bytes) -> bytes:
    plain = encoded(IMAGE, "JPEG")
    return plain[:20] + b"".join(segments) + plain[20:]  # behind JFIF


LATIN_XMP = XMP.encode("latin-1")
TEXT = b"XML:com.adobe.xmp\0\0\0\0\0"
ICC = b"ICC_PROFILE\0"

# What each holds, or how it is broken. The pixels are those of the plain image.
UPRIGHT = {
    "png eXIf is no EXIF": png(chunk(b"eXIf", b"no exif at all")),
    "png eXIf is empty": png(chunk(b"eXIf", b"")),
    "png eXIf is cut": png(chunk(b"eXIf", EXIF[:11])),
    "png eXIf behind the pixels": png(end=chunk(b"eXIf", b"II")),
    "png exif as a text": png(chunk(b"tEXt", b"exif\0none")),
    "png raw profile": png(chunk(b"tEXt", b"Raw profile type exif\0\n\n\n\nzz")),
    "png zTXt too large": png(chunk(b"zTXt", b"Comment\0\0" + BOMB)),
    "png zTXt too large at the end": png(end=chunk(b"zTXt", b"Comment\0\0" + BOMB)),
    "png iTXt too large": png(chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB)),
    "png ICC too large": png(chunk(b"iCCP", b"icc\0\0" + BOMB)),
    "png ICC cut": png(chunk(b"iCCP", b"icc\0\0" + BOMB[:9])),
    "png checksum of a text": png(chunk(b"tEXt", b"Comment\0x", crc=1)),
    "png checksum of gamma": png(chunk(b"gAMA", b"\0\1\x86\xa0", crc=1)),
    "png checksum of transparency": png(chunk(b"tRNS", bytes(6), crc=1)),
    "png short gamma": png(chunk(b"gAMA", b"\0")),
    "png short chromaticity": png(chunk(b"cHRM", b"\0\0")),
    "png short animation": png(chunk(b"acTL", b"\0\0"), chunk(b"fcTL", b"\0")),
    "png cut in a text at the end": png(end=chunk(b"tEXt", b"k\0" + bytes(99)))[:-40],
    "jpeg EXIF is none": jpeg(segment(0xE1, b"Exif\0\0no exif at all")),
    "jpeg EXIF counts too far": jpeg(segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")),
    "jpeg turned by a text": jpeg(
        segment(0xE1, b"Exif\0\0" + tiff((0x0112, 2, 2, 0x3600)))
    ),
    "jpeg turned by 99": jpeg(segment(0xE1, b"Exif\0\0" + tiff((0x0112, 3, 1, 99)))),
    "jpeg thumbnail outside": jpeg(
        segment(0xE1, b"Exif\0\0" + tiff((0x0201, 4, 1, 9999), (0x0202, 4, 1, 9)))
    ),
    "jpeg JFIF short": jpeg(segment(0xE0, b"JFIF")),
    "jpeg Adobe short": jpeg(segment(0xEE, b"Adobe")),
    "jpeg ICC without a number": jpeg(segment(0xE2, ICC)),
    "jpeg ICC one of three": jpeg(segment(0xE2, ICC + b"\1\3profile")),
    "jpeg Photoshop cut in a size": jpeg(
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0\0\0\0\0\x02ab")
    ),
    "jpeg MPF is none": jpeg(segment(0xE2, b"MPF\0none")),
    "jpeg MPF of two that are not there": jpeg(
        segment(0xE2, b"MPF\0" + tiff((0xB001, 4, 1, 2), (0xB002, 7, 32, 8)))
    ),
    "jpeg comment too long by two": jpeg(segment(0xFE, b"note", 8), b"\0\0"),
    "jpeg comment too short": jpeg(segment(0xFE, b"a longer note", 4)),
}
# These say that they lie on their side, and can be understood.
TURNED = {
    "png XMP in Latin-1": png(chunk(b"iTXt", TEXT + LATIN_XMP)),
    "png XMP beside broken EXIF": png(
        chunk(b"eXIf", b"none"), chunk(b"iTXt", TEXT + LATIN_XMP)
    ),
    "png XMP and ICC too large": png(
        chunk(b"iTXt", TEXT + XMP.encode()), chunk(b"iCCP", b"icc\0\0" + BOMB)
    ),
    "png EXIF and a text too large": png(
        chunk(b"zTXt", b"Comment\0\0" + BOMB), chunk(b"eXIf", EXIF)
    ),
    "png EXIF behind the pixels, gamma broken": png(
        chunk(b"gAMA", b"\0"), end=chunk(b"eXIf", EXIF)
    ),
    "png EXIF with a broken checksum": png(chunk(b"eXIf", EXIF, crc=1)),
    "jpeg maker outside": jpeg(
        segment(0xE1, b"Exif\0\0" + tiff(MAKE_OUTSIDE, ON_ITS_SIDE))
    ),
    "jpeg little-endian": jpeg(
        segment(0xE1, b"Exif\0\0" + tiff(MAKE_OUTSIDE, ON_ITS_SIDE, order="<"))
    ),
    "jpeg cut behind the orientation": jpeg(segment(0xE1, b"Exif\0\0" + EXIF[:-4])),
    "jpeg EXIF and Photoshop cut": jpeg(
        segment(0xE1, b"Exif\0\0" + EXIF),
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed"),
    ),
    "jpeg XMP beside broken EXIF": jpeg(
        segment(0xE1, b"Exif\0\0none"),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + LATIN_XMP),
    ),
}
