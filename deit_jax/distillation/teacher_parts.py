"""A teacher cache in parts, which several processes write and one command joins.

    <cache>/shard-00-of-04/     the arrays of a cache, [entries, ...], and manifest.json

The manifest of a part is that of the whole cache with one section more: `shard`
{number, count, start, stop, batch_size}. Its entries are `start .. stop - 1` of the
export, in the order of `views.ExportOrder`. A teacher is measured once, for part 0,
which also keeps the examples; the `top1` of the others is null.
"""

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deit_jax import json_files
from deit_jax.data.plan import ExportOrder
from deit_jax.distillation import teacher_logits, teacher_writer
from deit_jax.distillation.teacher_logits import EXAMPLES, MANIFEST, PARTS
from deit_jax.errors import InputError

CHUNK_BYTES = 2**25  # of logits in memory while joining
# What a manifest says about its own files.
OWN = ("shard", "format_version", "arrays", "examples_sha256")
SHOWN = 20  # parts named in a message
MOST = 10_000  # parts; what the name of a folder claims beyond is not believed
FIELDS = {
    "shard": dict.fromkeys(("number", "count", "start", "stop", "batch_size"), int)
}


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `number` (from 0) of `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        return f"shard-{self.number:02d}-of-{self.count:02d}"

    def describe(self, entries: int, batch_size: int) -> dict:
        """The `shard` section of the manifest.

        A part is whole batches of the undivided export (its last may be shorter): the
        composition of a batch can change the last bits of what a network computes.

        Args:
          entries: Of the undivided export (`teacher_logits.entries`).
          batch_size: Of its forward passes.

        Raises:
          InputError: There are fewer batches than parts.
        """
        batches = -(-entries // batch_size)
        if batches < self.count:
            raise InputError(
                f"--shard={self}: {entries:,} images are only {batches:,} batches of "
                f"{batch_size}. Take fewer parts or a smaller --batch_size."
            )
        start, stop = (
            min(batches * n // self.count * batch_size, entries)
            for n in (self.number, self.number + 1)
        )
        return {
            "number": self.number,
            "count": self.count,
            "start": start,
            "stop": stop,
            "batch_size": batch_size,
        }


def parse_shard(text: str) -> Shard:
    """`0/4` is the first of four parts."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match:
        number, count = map(int, match.groups())
        if number < count <= MOST:
            return Shard(number, count)
    raise InputError(
        f"--shard={text}: expected i/n with 0 <= i < n <= {MOST:,}, e.g. 0/4, 1/4, 2/4 "
        "and 3/4 for four processes."
    )


def is_written(directory: Path, manifest: Mapping) -> bool:
    """Whether the part that belongs into `directory` is there to its last row.

    Raises:
      InputError: It holds a part of another export.
    """
    if not (directory / MANIFEST).exists():
        return False
    if _identity(directory) != teacher_writer.identity(manifest):
        raise InputError(
            f"{directory} holds a part of another teacher, data set or setting. Delete "
            "it or give another --out."
        )
    return True


def join(directory, *, command: str = "python -m teacher.export_logits ...") -> None:
    """Makes of the parts in `directory` the cache that an undivided export leaves.

    The parts are removed when it is on disk. It can be killed at any moment and
    started again. Memory holds `CHUNK_BYTES` of logits.

    Args:
      directory: Of the cache.
      command: What exports a part but for its `--shard`, for the messages.

    Raises:
      InputError: A part is missing, unfinished, damaged or of another export (nothing
        is written then), the disk is full, or `directory` holds another cache.
    """
    directory = Path(directory)
    parts = sorted(directory.glob(PARTS))
    if not (directory / MANIFEST).exists():
        _copy(_check(directory, parts, command), directory)
    elif not (parts and all(_is_leftover(part, directory) for part in parts)):
        teacher_writer.check_unused(directory)
    for part in parts:
        # First: without them the rest is known to have been joined (`_is_leftover`).
        for array in part.glob("*.npy"):
            array.unlink()
        shutil.rmtree(part)
    (directory / teacher_logits.PROGRESS).unlink(missing_ok=True)  # killed before it


def _check(directory: Path, parts: list[Path], command: str) -> list[dict]:
    """The parts' manifests in their order, where they make one cache."""
    if not parts:
        raise InputError(
            f"{directory} holds no parts to join. Export them with --shard=0/4, "
            "--shard=1/4 and so on, for as many processes as you like."
        )
    shards = _division(directory, parts)
    states = {}
    for shard in shards:
        if not (directory / shard.name / MANIFEST).exists():
            begun = (directory / shard.name / teacher_logits.PROGRESS).exists()
            states[shard] = "unfinished" if begun else "missing"
    if states:
        listed = [f"{shard.name} ({state})" for shard, state in states.items()]
        commands = [f"  {command} --shard={shard}" for shard in states]
        more = [f"  ... {len(states) - SHOWN} more"]
        more *= len(states) > SHOWN
        raise InputError(
            f"{len(states)} of {len(shards)} parts are not there to their end: "
            f"{', '.join(listed[:SHOWN])}. Export them with\n"
            + "\n".join(commands[:SHOWN] + more)
        )

    manifests = []
    for shard in shards:
        part = directory / shard.name
        mend = f"Delete {part} and export it again:\n  {command} --shard={shard}"
        manifests.append(_read_part(part, shard, mend))
        _check_same(manifests[0], manifests[-1], directory, shards[0], shard)
    return manifests


def _division(directory: Path, parts: list[Path]) -> list[Shard]:
    """All shards of the division that the parts belong to, also the missing ones."""
    counts = {part.name.rpartition("-")[2] for part in parts}
    first = min(counts)
    if len(counts) == 1 and re.fullmatch(r"\d{1,9}", first) and int(first) <= MOST:
        shards = [Shard(number, int(first)) for number in range(int(first))]
        if {part.name for part in parts} <= {shard.name for shard in shards}:
            return shards
    raise InputError(
        f"the parts in {directory} are not those of one division: "
        f"{', '.join(part.name for part in parts[:SHOWN])}. Remove the others."
    )


def _read_part(part: Path, shard: Shard, mend: str) -> dict:
    try:
        manifest = json_files.read(part / MANIFEST)
        json_files.check(manifest, FIELDS)
        encoding = teacher_logits.check_fields(manifest)
        if manifest["shard"]["batch_size"] < 1:
            raise ValueError(f"batches of {manifest['shard']['batch_size']}")
        total = teacher_logits.entries(manifest)
        batch_size = manifest["shard"]["batch_size"]
        if manifest["shard"] != shard.describe(total, batch_size):
            raise ValueError(f"it says {manifest['shard']} of {total} entries")
        size = manifest["shard"]["stop"] - manifest["shard"]["start"]
        checksums = {
            name: manifest["arrays"][name]["sha256"] for name in encoding.arrays
        }
        if manifest["format_version"] != teacher_logits.FORMAT_VERSION:
            raise ValueError(f"format {manifest['format_version']}")
        if shard.number == 0:
            if manifest["teacher"]["top1"] is None:
                raise ValueError("no top-1")
            if manifest["views"]["view"] != "plain":
                if manifest["examples_sha256"] is None:
                    raise ValueError("no examples")
                checksums[EXAMPLES] = manifest["examples_sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{part / MANIFEST} is not a manifest of a part ({type(error).__name__}: "
            f"{error}). {mend}"
        ) from error
    teacher_logits.open_arrays(part, encoding, (size,), mend)
    for name, checksum in checksums.items():
        path = part / name
        if not path.is_file() or teacher_logits.sha256(path) != checksum:
            raise InputError(f"{path} is damaged. {mend}")
    return manifest


def _order(manifest: dict) -> ExportOrder:
    """Which row of the cache each entry is."""
    length, about = manifest["source"]["length"], manifest["views"]
    if about["view"] == "plain":
        return ExportOrder(length, plain=True)
    return ExportOrder(length, about["count"], about["augment_seed"], about["repeats"])


def _check_same(
    first: dict, other: dict, directory: Path, first_shard: Shard, shard: Shard
) -> None:
    one, two = teacher_writer.identity(first), teacher_writer.identity(other)
    for side in (one, two):
        side["shard"] = {"batch_size": side["shard"]["batch_size"]}
    differing = teacher_writer.differences(one, two)
    if differing:
        field, (mine, theirs) = next(iter(differing.items()))
        raise InputError(
            f"{directory} holds parts of different exports: {field} is {mine} in "
            f"{first_shard.name} and {theirs} in {shard.name}. Delete the wrong ones, "
            "and export all with the same teacher, data set and flags."
        )


def _copy(manifests: list[dict], directory: Path) -> None:
    manifest = {key: value for key, value in manifests[0].items() if key not in OWN}
    encoding, order = teacher_logits.encoding_of(manifest), _order(manifest)
    length = manifest["source"]["length"]
    parts = [Shard(m["shard"]["number"], m["shard"]["count"]).name for m in manifests]
    examples = None
    if manifests[0]["examples_sha256"] is not None:
        examples = teacher_logits.read_examples(
            directory / parts[0] / EXAMPLES,
            manifests[0]["examples_sha256"],
            "Delete this part and export it again.",
        )
    writer = teacher_writer.Writer(directory, manifest, examples)
    chunk = max(CHUNK_BYTES // encoding.bytes_per_row, 1)
    for part, shard in zip(parts, (m["shard"] for m in manifests), strict=True):
        start, stop = shard["start"], shard["stop"]
        arrays = teacher_logits.open_arrays(
            directory / part, encoding, (stop - start,), ""
        )
        while writer.entries_done < stop:
            first = writer.entries_done
            last = min(first + chunk, stop)
            index, view = order.entries(first, last)
            writer.append_encoded(
                {name: a[first - start : last - start] for name, a in arrays.items()},
                view.astype(np.int64) * length + index,
            )
    writer.finish()


def _is_leftover(part: Path, directory: Path) -> bool:
    """Whether a part next to a finished cache has been joined into it."""
    if not any(part.glob("*.npy")):
        return True
    if not (part / MANIFEST).exists():
        return False
    return _identity(part) | {"shard": None} == _identity(directory)


def _identity(directory: Path) -> dict:
    """Of the manifest there; empty if it is damaged."""
    try:
        manifest = json_files.read(directory / MANIFEST)
        json_files.check(manifest, {"teacher": {}})
    except (OSError, ValueError):
        return {}
    return teacher_writer.identity(manifest)
