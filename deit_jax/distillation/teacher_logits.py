"""The cache of teacher logits: a directory that NumPy alone can read.

    manifest.json   what the logits belong to; written last, so that a directory
                    without it is not a cache
    logits.npy      float16 [views, N, C], opened memory-mapped

The manifest:

    format_version  1
    shape           [views, N, C]
    logits_sha256   of logits.npy
    source          {name, split, length, num_classes, class_names, fingerprint}
    views           {count, view, mixing}: `view` is what the teacher saw, `plain`
                    (the image without augmentation, one view); `mixing` is `none`
    teacher         {arch, stem, weights_sha256, image_size, mean, std, precision,
                    top1, top1_split}

A cache is written in chunks (`Writer`) and can be resumed after a kill: the rows that
`progress.json` names are on disk before it says so.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deit_jax.errors import InputError
from deit_jax.files import replace_file

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LOGITS = "logits.npy"
PROGRESS = "progress.json"
# Hashing runs at about 1 GB/s: a start-up should not wait longer than a blink for it.
CHECKSUM_LIMIT_BYTES = 256 * 2**20
FOLDER = "folder:"  # what the name of a folder of pictures starts with
SPARE_BYTES = 2**20  # for the small files beside the logits
EXPORT_COMMANDS = """\
  python -m teacher.finetune --dataset={name} --arch=resnet50 --out={teacher}
  python -m teacher.export_logits --config={config} --teacher={teacher} --out={out}"""


def export_commands(
    name: str, logits_dir: str, config: str = "configs/deit.py:<data set>"
) -> str:
    """The two commands that make a cache for the data set `name`."""
    return EXPORT_COMMANDS.format(
        name=name, config=config, teacher=f"runs/teacher-{name}", out=logits_dir
    )


@dataclasses.dataclass(frozen=True, eq=False)
class TeacherLogits:
    """An opened cache.

    Attributes:
      directory: Where it lies.
      manifest: The parsed manifest.
      logits: float16 [views, N, C], memory-mapped.
    """

    directory: Path
    manifest: Mapping
    logits: np.ndarray

    @property
    def num_views(self) -> int:
        return self.logits.shape[0]

    def batch(self, views: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Logits float16 [B, C] of image `indices[i]` (int [B]) in `views[i]`.

        Views beyond the cache wrap around: a plain cache has one view for all.
        """
        return self.logits[views % self.num_views, indices]

    def check(self, source, *, view: str, config: str = "...") -> None:
        """Refuses a cache that does not belong to `source`.

        Args:
          source: The training source (`deit_jax.data.sources`).
          view: What the run expects the teacher to have seen (`plain`).
          config: The `--config` of the run, for the message.

        Raises:
          InputError: Data set, length, classes, images or view differ.
        """
        mine, theirs = describe_source(source), dict(self.manifest["source"])
        if all(side["name"].startswith(FOLDER) for side in (mine, theirs)):
            theirs["name"] = mine["name"]  # a copied folder keeps its fingerprint
        for field in ("name", "split", "length", "num_classes"):
            if mine[field] != theirs[field]:
                raise InputError(
                    f"the teacher cache {self.directory} was made for {field}="
                    f"{theirs[field]!r}, this run has {field}={mine[field]!r}."
                    + self._mend(source.name, config)
                )
        pairs = zip(mine["class_names"], theirs["class_names"], strict=True)
        for number, (my_name, their_name) in enumerate(pairs):
            if my_name != their_name:
                raise InputError(
                    f"class {number} of the teacher cache {self.directory} is "
                    f"{their_name!r}, that of {source.name} is {my_name!r}."
                    + self._mend(source.name, config)
                )
        if mine["fingerprint"] != theirs["fingerprint"]:
            raise InputError(
                f"the teacher cache {self.directory} was made from other images or "
                f"labels of {source.name} (fingerprint {theirs['fingerprint'][:12]}) "
                f"than this run reads ({mine['fingerprint'][:12]})."
                + self._mend(source.name, config)
            )
        seen = self.manifest["views"]["view"]
        if seen != view:
            raise InputError(
                f"the teacher of {self.directory} saw {seen!r} images, and "
                f"distillation.view={view!r} is asked for. Set "
                f"--config.distillation.view={seen}, or make another cache."
            )

    def _mend(self, name: str, config: str) -> str:
        return (
            " Point --config.distillation.logits_dir at the right cache, or make one:\n"
            + export_commands(name, str(self.directory) + "-new", config)
        )


def describe_source(source) -> dict:
    """The manifest's `source` section."""
    return {
        "name": source.name,
        "split": source.split,
        "length": len(source),
        "num_classes": source.num_classes,
        "class_names": list(source.class_names),
        "fingerprint": source.fingerprint,
    }


def open_cache(directory: str | os.PathLike) -> TeacherLogits:
    """Opens a finished cache and checks that its files are whole.

    Raises:
      InputError: There is no cache, it is unfinished, truncated or altered.
    """
    directory = Path(directory)
    if not (directory / MANIFEST).is_file():
        state = "an unfinished export" if (directory / PROGRESS).exists() else "none"
        raise InputError(f"no teacher cache at {directory} (found: {state}).")
    again = "Export it again with python -m teacher.export_logits."
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        version = manifest["format_version"]
        if version != FORMAT_VERSION:
            raise InputError(
                f"{directory} has cache format {version}, this program reads "
                f"{FORMAT_VERSION}. {again}"
            )
        shape = tuple(int(n) for n in manifest["shape"])
        checksum = manifest["logits_sha256"]
        source, views = manifest["source"], manifest["views"]
        expected = (views["count"], source["length"], source["num_classes"])
        if shape != expected or len(source["class_names"]) != shape[2]:
            raise ValueError(f"shape {shape}, but views, images, classes {expected}")
        _ = source["name"], source["split"], source["fingerprint"], views["view"]
        _ = manifest["teacher"]["top1"]
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{directory / MANIFEST} is not a manifest of a teacher cache "
            f"({type(error).__name__}: {error}). {again}"
        ) from error
    path = directory / LOGITS
    try:
        logits = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is missing, truncated or no .npy file ({error}). {again}"
        ) from error
    if logits.dtype != np.float16 or logits.shape != shape:
        raise InputError(
            f"{path} holds {logits.dtype} {logits.shape}, its manifest says float16 "
            f"{shape}. {again}"
        )
    if path.stat().st_size <= CHECKSUM_LIMIT_BYTES and _sha256(path) != checksum:
        raise InputError(
            f"{path} is not the file its manifest was written for. {again}"
        )
    return TeacherLogits(directory, manifest, logits)


def check_unused(directory: str | os.PathLike) -> None:
    """Raises InputError where `directory` holds a finished cache."""
    if (Path(directory) / MANIFEST).exists():
        raise InputError(
            f"{directory} already holds a finished teacher cache. Delete it or give "
            "another --out."
        )


class Writer:
    """Writes a cache row block by row block, so that a kill loses at most one block.

    Rows are numbered through all views: row `view * N + index`.

    Args:
      directory: Made when missing. A finished cache in it is refused.
      manifest: All of the manifest but `format_version`, `shape`, `logits_sha256`.
      shape: (views, N, C).

    Attributes:
      rows_done: Rows already on disk, from an earlier start of the same export.

    Raises:
      InputError: The directory holds a finished cache, another unfinished export or
        damaged files, cannot be written, or has too little space.
    """

    def __init__(self, directory, manifest: Mapping, shape: tuple[int, int, int]):
        self.directory = Path(directory)
        check_unused(self.directory)
        self._manifest = dict(
            manifest, format_version=FORMAT_VERSION, shape=list(shape)
        )
        identity = json.dumps(self._manifest, sort_keys=True)
        self._identity = hashlib.sha256(identity.encode()).hexdigest()
        self._path = self.directory / LOGITS
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.rows_done, self._map = self._resume(shape) or self._begin(shape)
        except OSError as error:
            raise InputError(f"cannot write {self.directory}: {error}") from error
        self._rows = self._map.reshape(-1, shape[2])
        self._save_progress()

    def _begin(self, shape) -> tuple[int, np.ndarray]:
        # A memory map on a full disk ends in SIGBUS, which no handler can explain.
        needed = 2 * math.prod(shape)
        free = shutil.disk_usage(self.directory).free
        if free < needed + SPARE_BYTES:
            raise InputError(
                f"the cache takes {needed:,} bytes, and {self.directory} has "
                f"{free:,} free."
            )
        return 0, np.lib.format.open_memmap(
            self._path, mode="w+", dtype=np.float16, shape=shape
        )

    def _resume(self, shape) -> tuple[int, np.ndarray] | None:
        path = self.directory / PROGRESS
        if not path.exists():
            return None
        mend = "Delete it or give another --out."
        try:
            progress = json.loads(path.read_text())
            identity, rows_done = progress["identity"], int(progress["rows_done"])
            logits = np.lib.format.open_memmap(self._path, mode="r+")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.directory} holds a damaged unfinished export "
                f"({type(error).__name__}: {error}). {mend}"
            ) from error
        if identity != self._identity:
            raise InputError(
                f"{self.directory} holds an unfinished export of another teacher, "
                f"data set or setting. {mend}"
            )
        if logits.dtype != np.float16 or logits.shape != tuple(shape):
            raise InputError(
                f"{self._path} of an unfinished export holds {logits.dtype} "
                f"{logits.shape} instead of float16 {tuple(shape)}. {mend}"
            )
        return rows_done, logits

    def append(self, logits: np.ndarray) -> None:
        """Writes the next rows, any float [n, C], and puts them on disk."""
        if not np.isfinite(logits).all():
            raise InputError(
                "the teacher gives non-finite logits: its weights are damaged, or "
                "half precision overflows; try --precision=float32."
            )
        with np.errstate(over="ignore"):  # reported below
            logits = logits.astype(np.float16)
        if not np.isfinite(logits).all():
            raise InputError("the teacher's logits exceed float16 (65,504).")
        stop = self.rows_done + len(logits)
        self._rows[self.rows_done : stop] = logits
        self._map.flush()
        self.rows_done = stop
        self._save_progress()

    def finish(self) -> None:
        """Writes the manifest: from here on the directory is a cache."""
        if self.rows_done != len(self._rows):
            raise ValueError(f"{self.rows_done=} of {len(self._rows)} rows")
        manifest = dict(self._manifest, logits_sha256=_sha256(self._path))
        replace_file(self.directory / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        (self.directory / PROGRESS).unlink()

    def _save_progress(self) -> None:
        progress = {"identity": self._identity, "rows_done": self.rows_done}
        replace_file(self.directory / PROGRESS, json.dumps(progress))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
