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
    teacher         {arch, stem, weights_sha256, image_size, mean, std, crop_ratio,
                    precision, top1, top1_split}; `crop_ratio` is that of
                    `deit_jax.data.crops.centre_view`, null where images of one size
                    were seen whole

A cache is written in chunks (`Writer`) and can be resumed after a kill: the rows that
`progress.json` names are on disk before it says so. Several processes can write one in
parts (`deit_jax.distillation.teacher_parts`).
"""

import dataclasses
import hashlib
import json
import math
import os
import shlex
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
PARTS = "shard-*-of-*"  # directories beside these files
# Hashing runs at about 1 GB/s: a start-up should not wait longer than a blink for it.
CHECKSUM_LIMIT_BYTES = 256 * 2**20
FOLDER = "folder:"  # what the name of a folder of pictures starts with
SPARE_BYTES = 2**20  # for the small files beside the logits
EXPORT_COMMANDS = """\
  python -m teacher.finetune --dataset={name} --arch=resnet50 --out={teacher}
  python -m teacher.export_logits --config={config} --teacher={teacher} --out={out}\
{more}"""


def export_commands(
    name: str, logits_dir: str, config: str = "configs/deit.py:<data set>"
) -> str:
    """The two commands that make a cache for the data set `name`."""
    folder = name.startswith(FOLDER)
    short = Path(name.removeprefix(FOLDER)).name if folder else name
    return EXPORT_COMMANDS.format(
        name=shlex.quote(name),
        config=config,
        teacher=shlex.quote(f"runs/teacher-{short}"),
        out=shlex.quote(logits_dir),
        more=f" --config.dataset.name={shlex.quote(name)}" if folder else "",
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
        state = "none"
        if (directory / PROGRESS).exists():
            state = "an unfinished export"
        elif any(directory.glob(PARTS)):
            state = "parts, to be joined by python -m teacher.export_logits --join"
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
        if "shard" in manifest:
            raise InputError(
                f"{directory} is a part of a teacher cache. Join the parts with "
                f"python -m teacher.export_logits --join --out={directory.parent}"
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
    logits = open_logits(path, shape, again)
    if path.stat().st_size <= CHECKSUM_LIMIT_BYTES and sha256(path) != checksum:
        raise InputError(
            f"{path} is not the file its manifest was written for. {again}"
        )
    return TeacherLogits(directory, manifest, logits)


def open_logits(path: Path, shape: tuple[int, ...], mend: str) -> np.ndarray:
    """Memory-maps a file of float16 logits, or says in an InputError what it is."""
    try:
        logits = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is missing, truncated or no .npy file ({error}). {mend}"
        ) from error
    if logits.dtype != np.float16 or logits.shape != shape:
        raise InputError(
            f"{path} holds {logits.dtype} {logits.shape}, its manifest says float16 "
            f"{shape}. {mend}"
        )
    return logits


def check_unused(directory: str | os.PathLike) -> None:
    """Raises InputError where `directory` holds a finished cache."""
    if (Path(directory) / MANIFEST).exists():
        raise InputError(
            f"{directory} already holds a finished teacher cache. Delete it or give "
            "another --out."
        )


def identity(manifest: Mapping) -> dict:
    """What is known of an export before it starts: two of one identity give one cache.

    The teacher's accuracy is not: it is measured on the way, and follows from the rest.
    """
    about = {"format_version": FORMAT_VERSION} | dict(manifest)
    about["teacher"] = dict(about["teacher"], top1=None)
    names = ("format_version", "source", "views", "teacher", "shard")
    return json.loads(json.dumps({name: about.get(name) for name in names}))


def find_unfinished(directory, manifest: Mapping) -> tuple[int, float | None]:
    """How far an earlier start of the export came: rows done, and measured top-1.

    Args:
      directory: Of the cache; nothing in it is changed.
      manifest: As the `Writer` takes it; its top-1 may be None.

    Raises:
      InputError: The directory holds a finished cache, another unfinished export or
        damaged files.
    """
    check_unused(directory)
    path = Path(directory) / PROGRESS
    if not path.exists():
        return 0, None
    try:
        progress = json.loads(path.read_text())
        rows_done, begun = int(progress["rows_done"]), progress["manifest"]
        top1, same = begun["teacher"]["top1"], identity(begun) == identity(manifest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(directory, error) from error
    if not same:
        raise InputError(
            f"{directory} holds an unfinished export of another teacher, data set or "
            "setting. Delete it or give another --out."
        )
    return rows_done, top1


def _damaged(directory, error: Exception) -> InputError:
    return InputError(
        f"{directory} holds a damaged unfinished export ({type(error).__name__}: "
        f"{error}). Delete it or give another --out."
    )


class Writer:
    """Writes a cache row block by row block, so that a kill loses at most one block.

    Rows are numbered through all views: row `view * N + index`.

    Args:
      directory: Made when missing. A finished cache in it is refused.
      manifest: All of the manifest but `format_version`, `shape`, `logits_sha256`.
      shape: (views, N, C), or (rows, C) of a part.

    Attributes:
      rows_done: Rows already on disk, from an earlier start of the same export.

    Raises:
      InputError: The directory holds a finished cache, another unfinished export or
        damaged files, cannot be written, or has too little space.
    """

    def __init__(self, directory, manifest: Mapping, shape: tuple[int, ...]):
        self.directory = Path(directory)
        self._manifest = dict(
            manifest, format_version=FORMAT_VERSION, shape=list(shape)
        )
        self._path = self.directory / LOGITS
        self.rows_done, _ = find_unfinished(self.directory, self._manifest)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if (self.directory / PROGRESS).exists():
                self._map = self._resume(shape)
            else:
                self._map = self._begin(shape)
        except OSError as error:
            raise InputError(f"cannot write {self.directory}: {error}") from error
        self._rows = self._map.reshape(-1, shape[-1])
        self._save_progress()

    def _begin(self, shape) -> np.ndarray:
        # A memory map on a full disk ends in SIGBUS, which no handler can explain.
        needed = 2 * math.prod(shape)
        free = shutil.disk_usage(self.directory).free
        if free < needed + SPARE_BYTES:
            raise InputError(
                f"the cache takes {needed:,} bytes, and {self.directory} has "
                f"{free:,} free."
            )
        return np.lib.format.open_memmap(
            self._path, mode="w+", dtype=np.float16, shape=shape
        )

    def _resume(self, shape) -> np.ndarray:
        try:
            logits = np.lib.format.open_memmap(self._path, mode="r+")
        except (OSError, ValueError) as error:
            raise _damaged(self.directory, error) from error
        if logits.dtype != np.float16 or logits.shape != tuple(shape):
            raise InputError(
                f"{self._path} of an unfinished export holds {logits.dtype} "
                f"{logits.shape} instead of float16 {tuple(shape)}. Delete it or give "
                "another --out."
            )
        return logits

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
        manifest = dict(self._manifest, logits_sha256=sha256(self._path))
        replace_file(self.directory / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        (self.directory / PROGRESS).unlink(missing_ok=True)

    def _save_progress(self) -> None:
        progress = {"rows_done": self.rows_done, "manifest": self._manifest}
        replace_file(self.directory / PROGRESS, json.dumps(progress))


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
