"""Writes a teacher cache (`deit_jax.distillation.teacher_cache`) view by view.

An export, or several at once that share the views between them, leaves beside the
arrays of a view a record, `view-003.json`: {identity, entries_done, top1, sha256}. It
counts the entries that are on disk; a view with its SHA-256 is complete. Views can be
moved between directories with their records. When all are there, `finish` writes the
manifest and removes the records. A finished cache grows in the same way.
"""

import hashlib
import io
import json
import os
import reprlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from deit_jax import files
from deit_jax.distillation import cache_format, teacher_cache
from deit_jax.distillation.teacher import Answers
from deit_jax.errors import InputError

SPARE_BYTES = 2**20  # for the small files beside the logits
RECORD = {
    "identity": str,
    "entries_done": int,
    "top1": (float, list, files.NULL),
    "sha256": (dict, files.NULL),
}


def identity(manifest: Mapping) -> dict:
    """What two exports share whose views belong to one cache.

    Neither the number of views nor the teacher's accuracy, which is measured once.
    Older caches do not say that torch has computed them.
    """
    about = {name: manifest[name] for name in ("source", "logits", "views", "teacher")}
    about = json.loads(json.dumps(about))
    about["views"]["count"] = None
    set_top1(about, None)
    about["teacher"].setdefault("backend", "torch")
    return about


def set_top1(manifest: dict, top1: Sequence[float] | None) -> None:
    """Puts accuracies into a manifest's `teacher`.

    Args:
      top1: Of all teachers together, and of several each one's; None takes them out.
    """
    about = manifest["teacher"]
    each = [about, *about.get("teachers", [])]
    for one, value in zip(each, top1 or [None] * len(each), strict=True):
        one["top1"] = value


def differences(one: Mapping, two: Mapping) -> dict[str, tuple[str, str]]:
    """Where two `identity` differ: {section.field: both values, shortened}."""
    one, two = (flatten_dict(dict(side), sep=".") for side in (one, two))
    return {
        name: (reprlib.repr(one.get(name)), reprlib.repr(two.get(name)))
        for name in one | two
        if one.get(name) != two.get(name)
    }


def entries_per_view(manifest: Mapping) -> int:
    """Rows that an export computes of a view: whole pairs, but for plain images."""
    length = manifest["source"]["length"]
    return length if manifest["views"]["view"] == "plain" else -(-length // 2) * 2


def read_record(directory: str | os.PathLike, view: int, manifest: Mapping) -> dict:
    """How far an export came with a view; empty where it was not begun.

    Raises:
      InputError: The view belongs to another export, or its record is damaged.
    """
    path = _record_path(directory, view)
    fix = f"Delete {path.stem}* there, or give another --out."
    try:
        record = files.read_json(path)
        files.check(record, RECORD)
        if not 0 <= record["entries_done"] <= entries_per_view(manifest):
            raise ValueError(f"{record['entries_done']:,} entries are done")
    except FileNotFoundError:  # maybe since another process has finished the cache
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}). {fix}") from error
    if record["identity"] != _digest(manifest):
        raise InputError(
            f"{path} is of an export of another teacher, data set or setting. {fix}"
        )
    return record


def finished(directory: str | os.PathLike, manifest: Mapping) -> dict | None:
    """The manifest of a finished cache of this export; None where there is none.

    Raises:
      InputError: `directory` holds a finished cache of another export.
    """
    if not (Path(directory) / cache_format.MANIFEST).exists():
        return None
    there = cache_format.read_manifest(Path(directory))
    differing = differences(identity(there), identity(manifest))
    if differing:
        field, (theirs, ours) = next(iter(differing.items()))
        raise InputError(
            f"{directory} already holds a finished teacher cache of another export: "
            f"{field} is {theirs} there and {ours} here. Delete it or give another "
            "--out."
        )
    return there


def checksums(directory: str | os.PathLike, manifest: Mapping) -> list[dict | None]:
    """The SHA-256 of each view's files; None for a view that is not complete."""
    there = finished(directory, manifest)
    known = there["sha256"] if there else []
    return [
        known[view]
        if view < len(known)
        else read_record(directory, view, manifest).get("sha256")
        for view in range(manifest["views"]["count"])
    ]


def measured_top1(
    directory: str | os.PathLike, manifest: Mapping
) -> list[float] | None:
    """The accuracies for `set_top1`, as an earlier start has measured them."""
    if there := finished(directory, manifest):
        about = there["teacher"]
        return [one["top1"] for one in (about, *about.get("teachers", []))]
    top1 = read_record(directory, 0, manifest).get("top1")
    return [top1] if isinstance(top1, float) else top1


def finish(
    directory: str | os.PathLike, manifest: Mapping, examples: Mapping | None
) -> None:
    """Writes the manifest: from here on the directory is a cache of all its views.

    Args:
      manifest: All of it but `format_version`, `sha256` and `examples_sha256`.
      examples: What goes into the examples, or None.

    Raises:
      InputError: A view is not complete.
    """
    directory, count = Path(directory), manifest["views"]["count"]
    sha256 = checksums(directory, manifest)
    if missing := [view for view, found in enumerate(sha256) if found is None]:
        raise InputError(f"{directory} lacks views {missing[:20]} of {count}.")
    examples_sha256 = None
    if examples is not None:
        path = directory / cache_format.examples_file(count)
        content = io.BytesIO()
        np.savez(content, **examples)
        files.replace_file(path, content.getvalue())
        examples_sha256 = files.sha256(path)
    whole = dict(manifest, format_version=cache_format.FORMAT_VERSION, sha256=sha256)
    whole["examples_sha256"] = examples_sha256
    files.replace_file(
        directory / cache_format.MANIFEST, json.dumps(whole, indent=1) + "\n"
    )
    for view in range(count):
        _record_path(directory, view).unlink(missing_ok=True)
    for path in directory.glob("examples-*.npz"):  # of the cache before it grew
        if path.name != cache_format.examples_file(count):
            path.unlink()


class ViewWriter:
    """Writes a view block by block, so that a kill loses at most one block.

    What is not yet counted when a kill comes is computed again, to the same values.

    Args:
      directory: Made when missing.
      view: Its number.
      manifest: As for `finish`.
      top1: The accuracies of `set_top1`, where this start has measured them.

    Attributes:
      entries_done: Entries on disk, also from an earlier start of the export.

    Raises:
      InputError: The directory holds a view of another export or damaged files, cannot
        be written, or has too little space.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        view: int,
        manifest: Mapping,
        top1: Sequence[float] | None = None,
    ):
        self._directory, self._view, self._manifest = Path(directory), view, manifest
        self._encoding = cache_format.encoding_of(manifest)
        length = manifest["source"]["length"]
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            record = read_record(directory, view, manifest)
            self.entries_done = record.get("entries_done", 0)
            self._top1 = record.get("top1") if top1 is None else top1
            if record:
                self._arrays = teacher_cache.open_view(
                    self._directory, view, self._encoding, length, mode="r+"
                )
            else:
                self._arrays = self._begin(length)
                self._save()
        except OSError as error:
            raise InputError(f"cannot write {self._directory}: {error}") from error

    def _begin(self, length: int) -> dict[str, np.ndarray]:
        # A memory map on a full disk ends in SIGBUS, which no handler can explain.
        needed = self._encoding.bytes_per_row * length
        free = shutil.disk_usage(self._directory).free
        if free < needed + SPARE_BYTES:
            raise InputError(
                f"a view takes {needed:,} bytes, and {self._directory} has {free:,} "
                "free."
            )
        arrays = {}
        for name, (kind, shape) in self._encoding.arrays.items():
            path = self._directory / cache_format.view_file(self._view, name)
            if os.path.lexists(path):  # not written through a link
                path.unlink()
            arrays[name] = np.lib.format.open_memmap(
                path, mode="w+", dtype=kind, shape=(length, *shape)
            )
        return arrays

    def append(self, answers: Answers, index: np.ndarray) -> None:
        """Writes the next entries, and puts them on disk.

        Args:
          answers: Of any float, [n, ...].
          index: Their images, int [n].
        """
        encoded = self._encoding.encode(answers)
        for name, array in self._arrays.items():
            array[index] = encoded[name]
            array.flush()
        self.entries_done += len(index)
        self._save()

    def finish(self) -> None:
        """Records the view as complete."""
        if self.entries_done != entries_per_view(self._manifest):
            raise ValueError(f"{self.entries_done=}")
        names = [cache_format.view_file(self._view, name) for name in self._arrays]
        self._save({name: files.sha256(self._directory / name) for name in names})

    def _save(self, sha256: Mapping | None = None) -> None:
        record = {
            "identity": _digest(self._manifest),
            "entries_done": self.entries_done,
            "top1": self._top1,
            "sha256": sha256,
        }
        files.replace_file(
            _record_path(self._directory, self._view), json.dumps(record) + "\n"
        )


def _record_path(directory: str | os.PathLike, view: int) -> Path:
    return Path(directory) / f"view-{view:03d}.json"


def _digest(manifest: Mapping) -> str:
    about = identity(manifest)
    if about["teacher"]["backend"] == "torch":  # as records have always had it
        del about["teacher"]["backend"]
    text = json.dumps(about, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
