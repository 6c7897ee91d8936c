"""A teacher cache (`cache_format`), opened: logits, and maybe features, by image."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deit_jax import files
from deit_jax.data.sources import PLACES
from deit_jax.distillation import cache_format, classes
from deit_jax.distillation.cache_format import AGAIN
from deit_jax.distillation.encoding import Encoding
from deit_jax.distillation.export_commands import export_commands
from deit_jax.distillation.teacher import Answers
from deit_jax.errors import InputError

# Hashing runs at about 1 GB/s: a start should not wait longer than a blink for it.
CHECKSUM_LIMIT_BYTES = 256 * 2**20
OPEN_VIEWS = 16  # files that are open at once: an epoch reads one view, or `repeats`
# Of digits: in the repository, and beside an installed package.
EMBEDDED = Path("teacher/logits/digits")
INSTALLED = Path(__file__).parents[2]
SOURCES = ("cache", "live")


@dataclasses.dataclass(frozen=True, eq=False)
class TeacherCache:
    """An opened cache.

    Attributes:
      directory: Its directory.
      manifest: The parsed manifest.
      encoding: How its rows are stored.
      tau: Temperature that `batch` is asked for.
      features: Whether `batch` has the features too.
    """

    directory: Path
    manifest: Mapping
    encoding: Encoding
    tau: float = 1.0
    features: bool = False

    @property
    def num_views(self) -> int:
        return self.manifest["views"]["count"]

    @property
    def num_features(self) -> int:
        """The number of features that `batch` gives."""
        return self.encoding.features if self.features else 0

    @property
    def bytes(self) -> int:
        """The size of all views."""
        rows = self.num_views * self.manifest["source"]["length"]
        return rows * self.encoding.bytes_per_row

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what training reads: the files of all views."""
        return hashlib.sha256(json.dumps(self.manifest["sha256"]).encode()).hexdigest()

    @functools.cached_property
    def _open(self):
        @functools.lru_cache(maxsize=OPEN_VIEWS)
        def open_one(view: int) -> dict[str, np.ndarray]:
            return open_view(
                self.directory, view, self.encoding, self.manifest["source"]["length"]
            )

        return open_one

    def rows(self, views: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
        """What is stored of image `indices[i]` in `views[i]`, by array: [B, ...].

        Views beyond the cache wrap around: a plain cache has one view for all.
        """
        views = views % self.num_views
        rows = {
            name: np.empty((len(views), *shape), kind)
            for name, (kind, shape) in self.encoding.arrays.items()
        }
        for view in np.unique(views):
            here = views == view
            for name, array in self._open(int(view)).items():
                rows[name][here] = array[indices[here]]
        return rows

    def batch(self, views: np.ndarray, indices: np.ndarray) -> Answers:
        """The teacher's answers [B, ...] to image `indices[i]` in `views[i]`.

        Raises:
          InputError: No export can have written these rows.
        """
        rows = self.rows(views, indices)
        try:
            self.encoding.check_rows(rows)
        except ValueError as error:
            raise InputError(
                f"{self.directory} is damaged: {error}. {AGAIN}"
            ) from error
        features = rows["features"] if self.features else None
        return Answers(self.encoding.decode(rows, self.tau), features)

    def examples(self) -> dict[str, np.ndarray]:
        """The stored images: see `deit_jax.distillation.match`.

        Raises:
          InputError: They are missing or damaged.
        """
        path = self.directory / cache_format.examples_file(self.num_views)
        try:
            files.check_regular(path)
            if files.sha256(path) != self.manifest["examples_sha256"]:
                raise ValueError("it is not the file its manifest was written for")
            with np.load(path, allow_pickle=False) as content:
                return dict(content)
        except Exception as error:  # a damaged archive can raise anything
            raise InputError(
                f"{path} is missing or damaged ({error}). {AGAIN}"
            ) from error

    def check_source(self, source, *, config: str = "...") -> None:
        """Refuses a cache that does not belong to `source`.

        Args:
          source: The training source (`deit_jax.data.sources`).
          config: The `--config` of the run, for the message.

        Raises:
          InputError: Data set, length, classes or images differ.
        """
        mine, theirs = (
            cache_format.describe_source(source),
            dict(self.manifest["source"]),
        )
        if all(side["name"].startswith(PLACES) for side in (mine, theirs)):
            theirs["name"] = mine["name"]  # a copy keeps its fingerprint
        wrong = [
            f"{field}={theirs[field]!r}, this run has {field}={mine[field]!r}"
            for field in ("name", "split", "length")
            if mine[field] != theirs[field]
        ]
        # The same names in another order too: it changes the labels, and with them the
        # fingerprint, so that nothing would show whether the images are the same.
        if words := classes.difference(theirs["class_names"], mine["class_names"]):
            wrong.append(f"other classes ({words})")
        if not wrong and mine["fingerprint"] != theirs["fingerprint"]:
            wrong.append(
                f"other images or labels of {source.name} (fingerprint "
                f"{theirs['fingerprint'][:12]}) than this run reads "
                f"({mine['fingerprint'][:12]})"
            )
        if wrong:
            raise InputError(
                f"the teacher cache {self.directory} was made for {'; '.join(wrong)}."
                + self.how_to_fix(source.name, config)
            )

    def how_to_fix(self, name: str, config: str) -> str:
        """The end of a message: how to get the right cache."""
        # Not into an installation.
        directory = str(self.directory).removeprefix(f"{INSTALLED}/")
        return (
            " Point --config.distillation.logits_dir at the right cache, or make one:\n"
            + export_commands(name, f"{directory}-new", config)
        )


def find(directory: str | os.PathLike) -> Path:
    """The directory of a cache: of `EMBEDDED`, from anywhere, what is installed."""
    directory = Path(directory)
    if directory == EMBEDDED and not directory.exists():
        return INSTALLED / directory
    return directory


def open_cache(
    directory: str | os.PathLike, *, tau: float = 1.0, features: bool = False
) -> TeacherCache:
    """Opens a finished cache and checks that its files are whole.

    Args:
      tau: Temperature at which the logits will be used.
      features: Whether the features will be used.

    Raises:
      InputError: There is no cache, it is unfinished, truncated, altered, does not know
        the softmax at `tau`, or lacks the features.
    """
    directory = find(directory)
    if not (directory / cache_format.MANIFEST).is_file():
        begun = any(directory.glob("view-*.json"))
        state = "an unfinished export" if begun else "none"
        raise InputError(f"no teacher cache at {directory} (found: {state}).")
    manifest = cache_format.read_manifest(directory)
    encoding, length = cache_format.encoding_of(manifest), manifest["source"]["length"]
    cache = TeacherCache(directory, manifest, encoding, tau, features)
    if features and not encoding.features:
        raise InputError(
            f"the teacher cache {directory} has logits alone, and distillation.kind="
            "'features' needs the teacher's features too. Export it again with this "
            "config, into another --out."
        )
    for view, checksums in enumerate(manifest["sha256"]):
        open_view(directory, view, encoding, length)
        for name, checksum in checksums.items():
            path = directory / name
            small = cache.bytes <= CHECKSUM_LIMIT_BYTES
            if small and files.sha256(path) != checksum:
                raise InputError(
                    f"{path} is not the file its manifest was written for. {AGAIN}"
                )
    encoding.check_tau(tau)
    averaged = manifest["teacher"].get("tau", tau)
    if averaged != tau:
        raise InputError(
            f"the teachers of {directory} are averaged at temperature {averaged:g}, "
            f"and their answers are asked for at {tau:g}. Set "
            f"--config.distillation.tau={averaged:g}, or export them again with this "
            "config."
        )
    return cache


def open_view(
    directory: Path, view: int, encoding: Encoding, length: int, mode: str = "r"
) -> dict[str, np.ndarray]:
    """Memory-maps the arrays of a view, or says in an InputError what they are."""
    arrays = {}
    for name, (kind, shape) in encoding.arrays.items():
        path = directory / cache_format.view_file(view, name)
        try:
            files.check_regular(path)
            # First read-only: NumPy fills a truncated one that it may write with zeros.
            array = np.lib.format.open_memmap(path, mode="r")
            if mode != "r":
                array = np.lib.format.open_memmap(path, mode=mode)
        except Exception as error:  # NumPy takes the header for a Python expression
            raise InputError(
                f"{path} is missing, truncated or no .npy file ({error}). {AGAIN}"
            ) from error
        if array.dtype != kind or array.shape != (length, *shape):
            raise InputError(
                f"{path} holds {array.dtype} {array.shape}, its manifest says "
                f"{kind} {(length, *shape)}. {AGAIN}"
            )
        arrays[name] = array
    return arrays
