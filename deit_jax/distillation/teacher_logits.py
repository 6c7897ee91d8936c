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

A cache is written in blocks (`deit_jax.distillation.teacher_writer`) and can be resumed
after a kill: the entries that `progress.json` counts are on disk before it says so.
Several processes can write one in parts (`deit_jax.distillation.teacher_parts`).
"""

import dataclasses
import hashlib
import os
import shlex
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deit_jax import json_files
from deit_jax.distillation.teacher_encoding import Encoding
from deit_jax.errors import InputError

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
EXAMPLES = "examples.npz"
PROGRESS = "progress.json"
PARTS = "shard-*-of-*"  # directories beside these files
# Hashing runs at about 1 GB/s: a start-up should not wait longer than a blink for it.
CHECKSUM_LIMIT_BYTES = 256 * 2**20
FOLDER = "folder:"  # what the name of a folder of pictures starts with
# Of examples.npz: eight images, of 2,048 pixels a side at the most.
EXAMPLES_LIMIT_BYTES = 128 * 2**20
VIEWS = ("same", "plain")
MIXINGS = ("exact", "linear", "none")
# Of the manifest, for `json_files.check`.
MAYBE_INT = (int, json_files.NULL)
FIELDS = {
    "format_version": int,
    "source": {
        "name": str,
        "split": str,
        "length": int,
        "num_classes": int,
        "class_names": [str],
        "fingerprint": str,
    },
    "views": {
        "count": int,
        "view": str,
        "mixing": str,
        "augment_seed": MAYBE_INT,
        "repeats": MAYBE_INT,
        "size": MAYBE_INT,
        "augmentation": (dict, json_files.NULL),
    },
    "logits": {"top_k": MAYBE_INT, "tau": (float, json_files.NULL)},
    "arrays": {...: {"dtype": str, "shape": [int], "sha256": str}},
    "examples_sha256": (str, json_files.NULL),
    "teacher": {"arch": str, "top1": (float, json_files.NULL), "top1_split": str},
}
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

        Raises:
          InputError: No export can have written these rows.
        """
        rows = {
            name: array[views % self.num_views, indices]
            for name, array in self.arrays.items()
        }
        try:
            self.encoding.check_rows(rows)
        except ValueError as error:
            raise InputError(
                f"{self.directory} is damaged: {error}. Export it again with "
                "python -m teacher.export_logits."
            ) from error
        return self.encoding.decode(rows, self.tau)

    def examples(self) -> dict[str, np.ndarray]:
        """The stored images: see `deit_jax.distillation.teacher_views`.

        Raises:
          InputError: They are missing or damaged.
        """
        return read_examples(
            self.directory / EXAMPLES,
            self.manifest["examples_sha256"],
            "Export the cache again with python -m teacher.export_logits.",
        )

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
    about = manifest["logits"]
    return Encoding(manifest["source"]["num_classes"], about["top_k"], about["tau"])


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
        manifest = json_files.read(directory / MANIFEST)
        json_files.check(manifest, {"format_version": int})
        version = manifest["format_version"]
        if version == FORMAT_VERSION and "shard" not in manifest:
            encoding, leading = _check_whole(manifest)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{directory / MANIFEST} is not a manifest of a teacher cache ({error}). "
            f"{again}"
        ) from error
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
    arrays = open_arrays(directory, encoding, leading, again)
    total = sum((directory / name).stat().st_size for name in arrays)
    for name in arrays:
        path = directory / name
        checksum = manifest["arrays"][name]["sha256"]
        if total <= CHECKSUM_LIMIT_BYTES and sha256(path) != checksum:
            raise InputError(
                f"{path} is not the file its manifest was written for. {again}"
            )
    encoding.check_tau(tau)
    return TeacherLogits(directory, manifest, encoding, arrays, tau)


def check_fields(manifest: Mapping) -> Encoding:
    """The encoding of a cache or of a part of one.

    Raises:
      ValueError: A field is missing, of another type or out of its range.
    """
    json_files.check(manifest, FIELDS)
    source, views = manifest["source"], manifest["views"]
    least = [views["count"], source["length"], source["num_classes"]]
    if views["view"] == "same":
        if None in [views[name] for name in FIELDS["views"]]:
            raise ValueError("what the teacher saw is null")
        least += [views["repeats"], views["size"]]
    if min(least) < 1:
        raise ValueError(f"one of views, images, classes {least} is less than 1")
    if len(source["class_names"]) != source["num_classes"]:
        raise ValueError(f"{len(source['class_names'])} names of classes")
    if views["view"] not in VIEWS or views["mixing"] not in ("exact", "none"):
        raise ValueError(f"views {views['view']!r}, mixing {views['mixing']!r}")
    return encoding_of(manifest)


def _check_whole(manifest: Mapping) -> tuple[Encoding, tuple[int, int]]:
    """The encoding and (views, N) of a finished cache, or a ValueError."""
    encoding = check_fields(manifest)
    leading = manifest["views"]["count"], manifest["source"]["length"]
    described = describe_arrays(encoding, leading)
    stated = {
        name: {key: array[key] for key in ("dtype", "shape")}
        for name, array in manifest["arrays"].items()
    }
    if stated != described:
        raise ValueError(f"arrays {stated}, but views, images, classes {described}")
    if manifest["teacher"]["top1"] is None:
        raise ValueError("no top-1")
    return encoding, leading


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
            if path.exists() and not path.is_file():  # a pipe would never end
                raise ValueError("it is no regular file")
            with np.errstate(over="ignore"):  # of absurd shapes, refused below
                # First read-only: a truncated one, opened to write, is filled with
                # zeros.
                array = np.lib.format.open_memmap(path, mode="r")
                if mode != "r":
                    array = np.lib.format.open_memmap(path, mode=mode)
        except Exception as error:  # NumPy takes the header for a Python expression
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


def read_examples(path: Path, checksum: str | None, mend: str) -> dict[str, np.ndarray]:
    """The arrays of an examples.npz, or an InputError that says what it is.

    Args:
      checksum: Its sha256, as the manifest has it.
      mend: The end of the message.
    """
    try:
        json_files.check_size(path, EXAMPLES_LIMIT_BYTES)
        if sha256(path) != checksum:
            raise ValueError("it is not the file its manifest was written for")
        with zipfile.ZipFile(path) as archive:
            if sum(m.file_size for m in archive.infolist()) > EXAMPLES_LIMIT_BYTES:
                raise ValueError(f"it holds more than {EXAMPLES_LIMIT_BYTES:,} bytes")
        with np.load(path, allow_pickle=False) as content:
            examples = dict(content)
        if not all(isinstance(array, np.ndarray) for array in examples.values()):
            raise ValueError("it holds something else than arrays")
        if any(array.dtype.kind not in "iu" for array in examples.values()):
            raise ValueError("it holds other numbers than integers")
        return examples
    except Exception as error:  # a damaged archive can raise anything
        raise InputError(f"{path} is missing or damaged ({error}). {mend}") from error


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
