"""What an encoded image says besides its pixels; broken, it costs the image nothing.

A viewer shows an image whose EXIF, XMP, colour profile or comment is damaged. Pillow
gives some of them up, so `strip_metadata` takes out of a PNG or JPEG all that the
pixels do without. The orientation is used where any of it can still be read.
"""

import contextlib
import re
import struct
import zlib

from PIL import ExifTags, Image

ORIENTATION = ExifTags.Base.Orientation
PNG_XMP, JPEG_XMP = b"XML:com.adobe.xmp\0", b"http://ns.adobe.com/xap/1.0/\0"
# A segment of a JPEG: marker, length.
SEGMENT = re.compile(rb"\xff(?P<kind>[\xc0-\xfe])(?P<length>..)", re.DOTALL)


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
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    (first,) = struct.unpack_from(f"{order}L", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, first)
    for at in range(first + 2, first + 2 + 12 * count, 12):
        *entry, value = struct.unpack_from(f"{order}HHLH", tiff, at)
        if entry == [ORIENTATION, 3, 1]:  # one unsigned short
            return value
    return None


def strip_metadata(encoded: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Takes the metadata out of a PNG or JPEG file.

    Returns:
      The file with the parts that make its pixels, as they were, and what the others
      hold of `exif` and `xmp`, by Pillow's names. Other files as they are.
    """
    if encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        return _strip_png(encoded)
    if encoded.startswith(b"\xff\xd8"):
        return _strip_jpeg(encoded)
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
