"""What an encoded image says besides its pixels; broken, it costs the image nothing.

A viewer shows an image whose EXIF, XMP, colour profile or comment is damaged. Pillow
gives some of them up, so `strip_metadata` takes out all that the pixels do without.
The orientation is used where any of it can still be read.
"""

import contextlib
import re
import struct
import zlib
from collections.abc import Iterator

from PIL import ExifTags, Image

ORIENTATION = ExifTags.Base.Orientation
PNG_XMP, JPEG_XMP = b"XML:com.adobe.xmp\0", b"http://ns.adobe.com/xap/1.0/\0"
# A segment of a JPEG: marker, length.
SEGMENT = re.compile(rb"\xff(?P<kind>[\xc0-\xfe])(?P<length>..)", re.DOTALL)
TIFF_SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # by type, others 1


def orientation(image: Image.Image) -> object:
    """The EXIF orientation, 1 to 8 where it makes sense; None where nothing says it."""
    with contextlib.suppress(Exception):  # broken tags raise anything
        tags = image.getexif()
        if ORIENTATION in tags:
            return tags[ORIENTATION]
    # Pillow stops at the first entry that is broken.
    with contextlib.suppress(Exception):
        if (value := _read_exif(image.info["exif"])) is not None:
            return value
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    xmp = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp
    found = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)
    return int(found[1]) if found else None


def _read_exif(exif: bytes) -> int | None:
    """The orientation in the first directory, past entries that are broken."""
    tiff = exif.removeprefix(b"Exif\0\0")
    for at, order in _entries(tiff):
        *entry, value = struct.unpack_from(f"{order}HHLH", tiff, at)
        if entry == [ORIENTATION, 3, 1]:  # one unsigned short
            return value
    return None


def _entries(tiff: bytes) -> Iterator[tuple[int, str]]:
    """Where each entry of the first directory lies, and the order of bytes."""
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    (first,) = struct.unpack_from(f"{order}L", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, first)
    for number in range(count):
        yield first + 2 + 12 * number, order


def strip_metadata(encoded: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Takes the metadata out of a PNG, JPEG, WebP or TIFF file.

    Returns:
      The file with the parts that make its pixels, as they were, and what the others
      hold of `exif` and `xmp`, by Pillow's names. Other files as they are.
    """
    if encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        return _strip_png(encoded)
    if encoded.startswith(b"\xff\xd8"):
        return _strip_jpeg(encoded)
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return _strip_webp(encoded)
    if encoded[:4] in (b"II*\0", b"MM\0*"):
        return _strip_tiff(encoded), {}
    return encoded, {}


def _strip_png(encoded: bytes) -> tuple[bytes, dict[str, bytes]]:
    kept, found, at = [encoded[:8]], {}, 8
    while at + 12 <= len(encoded):
        length, kind = struct.unpack_from(">L4s", encoded, at)
        end = at + 12 + length
        body = encoded[at + 8 : end - 4]
        whole = encoded[end - 4 : end] == zlib.crc32(kind + body).to_bytes(4, "big")
        # A capital starts what cannot be done without. Transparency can, if damaged.
        if kind[:1].isupper() or (kind == b"tRNS" and whole):
            kept.append(encoded[at:end])
        elif kind == b"eXIf":
            found["exif"] = body
        elif kind == b"iTXt" and body.startswith(PNG_XMP):
            found["xmp"] = body
        at = end
    return b"".join(kept), found


def _strip_jpeg(encoded: bytes) -> tuple[bytes, dict[str, bytes]]:
    kept, found, at = [encoded[:2]], {}, 2
    while segment := SEGMENT.search(encoded, at):  # past bytes that are no segment
        kind, start = segment["kind"], segment.start("kind") - 1
        at = start + 2 + int.from_bytes(segment["length"], "big")
        body = encoded[start + 4 : at]
        if kind == b"\xda":  # the scan, and all that follows
            kept.append(encoded[start:])
            break
        if _makes_pixels(kind, body):
            kept.append(encoded[start:at])
        elif body.startswith(b"Exif\0\0"):
            found.setdefault("exif", body)
        elif body.startswith(JPEG_XMP):
            found["xmp"] = body
    return b"".join(kept), found


def _makes_pixels(kind: bytes, body: bytes) -> bool:
    """Whether a JPEG's segment is no metadata, or says how the colours are coded."""
    if kind == b"\xe0":
        return body.startswith(b"JFIF\0") and len(body) >= 14
    if kind == b"\xee":
        return body.startswith(b"Adobe") and len(body) >= 12
    return not (b"\xe0" <= kind <= b"\xef" or kind == b"\xfe")  # APPn, a comment


def _strip_webp(encoded: bytes) -> tuple[bytes, dict[str, bytes]]:
    kept, found, at = [b"WEBP"], {}, 12
    while at + 8 <= len(encoded):
        kind, length = struct.unpack_from("<4sL", encoded, at)
        end = at + 8 + length + length % 2
        if kind in (b"EXIF", b"XMP "):
            found[kind.decode().strip().lower()] = encoded[at + 8 : at + 8 + length]
        elif kind == b"VP8X":  # flags: of what follows, transparency and animation
            flags = bytes([encoded[at + 8] & 0x12]) if length else b""
            kept.append(encoded[at : at + 8] + flags + encoded[at + 9 : end])
        elif kind in (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"):
            kept.append(encoded[at:end])
        at = end
    body = b"".join(kept)
    return b"RIFF" + struct.pack("<L", len(body)) + body, found


def _strip_tiff(encoded: bytes) -> bytes:
    """Gives entries that point outside the file a type that readers pass over."""
    tiff = bytearray(encoded)
    with contextlib.suppress(struct.error, KeyError):
        for at, order in _entries(encoded):
            _, kind, count, where = struct.unpack_from(f"{order}HHLL", tiff, at)
            size = count * TIFF_SIZES.get(kind, 1)
            if size > 4 and where + size > len(tiff):
                tiff[at + 2 : at + 4] = b"\0\0"
    return bytes(tiff)
