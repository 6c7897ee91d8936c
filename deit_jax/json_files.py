"""JSON files that anyone may have written: of bounded size, and as they are expected.

Python's own reader takes a file of any size from a pipe too, nested to the end of the
stack, with whole numbers of thousands of digits and with strings that no file or
terminal takes; what it gives can be of any type at any place.
"""

import json
import os
import re
import stat
from pathlib import Path

MAX_BYTES = 64 * 2**20  # a model.json: a million class names of 60 letters
MAX_DEPTH = 32
MAX_DIGITS = 18  # of a whole number, which fits into 64 bits
NULL = type(None)


def read(path: str | os.PathLike):
    """The content of a JSON file.

    Raises:
      OSError: It cannot be opened.
      ValueError: It is no regular file, has more than `MAX_BYTES`, or is refused by
        `parse`.
    """
    return parse(read_bytes(path))


def read_bytes(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file.

    Raises:
      OSError: It cannot be opened.
      ValueError: It is no regular file (a pipe would never end), or has more than
        `max_bytes`.
    """
    check_size(path, max_bytes)
    return Path(path).read_bytes()


def check_size(path: str | os.PathLike, max_bytes: int) -> None:
    """Raises what `read_bytes` does, without reading."""
    about = Path(path).stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is no regular file")
    if about.st_size > max_bytes:
        raise ValueError(f"it has {about.st_size:,} bytes, more than {max_bytes:,}")


def parse(encoded: bytes):
    """The content of JSON in UTF-8.

    Raises:
      ValueError: It is no JSON, is nested deeper than `MAX_DEPTH`, or holds a whole
        number of more than `MAX_DIGITS` or half of a surrogate pair.
    """
    text = encoded.decode("utf-8-sig")
    try:
        content = json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
    if level:
        raise ValueError("it is nested too deeply")
    if re.search(r"\\u[dD][89a-fA-F]", text):
        json.dumps(content, ensure_ascii=False).encode()  # refuses half of a pair
    return content


def check(value, kind, name: str = "it") -> None:
    """Refuses what is not of a kind.

    Args:
      kind: A type or a tuple of types, where `float` takes whole numbers too and a
        bool is no number; `[kind]`, a list; `{field: kind}`, an object with these
        fields and maybe others; `{...: kind}`, an object all of whose fields are of
        one kind.
      name: Of the value, for the message.

    Raises:
      ValueError: Names the place.
    """
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{name} is no object")
        fields = dict.fromkeys(value, kind[...]) if ... in kind else kind
        for field, expected in fields.items():
            if field not in value:
                raise ValueError(f"{name} has no {field}")
            check(value[field], expected, f"{name}.{field}".removeprefix("it."))
    elif isinstance(kind, list):
        if not isinstance(value, list):
            raise ValueError(f"{name} is no list")
        for number, item in enumerate(value):
            check(item, kind[0], f"{name}[{number}]")
    else:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if type(value) not in kinds and not (type(value) is int and float in kinds):
            expected = " or ".join("null" if k is NULL else k.__name__ for k in kinds)
            raise ValueError(f"{name} is {type(value).__name__}, expected {expected}")


def _whole_number(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"it holds a whole number of {len(digits):,} digits")
    return int(digits)


def _children(node):
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()
