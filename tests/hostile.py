"""Files as an attacker or a failing disk leaves them, made of whole ones.

A pristine directory is a dict {relative path: bytes}. `damages(...)` draws what is done
to a copy of it: `Damage`s, each of which hypothesis shrinks and prints by itself.
"""

import ast
import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import zlib
from pathlib import Path

from hypothesis import strategies as st

from deit_jax.errors import InputError

SECONDS = 60  # in which every input is read or refused

# What stands in place of a value in JSON. Raw: text that json.dumps would not write.
DEEP = {depth: "[" * depth + "]" * depth for depth in (40, 900, 50_000)}
RAW = {
    "1e999": "1e999",
    "400 digits": "1" + "0" * 400,
    "5000 digits": "1" + "0" * 5000,
    **{f"{depth} deep": text for depth, text in DEEP.items()},
    "surrogate": '"\\ud800"',
    "nan": "NaN",
}
ODD = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 10, 2**31, 2**32, 2**53, 10**9, 10**17),
    *(-(2**31), 2**63, 2**64, 0.5, 1.0, -0.0, 1e-320, 1e308, "", "0", "same", "plain"),
    *("..", "../../outside", "/etc/passwd", "/dev/zero", "\x00", "\x1b[2J", "a" * 999),
    *([], [0], [[]], {}, {"a": 1}, [None], [1, 2, 3], ["a", "b"]),
]
NPY_TYPES = [
    "|O",
    "<f2",
    ">f2",
    "<f4",
    "<f8",
    "<c16",
    "|b1",
    "|i1",
    "<u2",
    "<u4",
    "|V9",
]
NPY_TYPES += ["|S0", "<U9", "<U999999999", "<M8[s]", "?", "junk", "", None, 3, []]
NPY_TYPES += [[("a", "<f2")], [("a", "|O")], [("a", "<f2", (2**40,))]]
NPY_SHAPES = [(), (0,), (1,), (-1,), (6, 10), (1, 6, 10), (2, 6, 3), (2**31, 2**31)]
NPY_SHAPES += [(2**40,), (2**62, 4), (2**63,), (2**70,), (1.0,), ("a",), None, [6], 6]
NPY_HEADERS = ["", "{", "-" * 5000 + "1", "(" * 5000, "[" * 5000, "{}", "1", "0x", "'"]
NPY_HEADERS += ["__import__('os').abort()", "{'descr': lambda: 0}", "9" * 9000]


NO_LONGER_POSSIBLE = (OSError, LookupError, ValueError, SyntaxError, TypeError)
NO_LONGER_POSSIBLE += (AttributeError, RecursionError, struct.error)
MAKES = ("remove", "become_directory", "become_pipe", "become_device", "become_loop")
MAKES += ("write", "link")


@dataclasses.dataclass(frozen=True)
class Damage:
    """One thing that is done to one file: `kind(path, *arguments)`."""

    name: str
    kind: str
    arguments: tuple = ()

    def apply(self, directory: Path) -> None:
        path = directory / self.name
        # A damage before this one may have left nothing to read, or too much.
        if self.kind not in MAKES and not _is_small_file(path):
            return
        with contextlib.suppress(*NO_LONGER_POSSIBLE):
            globals()[f"_{self.kind}"](path, *self.arguments)


def _is_small_file(path):
    return path.is_file() and path.stat().st_size < 2**24


def _remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _become_directory(path):
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)


def _become_pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _become_device(path):
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def _become_loop(path):
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def _write(path, content):
    if path.exists() and not path.is_file():  # a pipe would wait for a reader
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _take(path, other):
    if _is_small_file(path.parent / other):
        path.write_bytes((path.parent / other).read_bytes())


def _cut(path, share):
    os.truncate(path, int(share * path.stat().st_size))


def _grow(path, more):
    os.truncate(path, path.stat().st_size + more)  # by a hole, which takes no space


def _flip(path, place, bits):
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= bits
    path.write_bytes(content)


def _splice(path, start, length, new):
    content = path.read_bytes()
    start = int(start * len(content))
    path.write_bytes(content[:start] + new + content[start + length :])


def _stamp(path, place, form, number):
    """Puts a whole number over some bytes; the checksums of a PNG are made true."""
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, int(place * (len(content) - 8)), number)
    if content.startswith(b"\x89PNG"):
        at = 8
        while at + 12 <= len(content):
            (length,) = struct.unpack_from(">I", content, at)
            end = at + 8 + length
            if end + 4 > len(content):
                break
            struct.pack_into(">I", content, end, zlib.crc32(content[at + 4 : end]))
            at = end + 4
    path.write_bytes(content)


def _link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def _set(path, place, odd):
    """Replaces a value of JSON, or of each line of JSON, whichever `place` hits."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else None
    number = place % len(lines) if lines else 0
    content = json.loads(lines[number] if lines else path.read_bytes())
    text = dump(replace(content, random.Random(place), odd))
    if lines:
        lines[number] = text
        text = "\n".join(lines) + "\n"
    path.write_text(text)


def _npy(path, **fields):
    """Rewrites the header of a .npy file, whose values stay."""
    content = path.read_bytes()
    length = int.from_bytes(content[8:10], "little")
    header = ast.literal_eval(content[10 : 10 + length].decode())
    text = fields.get("text") or repr(header | fields)
    _npy_header(path, text, content[10 + length :])


def _npy_header(path, text, values):
    size = len(text) + 1
    path.write_bytes(
        b"\x93NUMPY\x02\x00"
        + size.to_bytes(4, "little")
        + f"{text}\n".encode()
        + values
    )


def _npy_set(path, field, value):
    _npy(path, **{field: value})


def _rehash(path):
    """Makes the checksums of a manifest of a teacher cache true again."""
    manifest = json.loads(path.read_bytes())
    for name, about in manifest["arrays"].items():
        with contextlib.suppress(OSError):
            about["sha256"] = _sha256(path.parent / name)
    with contextlib.suppress(OSError):
        manifest["examples_sha256"] = _sha256(path.parent / "examples.npz")
    path.write_text(json.dumps(manifest))


def _sha256(path):
    if not _is_small_file(path):
        raise OSError
    return hashlib.sha256(path.read_bytes()).hexdigest()


def replace(content, generator: random.Random, odd):
    """`content` with one value, at a place that `generator` chooses, made `odd`.

    `odd` is ("value", x), ("raw", a key of RAW), "delete", "rename" or "double".
    """
    places = list(_places(content))
    if not places:
        return _odd(odd, content)
    holder, key = generator.choice(places)
    if odd == ("delete",):
        del holder[key]
    elif odd == ("rename",) and isinstance(holder, dict):
        holder[f"{key}2"] = holder.pop(key)
    elif odd == ("double",) and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = _odd(odd, holder[key])
    return content


def _odd(odd, old):
    if odd[0] == "value":
        return copy.deepcopy(odd[1])
    return f"raw:{odd[1]}" if odd[0] == "raw" else [old]


def _places(node):
    """Every (holder, key or index) below `node`."""
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield node, key
            yield from _places(child)


def dump(content) -> str:
    """JSON, with the raw texts that `replace` has put in."""
    text = json.dumps(content)
    for name, raw in RAW.items():
        text = text.replace(f'"raw:{name}"', raw)
    return text


SHARES = st.floats(0, 1, exclude_max=True)
STAMPS = [
    (form, number)
    for form in ("<I", ">I", "<H", ">H", "<Q", ">Q")
    for number in (0, 1, 2**16 - 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63)
    if number < 256 ** struct.calcsize(form)
]
ODD_VALUES = st.one_of(
    st.sampled_from(ODD).map(lambda value: ("value", value)),
    st.sampled_from(sorted(RAW)).map(lambda name: ("raw", name)),
    st.sampled_from([("delete",), ("rename",), ("double",)]),
)


def _damage(names):
    """One damage to one of `names`."""
    texts = [name for name in names if name.endswith((".json", ".jsonl", "_METADATA"))]
    arrays = [name for name in names if name.endswith(".npy")]

    def build(among, kind, *arguments):
        return st.builds(
            Damage, st.sampled_from(among), st.just(kind), st.tuples(*arguments)
        )

    values = [build(texts, "set", st.integers(0, 2**16), ODD_VALUES)] * bool(texts)
    heads = []
    if arrays:
        heads = [
            build(arrays, "npy_set", st.just("descr"), st.sampled_from(NPY_TYPES)),
            build(arrays, "npy_set", st.just("shape"), st.sampled_from(NPY_SHAPES)),
            build(arrays, "npy_set", st.just("fortran_order"), st.sampled_from(ODD)),
            build(arrays, "npy_set", st.just("text"), st.sampled_from(NPY_HEADERS)),
        ]
    others = [
        build(names, kind)
        for kind in (
            "remove",
            "become_directory",
            "become_pipe",
            "become_device",
            "become_loop",
        )
    ]
    others += [
        build(names, "cut", SHARES),
        build(names, "grow", st.sampled_from([1, 4096, 2**31])),
        build(names, "flip", SHARES, st.integers(1, 255)),
        st.builds(
            lambda name, place, stamp: Damage(name, "stamp", (place, *stamp)),
            st.sampled_from(names),
            SHARES,
            st.sampled_from(STAMPS),
        ),
        build(names, "splice", SHARES, st.integers(0, 64), st.binary(max_size=64)),
        build(names, "write", st.binary(max_size=64)),
        build(names, "take", st.sampled_from([Path(name).name for name in names])),
    ]
    return st.one_of(*values * 3, *heads, st.one_of(others), st.one_of(others))


def damages(names, manifests=()):
    """One to three damages, and maybe checksums in `manifests` that fit to them."""
    return _damages(tuple(sorted(names)), tuple(manifests))


@functools.cache  # it takes longer to build a strategy than to draw from it
def _damages(names, manifests):
    done = st.lists(_damage(names), min_size=1, max_size=3)
    rehashed = [Damage(name, "rehash") for name in manifests]
    return st.builds(
        lambda one, more: one + more, done, st.sampled_from([[], rehashed])
    )


def snapshot(directory: Path) -> dict[str, bytes]:
    """The files in a directory, by relative path."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def copy_of(files: dict[str, bytes], done=()):
    """A directory with `files`, damaged; it lies in one that has nothing else."""
    with tempfile.TemporaryDirectory() as root:
        directory = Path(root, "given")
        for name, content in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for one in done:
            one.apply(directory)
        yield directory


# What a reader of a damaged file may do: give something, or raise InputError.


class Hang(BaseException):
    """No `except Exception` takes it for a damaged file."""


_seen = None  # the events of a `refused_or_read`, None outside of one
# Of every program that a reader may start, and of every object a pickle may reach.
FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.")
FORBIDDEN += ("socket.connect", "pickle.find_class")
# Where a first use imports modules from, and what libraries ask the system.
ELSEWHERE = (sys.prefix, sys.base_prefix, os.path.dirname(os.path.dirname(__file__)))
ELSEWHERE = tuple(map(os.path.realpath, ELSEWHERE))
ELSEWHERE += ("/proc/", "/sys/", "/etc/localtime", "/usr/share/", "/dev/null")


def _audit(event, arguments):
    if _seen is not None and (
        event in ("open", "os.listdir", "os.scandir") or event.startswith(FORBIDDEN)
    ):
        _seen.append((event, arguments[0] if arguments else None))


sys.addaudithook(_audit)


def refused_or_read(read, directory):
    """What `read(directory)` gives; None where it raises an InputError.

    Any other exception passes through. Fails where the reading takes long, starts a
    program, lets a pickle reach an object, or opens a file outside of `directory`.
    """
    global _seen

    def hang(*_):
        raise Hang(f"nothing came in {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    _seen = events = []
    try:
        return read(directory)
    except InputError as error:
        assert type(error) is InputError
        assert len(str(error)) < 20_000
        return None
    finally:
        _seen = None
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        real = os.path.realpath(directory)
        for event, path in events:
            assert not event.startswith(FORBIDDEN), (event, path)
            if isinstance(path, str | bytes | os.PathLike):
                there = os.path.realpath(os.fsdecode(path))
                assert there.startswith((real, *ELSEWHERE)), (event, path)
