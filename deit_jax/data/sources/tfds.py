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
import functools
import importlib.util
import os
import re
import textwrap
import urllib.parse
from pathlib import Path

import numpy as np

from deit_jax.data.sources import fingerprints
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


@dataclasses.dataclass(eq=False, repr=False)
class TfdsRecords:
    """The examples of a prepared split, opened on first use and once a process.

    Attributes:
      directory: Of the prepared set: `<data_dir>/<name>/<version>`.
      split: With an absolute slice: `train[0:45000]`.
      keys: The features that hold image and label.
      length: Examples in the split.
      num_classes: Labels are in 0 .. num_classes - 1.
      name: What an error message calls the set.
    """

    directory: str
    split: str
    keys: tuple[str, str]
    length: int
    num_classes: int
    name: str

    def __len__(self) -> int:
        return self.length

    def __getstate__(self) -> dict:
        fields = (field.name for field in dataclasses.fields(self))
        return {name: self.__dict__[name] for name in fields}

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int32 [N]; reads every example the first time."""
        return fingerprints.scan(fingerprints.sample(self, 0))[0]

    @functools.cached_property
    def _examples(self):
        import tensorflow_datasets as tfds

        # TFDS would decode with OpenCV where it is installed: other pixels.
        skip = {self.keys[0]: tfds.decode.SkipDecoding()}
        builder = tfds.builder_from_directory(self.directory)
        return builder.as_data_source(split=self.split, decoders=skip)

    def read(self, indices) -> list[tuple[bytes, int]]:
        image, label = self.keys
        try:
            examples = self._examples.__getitems__(list(indices))
            pairs = [(bytes(e[image]), int(e[label])) for e in examples]
        except ImportError as error:
            raise InputError(
                "TFDS needs the package array_record to read without TensorFlow: pip "
                f"install array_record ({error})."
            ) from error
        except Exception as error:  # array_record and protobuf raise anything
            raise InputError(
                f"{self.directory} cannot be read at {self.where(indices[0])}: "
                f"{_short(error)}. Delete the folder: TFDS prepares it again."
            ) from error
        for index, (_, label) in zip(indices, pairs, strict=True):
            if not 0 <= label < self.num_classes:
                raise InputError(
                    f"{self.where(index)} has label {label}, expected 0 .. "
                    f"{self.num_classes - 1}: choose a split with labels."
                )
        return pairs

    def where(self, index: int) -> str:
        return f"{self.name} {self.split}, example {index}"


def open_tfds(name: str, split: str, data_dir: str | None = None) -> EncodedSource:
    """Opens a split of a TFDS set, which is prepared first where it is missing.

    Args:
      name: As in the TFDS catalogue, with config and version if wanted:
        `imagenet_resized/32x32`, `cifar10:3.0.2`. Without a version, the newest one
        that is prepared; else the newest that TFDS can make.
      data_dir: By default `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
    """
    builder = _builder(name, data_dir)
    info, directory = builder.info, str(builder.data_dir)
    keys = _keys(name, info.features)  # before a long download
    with _quiet():
        prepared = builder.is_prepared()
    if not prepared:
        _prepare(name, builder)
    _check_format(name, builder)
    image, label = (info.features[key] for key in keys)
    class_names = tuple(map(str, label.names or range(label.num_classes or 0)))
    lengths = {key: int(value.num_examples) for key, value in info.splits.items()}
    base, start, stop = parse_split(split, lengths)
    whole, length = info.splits[base], stop - start
    records = TfdsRecords(
        directory, f"{base}[{start}:{stop}]", keys, length, len(class_names), name
    )
    total = int(whole.num_bytes) * length // lengths[base]
    labels, sums = fingerprints.scan(fingerprints.sample(records, total))
    shards = f"{whole.num_bytes} {whole.shard_lengths}"
    if len(labels) == length:
        records.labels, shards = labels, ""
    names = "\n".join(class_names)
    found = fingerprints.fingerprint(
        "tfds", "1", info.full_name, split, length, names, shards, sums
    )
    shape = None if None in image.shape[:2] else (*image.shape[:2], 3)
    return EncodedSource(name, split, class_names, records, found, image_shape=shape)


def _builder(name: str, data_dir: str | None):
    """The TFDS builder: of prepared files where there are any, else of TFDS's code."""
    if not NAME.fullmatch(name):
        raise _unknown(name, data_dir)
    import tensorflow_datasets as tfds

    # A version, even an open one, makes TFDS look for prepared files first: what a user
    # has prepared is used though TFDS's code has moved on.
    version = {} if ":" in name else {"version": "*.*.*"}
    place = os.path.expanduser(data_dir) if data_dir else None
    try:
        with _quiet():
            return tfds.builder(name, data_dir=place, **version)
    except tfds.core.DatasetNotFoundError as error:
        raise _unknown(name, data_dir) from error
    except Exception as error:  # a config or version it lacks, a damaged info file
        raise InputError(
            f"TFDS cannot open {name!r} under {_shown(data_dir)}: {_short(error)}."
        ) from error


def _keys(name: str, features) -> tuple[str, str]:
    """The features that hold image and label."""
    import tensorflow_datasets as tfds

    found = dict(features.items()) if hasattr(features, "items") else {}
    keys = []
    # Of several (cifar100 has coarse labels too) the usual one.
    for kind, usual in (
        (tfds.features.Image, "image"),
        (tfds.features.ClassLabel, "label"),
    ):
        fitting = [key for key, value in found.items() if isinstance(value, kind)]
        keys += [usual] if usual in fitting else fitting
    if [isinstance(found[key], tfds.features.Image) for key in keys] != [True, False]:
        shown = ", ".join(f"{k} ({type(v).__name__})" for k, v in found.items())
        raise InputError(
            f"{name} is no image classification set: expected one Image and one "
            f"ClassLabel, its features are {shown or features}."
        )
    return tuple(keys)


def _prepare(name: str, builder) -> None:
    """Downloads and prepares the set, or says in one message why it cannot be done."""
    where = f"{name} is not prepared in {builder.data_dir}"
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"{where}, and preparing it needs TensorFlow (reading does not): pip "
            f"install tensorflow-cpu. {EMBEDDED}"
        )
    try:
        _check_network(builder)
        import tensorflow as tf

        # TensorFlow would take all memory of a GPU that JAX is about to use.
        with contextlib.suppress(RuntimeError):  # it has them already
            tf.config.set_visible_devices([], "GPU")
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # network, disk, checksums, manual downloads, Kaggle ...
        raise InputError(
            f"{where} and cannot be downloaded: {_short(error)}. Point "
            f"--config.dataset.data_dir at the folder that holds {name}. {EMBEDDED}"
        ) from error


def _check_network(builder) -> None:
    """Without one TFDS itself retries for more than three minutes."""
    import requests

    downloads = Path(builder.data_path).parents[builder.info.full_name.count("/")]
    urls = [u for u in builder.url_infos or () if u.startswith("http")]
    downloads /= "downloads"
    downloaded = [*downloads.glob("*.INFO"), *downloads.glob("*/*.INFO")]
    if not urls or downloaded or builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return
    try:
        requests.head(urls[0], timeout=CONNECT_SECONDS)
    except requests.RequestException as error:
        host = urllib.parse.urlsplit(urls[0]).hostname
        raise InputError(
            f"{host} cannot be reached ({type(error).__name__})"
        ) from error


def _check_format(name: str, builder) -> None:
    from tensorflow_datasets.core import file_adapters

    formats = builder.info.available_file_formats()
    if formats & file_adapters.FileFormat.with_random_access():
        return
    shown = ", ".join(sorted(f.value for f in formats)) or "an unknown format"
    raise InputError(
        f"{name} is prepared in {builder.data_dir} as {shown}, which has no random "
        "access. Give another data_dir, or convert it (pip install apache-beam "
        "mlcroissant):\n  tfds convert_format --out_file_format=array_record "
        f"--dataset_version_dir={builder.data_dir}"
    )


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


def _shown(data_dir: str | None) -> str:
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return os.path.abspath(os.path.expanduser(data_dir or default))


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return textwrap.shorten(text, 500, placeholder=" ...")


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
