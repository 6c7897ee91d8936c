"""Image classification sets of TensorFlow Datasets (TFDS), by name.

Reading needs no TensorFlow; preparing a set on first use does. Sets are prepared as
array_record, which has random access.

The fingerprint covers name, version, split, length, class names, labels and encoded
images: of all of them where TFDS gives at most 1 GiB for the split, of 1,024 evenly
spaced ones beyond that, with the sizes of the shards. It does not depend on the
data_dir.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import os
import re
import urllib.parse
from pathlib import Path

import numpy as np

from deit_jax.data.sources import fingerprints, recompressed
from deit_jax.data.sources.encoded import EncodedSource
from deit_jax.data.sources.split import parse_split
from deit_jax.errors import InputError

# cifar10, imagenet_resized/32x32, cifar10:3.0.2. Names with a namespace
# (huggingface:...) go elsewhere for their data and are not offered.
NAME = re.compile(r"[A-Za-z]\w*(/[\w.+-]+)?(:[\d*]+\.[\d*]+\.[\d*]+)?")
CONNECT_SECONDS = 10
EMBEDDED = (
    "The embedded set needs no download: --config=configs/deit.py:digits (or the "
    "config at hand with :digits)."
)


class TfdsRecords:
    """The examples of a prepared split, opened on first use and once a process.

    Args:
      directory: Of the prepared set: `<data_dir>/<name>/<version>`.
      split: With an absolute slice: `train[0:45000]`.
      keys: The features that hold image and label.
      length: Examples in the split.
      num_classes: Labels are in 0 .. num_classes - 1.
      name: What an error message calls the set.
    """

    def __init__(
        self,
        directory: str,
        split: str,
        keys: tuple[str, str],
        length: int,
        num_classes: int,
        name: str,
    ):
        self._directory = directory
        self._split = split
        self._keys = keys
        self._length = length
        self._num_classes = num_classes
        self._name = name
        self._examples = None
        self._labels = None

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_examples": None, "_labels": None}

    @property
    def labels(self) -> np.ndarray:
        """int32 [N]; reads every example the first time."""
        if self._labels is None:
            self._labels, _ = fingerprints.scan(self, np.arange(self._length))
        return self._labels

    def keep_labels(self, labels: np.ndarray) -> None:
        """Spares the first use of `labels` the reading."""
        self._labels = labels

    def read(self, indices) -> list[tuple[bytes, int]]:
        image_key, label_key = self._keys
        try:
            if self._examples is None:
                self._examples = _open(self._directory, self._split, image_key)
            examples = self._examples.__getitems__(list(indices))
            pairs = [(bytes(e[image_key]), int(e[label_key])) for e in examples]
        except ImportError as error:
            raise InputError(
                "TFDS needs the package array_record to read without TensorFlow: pip "
                f"install array_record ({error})."
            ) from error
        except Exception as error:  # array_record and protobuf raise anything
            raise InputError(
                f"{self._directory} cannot be read at {self.where(indices[0])}: "
                f"{_first_lines(error)}. Delete the folder: TFDS prepares it again."
            ) from error
        for index, (_, label) in zip(indices, pairs, strict=True):
            if not 0 <= label < self._num_classes:
                raise InputError(
                    f"{self.where(index)} has label {label}, expected 0 .. "
                    f"{self._num_classes - 1}. A split without labels (-1) cannot be "
                    "used: choose another one."
                )
        return pairs

    def where(self, index: int) -> str:
        return f"{self._name} {self._split}, example {index}"


def open_tfds(name: str, split: str, data_dir: str | None = None) -> EncodedSource:
    """Opens a split of a TFDS set, which is prepared first where it is missing.

    Args:
      name: As in the TFDS catalogue, with config and version if wanted:
        `imagenet_resized/32x32`, `cifar10:3.0.2`. Without a version, the newest one
        that is prepared; else the newest that TFDS can make.
      split: A split of the set, or a slice of one.
      data_dir: Where TFDS keeps its sets; by default `$TFDS_DATA_DIR`, else
        `~/tensorflow_datasets`.

    Raises:
      InputError: The name or split is unknown, the set is no image classification set,
        it cannot be prepared, or its files are damaged.
    """
    builder, keys = _prepared(name, os.path.expanduser(data_dir) if data_dir else None)
    info, directory = builder.info, str(builder.data_dir)
    image, label = (info.features[key] for key in keys)
    num_classes = label.num_classes or 0
    if num_classes < 2:
        raise InputError(f"{name} has {num_classes} classes; at least two are needed.")
    class_names = tuple(map(str, label.names or range(num_classes)))
    lengths = {key: int(value.num_examples) for key, value in info.splits.items()}
    base, start, stop = parse_split(split, lengths)
    records = TfdsRecords(
        directory, f"{base}[{start}:{stop}]", keys, stop - start, num_classes, name
    )
    total = int(info.splits[base].num_bytes) * (stop - start) // lengths[base]
    read = fingerprints.positions(len(records), total)
    labels, sums = fingerprints.scan(records, read)
    if len(read) == len(records):
        records.keep_labels(labels)
        shards = ""
    else:
        shards = f"{info.splits[base].num_bytes} {info.splits[base].shard_lengths}"
    shape = image.shape[:2]
    source = EncodedSource(
        name=name,
        split=split,
        class_names=class_names,
        records=records,
        fingerprint=fingerprints.fingerprint(
            "tfds",
            "1",
            info.full_name,
            split,
            len(records),
            "\n".join(class_names),
            shards,
            sums,
        ),
        image_shape=None if None in shape else (*shape, 3),
    )
    return dataclasses.replace(source, notes=recompressed.notes(source))


def _prepared(name: str, data_dir: str | None):
    """The builder of a set whose files are there, and what `_keys` gives."""
    builder = _builder(name, data_dir)
    keys = _keys(name, builder.info.features)  # before a long download
    with _quiet():
        prepared = builder.is_prepared()
    if not prepared:
        _prepare(name, builder)
    _check_format(name, builder)
    return builder, keys


def _builder(name: str, data_dir: str | None):
    """The TFDS builder: of prepared files where there are any, else of TFDS's code."""
    if not NAME.fullmatch(name):
        raise _unknown(name, data_dir)
    import tensorflow_datasets as tfds

    # A version, even an open one, makes TFDS look for prepared files first: what a user
    # has prepared is used though TFDS's code has moved on.
    version = {} if ":" in name else {"version": "*.*.*"}
    try:
        with _quiet():
            return tfds.builder(name, data_dir=data_dir, **version)
    except tfds.core.DatasetNotFoundError as error:
        raise _unknown(name, data_dir) from error
    except Exception as error:  # a config or version it lacks, a damaged info file
        raise InputError(
            f"TFDS cannot open {name!r} under {_shown(data_dir)}: "
            f"{_first_lines(error)}."
        ) from error


def _keys(name: str, features) -> tuple[str, str]:
    """The features that hold image and label."""
    import tensorflow_datasets as tfds

    found = dict(features.items()) if hasattr(features, "items") else {}
    images = [k for k, v in found.items() if isinstance(v, tfds.features.Image)]
    labels = [k for k, v in found.items() if isinstance(v, tfds.features.ClassLabel)]
    # Of several (cifar100 has coarse labels too) the usual ones.
    images = ["image"] if "image" in images else images
    labels = ["label"] if "label" in labels else labels
    if len(images) != 1 or len(labels) != 1:
        shown = ", ".join(f"{k} ({type(v).__name__})" for k, v in found.items())
        raise InputError(
            f"{name} is no image classification set: expected one Image and one "
            f"ClassLabel, its features are {shown or features}."
        )
    image = found[images[0]]
    if np.dtype(image.np_dtype) not in (np.uint8, np.uint16):
        raise InputError(
            f"the images of {name} are {np.dtype(image.np_dtype)}, expected uint8 or "
            "uint16."
        )
    return images[0], labels[0]


def _prepare(name: str, builder) -> None:
    """Downloads and prepares the set, or says in one message why it cannot be done."""
    directory = str(builder.data_dir)
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"{name} is not prepared in {directory}, and preparing it needs TensorFlow "
            f"(reading does not): pip install tensorflow-cpu. {EMBEDDED}"
        )
    unreachable = _unreachable(builder)
    if unreachable:
        raise _unavailable(name, directory, unreachable)
    import tensorflow as tf

    # TensorFlow would take all memory of a GPU that JAX is about to use.
    with contextlib.suppress(RuntimeError):  # it has them already
        tf.config.set_visible_devices([], "GPU")
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # network, disk, checksums, manual downloads, Kaggle ...
        raise _unavailable(name, directory, _first_lines(error)) from error


def _unreachable(builder) -> str:
    """Why the download cannot even begin, or an empty string.

    Without a network TFDS itself retries for more than three minutes.
    """
    import requests

    downloads = Path(builder.data_path).parents[
        len(builder.info.full_name.split("/")) - 1
    ]
    downloads = downloads / "downloads"
    kept = (*downloads.glob("*.INFO"), *downloads.glob(f"{builder.name}/*.INFO"))
    urls = [u for u in builder.url_infos or () if u.startswith("http")]
    if not urls or kept or builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return ""
    try:
        requests.head(urls[0], timeout=CONNECT_SECONDS)
    except requests.RequestException as error:
        host = urllib.parse.urlsplit(urls[0]).hostname
        return f"{host} cannot be reached ({type(error).__name__})"
    return ""


def _check_format(name: str, builder) -> None:
    from tensorflow_datasets.core import file_adapters

    formats = builder.info.available_file_formats()
    if formats & file_adapters.FileFormat.with_random_access():
        return
    shown = ", ".join(sorted(f.value for f in formats)) or "an unknown format"
    directory = builder.data_dir
    raise InputError(
        f"{name} is prepared in {directory} as {shown}, which has no random access. "
        "Give another data_dir, where it is prepared anew as array_record, or convert "
        f"it:\n  tfds convert_format --dataset_version_dir={directory} "
        "--out_file_format=array_record\n(which needs pip install apache-beam "
        "mlcroissant)."
    )


def _open(directory: str, split: str, image_key: str):
    import tensorflow_datasets as tfds

    # TFDS would decode with OpenCV where it is installed: other pixels.
    skip = {image_key: tfds.decode.SkipDecoding()}
    builder = tfds.builder_from_directory(directory)
    return builder.as_data_source(split=split, decoders=skip)


def _unknown(name: str, data_dir: str | None) -> InputError:
    import tensorflow_datasets as tfds

    known = ["digits", *tfds.list_builders(with_community_datasets=False)]
    wanted = re.sub(r"\W", "", re.split(r"[/:]", name)[0]).lower()
    close = difflib.get_close_matches(wanted, known, n=3)
    if os.path.isdir(os.path.expanduser(name)):
        close = [f"folder:{name}"]
    mean = f" Did you mean {' or '.join(close)}?" if close else ""
    return InputError(
        f"unknown data set {name!r}.{mean} Known: digits (embedded), the image "
        "classification sets of TFDS by name (cifar10, cifar100, imagenet2012, ...; "
        f"prepared ones were looked for in {_shown(data_dir)}), folder:/path, "
        "cifar:/path, hf:org/name and tar:/path."
    )


def _unavailable(name: str, directory: str, cause: str) -> InputError:
    return InputError(
        f"{name} is not prepared in {directory} and cannot be downloaded: {cause}. "
        f"Point --config.dataset.data_dir at the folder that holds {name}. {EMBEDDED}"
    )


def _shown(data_dir: str | None) -> str:
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return os.path.abspath(os.path.expanduser(data_dir or default))


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines).rstrip(".") or type(error).__name__
    return text if len(text) <= 500 else text[:500] + " ..."


@contextlib.contextmanager
def _quiet():
    """Without TFDS's warning that a set not yet prepared has no files."""
    from absl import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)
