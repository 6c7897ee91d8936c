"""Data sets of the Hugging Face Hub that are Parquet files, and folders of such files.

    hf:org/name                        of the Hub
    hf:/path, hf:./path, hf:~/path     a folder, no network
    hf:org/name,config=C,image=I,label=L,revision=R

`config` names one of several folders of Parquet files, `image` and `label` columns that
are not found by themselves, `revision` a branch, a tag or a commit. A data set that is
no Parquet is taken from the branch into which the Hub converts most of them.

The rows of a split are shuffled by a fixed permutation: many sets are sorted by class,
and a slice such as `train[:90%]` should hold every class in about its share.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from deit_jax.data.sources import labels, parquet, shards
from deit_jax.data.sources.encoded import EncodedSource, open_records
from deit_jax.data.sources.split import choose_split, kind_of, parse_split
from deit_jax.errors import InputError, listed

PREFIX = "hf:"
OPTIONS = ("config", "image", "label", "revision")
CONVERTED = "refs/convert/parquet"  # the Hub's branch
EXPECTED = (
    "hf:org/name on the Hub, or hf:/path, hf:./path or hf:~/path, a folder of Parquet "
    "files; then ,config=... ,image=... ,label=... ,revision=... where needed"
)
NO_PARQUET = (
    "holds no Parquet files, and the Hub has not converted it. Download it, and give "
    "it as folder:/path or tar:/path."
)
IMAGES = ("image", "img")  # columns, the first counts


def open_hub(name: str, split: str, data_dir: str | None = None) -> EncodedSource:
    """Opens a split of Parquet files.

    Images are unpacked to `data_dir`, see `parquet`. Downloads go where huggingface_hub
    keeps them.
    """
    place, options = parse(name)
    files, fetch = _local(place) if place[0] in "/.~" else _remote(place, options)
    found = shards.by_split(_of_config(name, files, options.get("config")), name)
    base, split, notes = choose_split(split, found, name)
    paths = fetch(found[base])
    schema, features = parquet.read_schema(paths[0])
    image, label = find_columns(name, schema, features, options)
    raw, ends = parquet.read_labels(paths, label)
    class_names = tuple(map(str, features.get(label, {}).get("names") or ()))
    if not class_names:
        train = raw
        if base != "train" and "train" in found:
            train, _ = parquet.read_labels(fetch(found["train"]), label)
        class_names = labels.class_names(train, name)

    _, start, stop = parse_split(split, {base: len(raw)})
    rows = np.random.RandomState(0).permutation(len(raw))[start:stop]
    unpacked = parquet.unpack(name, paths, image, data_dir)
    records = parquet.ParquetRecords(unpacked, paths, ends, rows, raw[rows])
    records.labels = labels.numbers(raw[rows], class_names, records.where)
    sizes, shape = records.measure()
    return open_records(
        name, split, class_names, records, sizes, image_shape=shape, notes=tuple(notes)
    )


def parse(name: str) -> tuple[str, dict[str, str]]:
    """What follows `hf:`, and the options behind it.

    Raises:
      InputError: Nothing follows, or an option is unknown.
    """
    place, *rest = name.removeprefix(PREFIX).split(",")
    options = dict(word.partition("=")[::2] for word in rest)
    if not place or not all(options.values()) or not options.keys() <= set(OPTIONS):
        raise InputError(f"{name!r}: expected {EXPECTED}.")
    return place, options


def find_columns(
    name: str, schema: pa.Schema, features: Mapping, options: Mapping
) -> list[str]:
    """Finds image and label by what `datasets` wrote, by type and by usual names.

    Args:
      features: See `parquet.read_schema`.
      options: `image` and `label`, where the user has said them.

    Raises:
      InputError: A column is missing, has another type, or there are several.
    """
    found = []
    for what, kind, fits, usual, expected in (
        ("image", "Image", parquet.is_image, IMAGES, "bytes"),
        ("label", "ClassLabel", parquet.is_label, labels.USUAL, "int or string"),
    ):
        typed = [field.name for field in schema if fits(field.type)]
        marked = [c for c in typed if features.get(c, {}).get("_type") == kind]
        # Any number could be a label, but hardly any bytes are no image.
        certain = marked or (typed if what == "image" else [])
        named = [c for c in usual if c in (marked or typed)]
        column = options.get(what) or next(iter(named), None)
        if column is None and len(certain) == 1:
            column = certain[0]
        if column not in typed:
            asked = repr(column) if column else "that can be told from the others"
            shown = ", ".join(f"{field.name} ({field.type})" for field in schema)
            raise InputError(
                f"{name} has no {what} column {asked} (expected {expected}). Name it: "
                f"...,{what}=COLUMN. Found: {shown[:400]}."
            )
        found.append(column)
    return found


def _of_config(name: str, files: Sequence[str], config: str | None) -> list[str]:
    """The files of one config: those in one folder, but for `data` and splits."""
    found: dict[str, list[str]] = {}
    for file in files:
        folders = [f for f in Path(file).parts[:-1] if f != "data" and not kind_of(f)]
        found.setdefault("/".join(folders), []).append(file)
    if config is None:
        config = next((c for c in ("", "default") if c in found), None)
        config = next(iter(found)) if len(found) == 1 else config
    if config not in found:
        raise InputError(
            f"{name} has several configs: add ,config=NAME with one of "
            f"{listed(sorted(found))}."
        )
    return found[config]


def _parquet(files) -> list[str]:
    """The Parquet files of a listing, but for `partial-*`: the first 5 GB of a set."""
    return sorted(f for f in files if f.endswith(".parquet") and "partial-" not in f)


def _local(place: str) -> tuple[list[str], Callable]:
    root = Path(place).expanduser()
    if not root.is_dir():
        raise InputError(
            f"{PREFIX}{place}: the folder {root.absolute()} does not exist. Expected "
            f"{EXPECTED}."
        )
    found = _parquet(str(path.relative_to(root)) for path in root.rglob("*.parquet"))
    if not found:
        raise InputError(
            f"{PREFIX}{place}: the folder {root.absolute()} holds no *.parquet. Shards "
            "are given as tar:..., images in class folders as folder:..."
        )
    return found, lambda files: [str(root / file) for file in files]


def _remote(place: str, options: Mapping) -> tuple[list[str], Callable]:
    """The Parquet files of a data set, and what downloads some of them."""
    asked = options.get("revision")
    for revision in (asked,) if asked else (None, CONVERTED):
        with _explained(place, revision):
            files = _parquet(_listing(place, revision))
        if files:
            break
    else:
        raise InputError(f"{PREFIX}{place} {NO_PARQUET}")

    def fetch(wanted: Sequence[str]) -> list[str]:
        with _explained(place, revision):
            root = _hub().snapshot_download(
                place, repo_type="dataset", revision=revision, allow_patterns=wanted
            )
        return [os.path.join(root, file) for file in wanted]

    return files, fetch


def _listing(place: str, revision: str | None) -> list[str]:
    """The files of a data set on the Hub or, without a network, in its cache."""
    hub = _hub()
    about = {"repo_type": "dataset", "revision": revision}
    try:
        return hub.HfApi().list_repo_files(place, **about)
    except (hub.errors.RepositoryNotFoundError, hub.errors.HFValidationError):
        raise
    except hub.errors.RevisionNotFoundError:
        raise
    except Exception:  # whatever the HTTP library of this version raises
        with contextlib.suppress(Exception):
            root = hub.snapshot_download(
                place, local_files_only=True, allow_patterns=[], **about
            )
            return [str(p.relative_to(root)) for p in Path(root).rglob("*.parquet")]
        raise


def _hub():
    try:
        import huggingface_hub.errors
    except ImportError as error:
        raise InputError(
            "hf: needs the package huggingface_hub: pip install huggingface_hub. A "
            "folder of Parquet files needs no more than pyarrow: hf:/path."
        ) from error
    return huggingface_hub


@contextlib.contextmanager
def _explained(place: str, revision: str | None) -> Iterator[None]:
    """Turns what huggingface_hub raises into a message of one line."""
    errors = _hub().errors
    page = f"https://huggingface.co/datasets/{place}"
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        said = {
            errors.GatedRepoError: f"is gated: accept its terms on {page}, then log in "
            "with `hf auth login` or set HF_TOKEN.",
            errors.RepositoryNotFoundError: "is no data set of the Hub, or private: "
            "check the name, or log in with `hf auth login`. A folder here is given as "
            f"{PREFIX}./{place}.",
            errors.RevisionNotFoundError: f"has no revision {revision!r}: see "
            f"{page}/tree/main.",
            errors.HFValidationError: f"is no name of the Hub: expected {EXPECTED}.",
            Exception: "cannot be downloaded, and is not whole in the Hub's cache: "
            f"{' '.join(str(error).split())[:300]}. Without a network, give a folder "
            f"of its Parquet files: {PREFIX}/path.",
        }
        if revision == CONVERTED:
            said[errors.RevisionNotFoundError] = NO_PARQUET
        why = next(said[kind] for kind in type(error).__mro__ if kind in said)
        raise InputError(f"{PREFIX}{place} {why}") from error
