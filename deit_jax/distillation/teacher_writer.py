"""Writing a teacher cache (`deit_jax.distillation.teacher_logits`) block by block."""

import json
import math
import os
import reprlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from deit_jax import json_files
from deit_jax.distillation import teacher_logits
from deit_jax.errors import InputError
from deit_jax.files import replace_file

SPARE_BYTES = 2**20  # for the small files beside the logits


def check_unused(directory: str | os.PathLike) -> None:
    """Raises InputError where `directory` holds a finished cache."""
    if (Path(directory) / teacher_logits.MANIFEST).exists():
        raise InputError(
            f"{directory} already holds a finished teacher cache. Delete it or give "
            "another --out."
        )


def identity(manifest: Mapping) -> dict:
    """What is known of an export before it starts: two of one identity give one cache.

    The teacher's accuracy is not: it is measured on the way, and follows from the rest.
    """
    about = {"format_version": teacher_logits.FORMAT_VERSION} | dict(manifest)
    about["teacher"] = dict(about["teacher"], top1=None)
    names = ("format_version", "source", "views", "logits", "teacher", "shard")
    return json.loads(json.dumps({name: about.get(name) for name in names}))


def differences(one: Mapping, two: Mapping) -> dict[str, tuple[str, str]]:
    """Where two `identity` differ: {section.field: both values, shortened}."""
    one, two = (flatten_dict(dict(side), sep=".") for side in (one, two))
    return {
        name: (reprlib.repr(one.get(name)), reprlib.repr(two.get(name)))
        for name in one | two
        if one.get(name) != two.get(name)
    }


def find_unfinished(directory, manifest: Mapping) -> tuple[int, float | None]:
    """How far an earlier start of the export came: entries done, and measured top-1.

    Args:
      directory: Of the cache; nothing in it is changed.
      manifest: As the `Writer` takes it; its top-1 may be None.

    Raises:
      InputError: The directory holds a finished cache, another unfinished export or
        damaged files.
    """
    check_unused(directory)
    path = Path(directory) / teacher_logits.PROGRESS
    if not path.exists():
        return 0, None
    try:
        progress = json_files.read(path)
        teacher = {"top1": (float, json_files.NULL)}
        fields = {"entries_done": int, "manifest": {"teacher": teacher}}
        json_files.check(progress, fields)
        done, begun = progress["entries_done"], progress["manifest"]
        top1, same = begun["teacher"]["top1"], identity(begun) == identity(manifest)
        if not 0 <= done <= _total(manifest):
            raise ValueError(f"{done:,} of {_total(manifest):,} entries are done")
    except (OSError, ValueError) as error:
        raise _damaged(directory, error) from error
    if not same:
        raise InputError(
            f"{directory} holds an unfinished export of another teacher, data set or "
            "setting. Delete it or give another --out."
        )
    return done, top1


def _total(manifest: Mapping) -> int:
    """Rows that this export, or part of one, computes."""
    if shard := manifest.get("shard"):
        return shard["stop"] - shard["start"]
    return teacher_logits.entries(manifest)


def _damaged(directory, error: Exception) -> InputError:
    return InputError(
        f"{directory} holds a damaged unfinished export ({type(error).__name__}: "
        f"{error}). Delete it or give another --out."
    )


class Writer:
    """Writes a cache block by block, so that a kill loses at most one block.

    Entries are written in the order of `views.ExportOrder`; what is not yet counted
    when a kill comes is computed again, to the same values.

    Args:
      directory: Made when missing. A finished cache in it is refused.
      manifest: All of the manifest but `format_version`, `arrays`, `examples_sha256`.
      examples: What goes into examples.npz, or None.

    Attributes:
      entries_done: Already on disk, from an earlier start of the same export.

    Raises:
      InputError: The directory holds a finished cache, another unfinished export or
        damaged files, cannot be written, or has too little space.
    """

    def __init__(self, directory, manifest: Mapping, examples: Mapping | None = None):
        self.directory = Path(directory)
        self._manifest = dict(manifest, format_version=teacher_logits.FORMAT_VERSION)
        self._examples = examples
        self._encoding = teacher_logits.encoding_of(manifest)
        self._total = _total(manifest)
        self._leading: tuple[int, ...] = (
            (self._total,)
            if manifest.get("shard")
            else (manifest["views"]["count"], manifest["source"]["length"])
        )
        self.entries_done, _ = find_unfinished(self.directory, self._manifest)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if (self.directory / teacher_logits.PROGRESS).exists():
                self._maps = self._resume()
            else:
                self._maps = self._begin()
            self._save_progress()
        except OSError as error:
            raise InputError(f"cannot write {self.directory}: {error}") from error

    def _begin(self) -> dict[str, np.ndarray]:
        # A memory map on a full disk ends in SIGBUS, which no handler can explain.
        needed = self._encoding.bytes_per_row * math.prod(self._leading)
        free = shutil.disk_usage(self.directory).free
        if free < needed + SPARE_BYTES:
            raise InputError(
                f"the cache takes {needed:,} bytes, and {self.directory} has "
                f"{free:,} free."
            )
        # Not written through what lies there: it may be a link, or a device.
        for name in self._encoding.arrays:
            if os.path.lexists(self.directory / name):
                (self.directory / name).unlink()
        return {
            name: np.lib.format.open_memmap(
                self.directory / name,
                mode="w+",
                dtype=kind,
                shape=(*self._leading, *shape),
            )
            for name, (kind, shape) in self._encoding.arrays.items()
        }

    def _resume(self) -> dict[str, np.ndarray]:
        try:
            return teacher_logits.open_arrays(
                self.directory, self._encoding, self._leading, "", mode="r+"
            )
        except InputError as error:
            raise _damaged(self.directory, error) from error

    def append(self, logits: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Writes the next entries, and puts them on disk.

        Args:
          logits: Any float [n, C].
          rows: Where they belong: `view * N + index`, int [n]; None for the rows that
            follow the last ones.
        """
        self.append_encoded(self._encoding.encode(logits), rows)

    def append_encoded(
        self, encoded: Mapping[str, np.ndarray], rows: np.ndarray | None = None
    ) -> None:
        """`append` of what `Encoding.encode` gives."""
        count = len(next(iter(encoded.values())))
        if rows is None:
            rows = np.arange(self.entries_done, self.entries_done + count)
        for name, array in self._maps.items():
            flat = array.reshape(-1, array.shape[-1])
            flat[rows] = encoded[name]
            array.flush()
        self.entries_done += count
        self._save_progress()

    def finish(self) -> None:
        """Writes the manifest: from here on the directory is a cache."""
        if self.entries_done != self._total:
            raise ValueError(f"{self.entries_done=} of {self._total}")
        examples_sha256 = None
        if self._examples is not None:
            path = self.directory / teacher_logits.EXAMPLES
            partial = path.with_name("partial-" + teacher_logits.EXAMPLES)
            with open(partial, "wb") as file:
                np.savez(file, **self._examples)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            examples_sha256 = teacher_logits.sha256(path)
        described = teacher_logits.describe_arrays(self._encoding, self._leading)
        for name in described:
            described[name]["sha256"] = teacher_logits.sha256(self.directory / name)
        manifest = self._manifest | {
            "arrays": described,
            "examples_sha256": examples_sha256,
        }
        replace_file(
            self.directory / teacher_logits.MANIFEST,
            json.dumps(manifest, indent=1) + "\n",
        )
        (self.directory / teacher_logits.PROGRESS).unlink(missing_ok=True)

    def _save_progress(self) -> None:
        progress = {"entries_done": self.entries_done, "manifest": self._manifest}
        replace_file(self.directory / teacher_logits.PROGRESS, json.dumps(progress))
