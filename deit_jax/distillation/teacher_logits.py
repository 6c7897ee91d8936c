"""The cache of teacher logits: a directory that NumPy alone can read.

    manifest.json   what the logits belong to; written last, so that a directory
                    without it is not a cache
    logits.npy      float16 [views, N, C], opened memory-mapped
    examples.npz    eight images that the teacher saw (`view` is `same`)

For many classes the K largest logits of each row can stand for all of them. Then there
are, in place of logits.npy,

    indices.npy     uint16 or uint32 [views, N, K], their classes, the largest first
    values.npy      float16 [views, N, K]
    tails.npy       float32 [views, N, 2], the probability of all other classes at
                    temperature 1 and at that of the export (one does not follow from
                    the other); they are taken to share it evenly

The manifest:

    format_version  2
    arrays          {file: {dtype, shape, sha256}}
    source          {name, split, length, num_classes, class_names, fingerprint}
    views           {count, view, mixing, augment_seed, repeats, size, augmentation}:
                    `view` is what the teacher saw, `plain` (one view, the image
                    without augmentation; the fields from augment_seed on are null) or
                    `same` (what the student sees); `mixing` is `exact` (MixUp and
                    CutMix too) or `none`
    logits          {top_k, tau}, null where all logits are there
    examples_sha256 of examples.npz, or null
    teacher         {arch, stem, weights_sha256, image_size, mean, std, crop_ratio,
                    precision, top1, top1_split}; `crop_ratio` is that of
                    `deit_jax.data.crops.centre_view`, null where images of one size
                    were seen whole

A cache is written in chunks (`Writer`) and can be resumed after a kill: the entries
that `progress.json` counts are on disk before it says so. Several processes can write
one in parts (`deit_jax.distillation.teacher_parts`).
"""

import dataclasses
import hashlib
import json
import math
import os
import reprlib
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from deit_jax.errors import InputError
from deit_jax.files import replace_file

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
EXAMPLES = "examples.npz"
PROGRESS = "progress.json"
PARTS = "shard-*-of-*"  # directories beside these files
# Hashing runs at about 1 GB/s: a start-up should not wait longer than a blink for it.
CHECKSUM_LIMIT_BYTES = 256 * 2**20
FOLDER = "folder:"  # what the name of a folder of pictures starts with
VIEWS = ("same", "plain")
MIXINGS = ("exact", "linear", "none")
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


# What a row holds --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How the logits of a row are stored.

    Attributes:
      num_classes: C.
      top_k: How many of them are kept; None for all.
      tau: Temperature at which the others' probability is kept beside that at 1.
    """

    num_classes: int
    top_k: int | None = None
    tau: float | None = None

    def __post_init__(self):
        if self.top_k is not None and not 0 < self.top_k < self.num_classes:
            raise InputError(
                f"--top_k={self.top_k}: expected 1 .. {self.num_classes - 1}, fewer "
                "than there are classes; without it all logits are kept."
            )
        if self.top_k is not None and not (self.tau and self.tau > 0):
            raise InputError(f"distillation.tau={self.tau} is not above 0.")

    @property
    def arrays(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """File name: (type, shape of a row)."""
        if self.top_k is None:
            arrays = {"logits.npy": (np.float16, (self.num_classes,))}
        else:
            wide = np.uint16 if self.num_classes <= 2**16 else np.uint32
            arrays = {
                "indices.npy": (wide, (self.top_k,)),
                "values.npy": (np.float16, (self.top_k,)),
                "tails.npy": (np.float32, (2,)),
            }
        return {name: (np.dtype(kind), shape) for name, (kind, shape) in arrays.items()}

    @property
    def bytes_per_row(self) -> int:
        return sum(
            kind.itemsize * math.prod(shape) for kind, shape in self.arrays.values()
        )

    def describe(self) -> dict:
        """The manifest's `logits` section."""
        return {"top_k": self.top_k, "tau": self.tau}

    def encode(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """What is stored of logits float [n, C].

        Raises:
          InputError: They are not finite, or exceed float16.
        """
        if not np.isfinite(logits).all():
            raise InputError(
                "the teacher gives non-finite logits: its weights are damaged, or "
                "half precision overflows; try --precision=float32."
            )
        with np.errstate(over="ignore"):  # reported below
            rounded = logits.astype(np.float16)
        if not np.isfinite(rounded).all():
            raise InputError("the teacher's logits exceed float16 (65,504).")
        if self.top_k is None:
            return {"logits.npy": rounded}
        # Stable, so that equal logits keep the order of their classes.
        order = np.argsort(-logits, axis=1, kind="stable")[:, : self.top_k]
        tails = [_tail(logits, order, tau) for tau in (1.0, self.tau)]
        indices, _ = self.arrays["indices.npy"]
        return {
            "indices.npy": order.astype(indices),
            "values.npy": np.take_along_axis(rounded, order, axis=1),
            "tails.npy": np.stack(tails, axis=1).astype(np.float32),
        }

    def decode(self, rows: Mapping[str, np.ndarray], tau: float) -> np.ndarray:
        """Logits [n, C] whose softmax at temperature `tau` is the teacher's.

        float16 where all are stored; otherwise float32, and `tau` is 1 or that of the
        export (`check_tau`).
        """
        if self.top_k is None:
            return rows["logits.npy"]
        values = rows["values.npy"].astype(np.float32) / tau
        tail = rows["tails.npy"][:, 0 if tau == 1 else 1, None]
        # 1e-30: a probability that has vanished in float32 still has a logarithm.
        log_tail = np.log(np.maximum(tail, 1e-30) / (self.num_classes - self.top_k))
        log_top = values - _log_sum_exp(values) + np.log1p(-tail)
        # Where all logits are equal, rounding must not put the others first.
        log_tail = np.minimum(log_tail, log_top.min(axis=1, keepdims=True))
        logits = np.repeat(log_tail, self.num_classes, axis=1)
        np.put_along_axis(logits, rows["indices.npy"].astype(np.int64), log_top, 1)
        return tau * logits

    def check_tau(self, tau: float) -> None:
        """Raises InputError where the softmax at `tau` is not known."""
        if self.top_k is not None and tau not in (1.0, self.tau):
            raise InputError(
                f"the teacher cache holds the {self.top_k} largest logits, for "
                f"distillation.tau of 1 or {self.tau:g}, not {tau:g}. Set "
                f"--config.distillation.tau={self.tau:g}, or export anew with "
                f"--config.distillation.tau={tau:g}."
            )


def _tail(logits: np.ndarray, top: np.ndarray, tau: float) -> np.ndarray:
    """The probability [n] of the classes that are not in `top` [n, K]."""
    scaled = logits.astype(np.float64) / tau
    probabilities = np.exp(scaled - _log_sum_exp(scaled))
    np.put_along_axis(probabilities, top, 0, axis=1)
    return probabilities.sum(axis=1)


def _log_sum_exp(values: np.ndarray) -> np.ndarray:
    high = values.max(axis=1, keepdims=True)
    return high + np.log(np.exp(values - high).sum(axis=1, keepdims=True))


# Reading ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class TeacherLogits:
    """An opened cache.

    Attributes:
      directory: Where it lies.
      manifest: The parsed manifest.
      encoding: How its rows are stored.
      arrays: Memory-mapped, by file name; [views, N, ...] each.
      tau: Temperature that `batch` is asked for.
    """

    directory: Path
    manifest: Mapping
    encoding: Encoding
    arrays: Mapping[str, np.ndarray]
    tau: float = 1.0

    @property
    def num_views(self) -> int:
        return self.manifest["views"]["count"]

    def batch(self, views: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Logits [B, C] of image `indices[i]` (int [B]) in `views[i]`.

        Views beyond the cache wrap around: a plain cache has one view for all.
        """
        rows = {
            name: array[views % self.num_views, indices]
            for name, array in self.arrays.items()
        }
        return self.encoding.decode(rows, self.tau)

    def examples(self) -> dict[str, np.ndarray]:
        """The stored images: see `deit_jax.distillation.teacher_views`.

        Raises:
          InputError: They are missing or damaged.
        """
        path = self.directory / EXAMPLES
        try:
            if sha256(path) != self.manifest["examples_sha256"]:
                raise ValueError("it is not the file its manifest was written for")
            with np.load(path, allow_pickle=False) as content:
                return dict(content)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} is missing or damaged ({error}). Export the cache again with "
                "python -m teacher.export_logits."
            ) from error

    def check_source(self, source, *, config: str = "...") -> None:
        """Refuses a cache that does not belong to `source`.

        Args:
          source: The training source (`deit_jax.data.sources`).
          config: The `--config` of the run, for the message.

        Raises:
          InputError: Data set, length, classes or images differ.
        """
        mine, theirs = describe_source(source), dict(self.manifest["source"])
        if all(side["name"].startswith(FOLDER) for side in (mine, theirs)):
            theirs["name"] = mine["name"]  # a copied folder keeps its fingerprint
        for field in ("name", "split", "length", "num_classes"):
            if mine[field] != theirs[field]:
                raise InputError(
                    f"the teacher cache {self.directory} was made for {field}="
                    f"{theirs[field]!r}, this run has {field}={mine[field]!r}."
                    + self.mend(source.name, config)
                )
        pairs = zip(mine["class_names"], theirs["class_names"], strict=True)
        for number, (my_name, their_name) in enumerate(pairs):
            if my_name != their_name:
                raise InputError(
                    f"class {number} of the teacher cache {self.directory} is "
                    f"{their_name!r}, that of {source.name} is {my_name!r}."
                    + self.mend(source.name, config)
                )
        if mine["fingerprint"] != theirs["fingerprint"]:
            raise InputError(
                f"the teacher cache {self.directory} was made from other images or "
                f"labels of {source.name} (fingerprint {theirs['fingerprint'][:12]}) "
                f"than this run reads ({mine['fingerprint'][:12]})."
                + self.mend(source.name, config)
            )

    def mend(self, name: str, config: str) -> str:
        """How to come by the right cache, as the end of a message."""
        return (
            " Point --config.distillation.logits_dir at the right cache, or make one "
            "(with this run's own --config flags):\n"
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


def entries(manifest: Mapping) -> int:
    """Rows that an export of this manifest computes (`views.ExportOrder`)."""
    length, views = manifest["source"]["length"], manifest["views"]
    if views["view"] == "plain":
        return length
    return views["count"] * (-(-length // 2) * 2)


def encoding_of(manifest: Mapping) -> Encoding:
    """How a manifest says that its rows are stored."""
    return Encoding(manifest["source"]["num_classes"], **manifest["logits"])


def open_cache(directory: str | os.PathLike, *, tau: float = 1.0) -> TeacherLogits:
    """Opens a finished cache and checks that its files are whole.

    Args:
      tau: Temperature at which the logits will be used.

    Raises:
      InputError: There is no cache, it is unfinished, truncated, altered, or does not
        know the softmax at `tau`.
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
        encoding = encoding_of(manifest)
        source, views = manifest["source"], manifest["views"]
        leading = (int(views["count"]), int(source["length"]))
        described = describe_arrays(encoding, leading)
        stated = {
            name: {key: array[key] for key in ("dtype", "shape")}
            for name, array in manifest["arrays"].items()
        }
        if stated != described:
            raise ValueError(f"arrays {stated}, but views, images, classes {described}")
        if len(source["class_names"]) != source["num_classes"]:
            raise ValueError(f"{len(source['class_names'])} names of classes")
        if views["view"] not in VIEWS or views["mixing"] not in MIXINGS:
            raise ValueError(f"views {views['view']!r}, mixing {views['mixing']!r}")
        checksums = {
            name: array["sha256"] for name, array in manifest["arrays"].items()
        }
        _ = source["name"], source["split"], source["fingerprint"]
        _ = views["augment_seed"], views["repeats"], views["augmentation"]
        _ = manifest["teacher"]["top1"], manifest["examples_sha256"]
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{directory / MANIFEST} is not a manifest of a teacher cache "
            f"({type(error).__name__}: {error}). {again}"
        ) from error
    arrays = open_arrays(directory, encoding, leading, again)
    total = sum((directory / name).stat().st_size for name in arrays)
    for name in arrays:
        path = directory / name
        if total <= CHECKSUM_LIMIT_BYTES and sha256(path) != checksums[name]:
            raise InputError(
                f"{path} is not the file its manifest was written for. {again}"
            )
    encoding.check_tau(tau)
    return TeacherLogits(directory, manifest, encoding, arrays, tau)


def describe_arrays(encoding: Encoding, leading: tuple[int, ...]) -> dict:
    """The manifest's `arrays` section but for the checksums."""
    return {
        name: {"dtype": kind.name, "shape": [*leading, *shape]}
        for name, (kind, shape) in encoding.arrays.items()
    }


def open_arrays(
    directory: Path,
    encoding: Encoding,
    leading: tuple[int, ...],
    mend: str,
    mode: str = "r",
) -> dict[str, np.ndarray]:
    """Memory-maps the files of a cache, or says in an InputError what they are."""
    arrays = {}
    for name, (kind, shape) in encoding.arrays.items():
        path = directory / name
        try:
            # First read-only: a truncated one, opened to write, is filled with zeros.
            array = np.lib.format.open_memmap(path, mode="r")
            if mode != "r":
                array = np.lib.format.open_memmap(path, mode=mode)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} is missing, truncated or no .npy file ({error}). {mend}"
            ) from error
        if array.dtype != kind or array.shape != (*leading, *shape):
            raise InputError(
                f"{path} holds {array.dtype} {array.shape}, its manifest says "
                f"{kind} {(*leading, *shape)}. {mend}"
            )
        arrays[name] = array
    return arrays


# Writing ------------------------------------------------------------------------------


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
    path = Path(directory) / PROGRESS
    if not path.exists():
        return 0, None
    try:
        progress = json.loads(path.read_text())
        done, begun = int(progress["entries_done"]), progress["manifest"]
        top1, same = begun["teacher"]["top1"], identity(begun) == identity(manifest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(directory, error) from error
    if not same:
        raise InputError(
            f"{directory} holds an unfinished export of another teacher, data set or "
            "setting. Delete it or give another --out."
        )
    return done, top1


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
        self._manifest = dict(manifest, format_version=FORMAT_VERSION)
        self._examples = examples
        self._encoding = encoding_of(manifest)
        if shard := manifest.get("shard"):
            self._total = shard["stop"] - shard["start"]
            self._leading: tuple[int, ...] = (self._total,)
        else:
            self._total = entries(manifest)
            self._leading = (
                manifest["views"]["count"],
                manifest["source"]["length"],
            )
        self.entries_done, _ = find_unfinished(self.directory, self._manifest)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if (self.directory / PROGRESS).exists():
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
            return open_arrays(
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
            path = self.directory / EXAMPLES
            partial = path.with_name("partial-" + EXAMPLES)
            with open(partial, "wb") as file:
                np.savez(file, **self._examples)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            examples_sha256 = sha256(path)
        described = describe_arrays(self._encoding, self._leading)
        for name in described:
            described[name]["sha256"] = sha256(self.directory / name)
        manifest = self._manifest | {
            "arrays": described,
            "examples_sha256": examples_sha256,
        }
        replace_file(self.directory / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        (self.directory / PROGRESS).unlink(missing_ok=True)

    def _save_progress(self) -> None:
        progress = {"entries_done": self.entries_done, "manifest": self._manifest}
        replace_file(self.directory / PROGRESS, json.dumps(progress))


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
