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
import dataclasses
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
    "holds no Parquet files, and the Hub has not converted it (or not whole). Download "
    "it, and give it as folder:/path or tar:/path."
)
IMAGES = ("image", "img")  # columns, the first counts


@dataclasses.dataclass(frozen=True)
class Columns:
    """Where a Parquet file has images and labels.

    Attributes:
      image, label: Their names.
      class_names: In the order of the labels; None where nothing says them.
      notes: What was chosen among several.
    """

    image: str
    label: str
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...]


def open_hub(name: str, split: str, data_dir: str | None = None) -> EncodedSource:
    """Opens a split of Parquet files.

    Args:
      name: See the module.
      split: `train`, `val`, `test` or another that the files' names say, or a slice.
      data_dir: Where the images are unpacked to, see `parquet`; a folder in the user's
        cache by default. Downloads go where huggingface_hub keeps them.

    Raises:
      InputError: The data set, the split or a column is missing, the data set is gated,
        the Hub cannot be reached, or the files are damaged or no image classification.
    """
    place, options = parse(name)
    files, fetch = _local(place) if place[0] in "/.~" else _remote(place, options)
    found = shards.by_split(_of_config(name, files, options.get("config")), name)
    base, split, notes = choose_split(split, found, name)
    paths = fetch(found[base])
    columns = find_columns(name, *parquet.read_schema(paths[0]), options)
    raw, ends = parquet.read_labels(paths, columns.label)
    class_names = columns.class_names
    if class_names is None:
        train = raw
        if base != "train" and "train" in found:
            train, _ = parquet.read_labels(fetch(found["train"]), columns.label)
        class_names = labels.class_names(train, name)
    labels.check_class_names(class_names, name)

    _, start, stop = parse_split(split, {base: len(raw)})
    rows = np.random.RandomState(0).permutation(len(raw))[start:stop]
    unpacked = parquet.unpack(name, paths, columns.image, data_dir)
    records = parquet.ParquetRecords(unpacked, paths, ends, rows, raw[rows])
    records.labels = labels.numbers(raw[rows], class_names, records.where)
    return open_records(
        name,
        split,
        class_names,
        records,
        sizes=records.sizes(),
        side=records.side(),
        notes=(*notes, *columns.notes),
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
) -> Columns:
    """Finds image and label by what `datasets` wrote, by type and by usual names.

    Args:
      features: See `parquet.read_schema`.
      options: `image` and `label`, where the user has said them.

    Raises:
      InputError: A column is missing, has another type, or there are several.
    """
    kinds = dict(zip(schema.names, schema.types, strict=True))
    images = [c for c in kinds if parquet.is_image(kinds[c])]
    values = [c for c in kinds if parquet.is_label(kinds[c])]
    marked = {
        kind: [c for c, f in features.items() if f.get("_type") == kind and c in kinds]
        for kind in ("Image", "ClassLabel")
    }
    shown = ", ".join(f"{c} ({kinds[c]})" for c in kinds)
    image = _one_of("image", marked["Image"], images, IMAGES, options)
    label = _one_of("label", marked["ClassLabel"], values, labels.USUAL, options)
    for what, found in (("image", image), ("label", label)):
        if found is None:
            expected = "bytes" if what == "image" else "int or string"
            asked = "that can be told from the others"
            asked = repr(options[what]) if what in options else asked
            raise InputError(
                f"{name} has no {what} column {asked} (expected {expected}). Name it: "
                f"...,{what}=COLUMN. Found: {shown[:400]}."
            )
    names = features.get(label, {}).get("names")
    others = [c for c in marked["ClassLabel"] if c != label]
    note = f"{name}: the labels are those of {label}; there are also {listed(others)}"
    return Columns(
        image=image,
        label=label,
        class_names=tuple(map(str, names)) if isinstance(names, list) else None,
        notes=(note,) if others and "label" not in options else (),
    )


def _one_of(
    what: str,
    marked: Sequence[str],
    typed: Sequence[str],
    usual: Sequence[str],
    options: Mapping,
) -> str | None:
    """The column that is meant; None where it cannot be told."""
    if what in options:
        return options[what] if options[what] in typed else None
    candidates = [c for c in marked if c in typed] or typed
    if named := [c for c in usual if c in candidates]:
        return named[0]
    # Any number could be a label, but hardly any bytes are no image.
    certain = candidates if what == "image" else [c for c in candidates if c in marked]
    return certain[0] if len(certain) == 1 else None


def _of_config(name: str, files: Sequence[str], config: str | None) -> list[str]:
    """The files of one config: those in one folder, but for `data` and splits."""
    found: dict[str, list[str]] = {}
    for file in files:
        folders = [f for f in Path(file).parts[:-1] if f != "data" and not kind_of(f)]
        found.setdefault("/".join(folders), []).append(file)
    if config is None and len(found) > 1:
        config = next((c for c in ("", "default") if c in found), None)
    if config is None and len(found) > 1:
        raise InputError(
            f"{name} has several configs: add ,config=NAME with one of "
            f"{listed(sorted(found))}."
        )
    config = next(iter(found)) if config is None else config.strip("/")
    if config not in found:
        raise InputError(
            f"{name}: no config {config!r}, found {listed(sorted(found)) or 'none'}."
        )
    return found[config]


def _parquet(files) -> list[str]:
    """The Parquet files of a listing, but for `partial-*`: the first 5 GB of a set."""
    return sorted(f for f in files if f.endswith(".parquet") and "partial-" not in f)


def _local(place: str) -> tuple[list[str], Callable]:
    root = Path(place).expanduser()
    if root.is_file() and root.suffix == ".parquet":
        return [root.name], lambda files: [str(root.parent / f) for f in files]
    if not root.is_dir():
        raise InputError(
            f"{PREFIX}{place}: the folder {root.absolute()} does not exist. Expected "
            f"{EXPECTED}."
        )
    found = _parquet(
        os.path.relpath(os.path.join(folder, file), root)
        for folder, _, files in os.walk(root, followlinks=True)
        for file in files
    )
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
    except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError):
        raise
    except hub.errors.HFValidationError:
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
    except errors.GatedRepoError as error:
        raise InputError(
            f"{PREFIX}{place} is gated: accept its terms on {page}, then log in with "
            "`hf auth login` or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        if revision == CONVERTED:
            raise InputError(f"{PREFIX}{place} {NO_PARQUET}") from error
        raise InputError(
            f"{PREFIX}{place} has no revision {revision!r}. Its branches and tags: "
            f"{page}/tree/main."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"the Hub has no data set {place!r}, or it is private: check the name, or "
            f"log in with `hf auth login`. A folder here is given as {PREFIX}./{place}."
        ) from error
    except errors.HFValidationError as error:
        raise InputError(f"{PREFIX}{place}: expected {EXPECTED}.") from error
    except Exception as error:
        text = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise InputError(
            f"{PREFIX}{place} cannot be downloaded, and is not whole in the Hub's "
            f"cache: {text}. Where there is no network, give a folder of its Parquet "
            f"files: {PREFIX}/path."
        ) from error
