"""Images in a column of Parquet files.

A row group of a Parquet file is compressed as a whole: to read one image is to read a
hundred or a thousand of them. So the images are copied once into an Arrow file, which
is mapped into memory and read in any order, and by any number of processes, at the
price of a read (`index_files` says where it lies).
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deit_jax.data.sources import index_files
from deit_jax.data.sources.decode import square_side
from deit_jax.errors import InputError
from deit_jax.patience import Patience

BATCH = 128  # images in memory at once while they are copied
SCHEMA = pa.schema({"image": pa.binary(), "side": pa.int32()})


@dataclasses.dataclass(eq=False, repr=False)
class ParquetRecords:
    """Rows of Parquet files (see `deit_jax.data.sources.encoded`).

    Attributes:
      unpacked: The Arrow file of their images.
      files: The Parquet files, for messages.
      ends: The number of rows in them up to the end of each.
      rows: int [N], which rows, in which order.
      labels: int32 [N].
    """

    unpacked: Path
    files: Sequence[str]
    ends: np.ndarray
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "_table"}

    @functools.cached_property
    def _table(self) -> pa.Table:
        with _explained(str(self.unpacked)):
            return pa.ipc.open_file(pa.memory_map(str(self.unpacked))).read_all()

    def read(self, indices) -> Iterator[tuple[bytes, int]]:
        for index in indices:
            image = self._table["image"][int(self.rows[index])].as_py()
            yield image, int(self.labels[index])

    def where(self, index: int) -> str:
        row = int(self.rows[index])
        file = int(np.searchsorted(self.ends, row, side="right"))
        before = self.ends[file - 1] if file else 0
        return f"{self.files[file]}, row {row - before}"

    def measure(self) -> tuple[np.ndarray, tuple[int, int, int] | None]:
        """The bytes of each image, int64 [N]; (S, S, 3) where all files' images are."""
        lengths = pc.binary_length(self._table["image"]).to_numpy()
        sides = pc.unique(self._table["side"]).to_pylist()
        same = len(sides) == 1 and sides[0]
        return lengths[self.rows].astype(np.int64), (same, same, 3) if same else None


def read_schema(file: str) -> tuple[pa.Schema, Mapping]:
    """The columns of a file, and what `datasets` wrote of them: {column: feature}."""
    schema = _opened(file).schema_arrow
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        features = about["info"]["features"]
        return schema, {c: f for c, f in features.items() if isinstance(f, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):  # another program's
        return schema, {}


def read_labels(files: Sequence[str], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads one column of all files, without their images.

    Returns:
      int64 [N], or str (objects) [N]; and the rows up to the end of each file.
    """
    labels, ends = [], []
    for file in files:
        with _explained(file):
            [found] = _opened(file, column).read(columns=[column]).columns
            if found.null_count:
                row = pc.index(pc.is_null(found), True).as_py()
                raise InputError(f"{file}, row {row} has no label in {column!r}.")
            text = is_text(found.type)
            found = found.cast(pa.string() if text else pa.int64())
        labels.append(found.to_numpy())
        ends.append(len(found))
    return np.concatenate(labels), np.cumsum(ends)


def is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_label(kind: pa.DataType) -> bool:
    """Whether a column can hold labels: numbers or names."""
    return pa.types.is_integer(kind) or pa.types.is_boolean(kind) or is_text(kind)


def is_image(kind: pa.DataType) -> bool:
    """Whether a column can hold encoded images: bytes, or a struct with `bytes`."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def unpack(name: str, files: Sequence[str], column: str, data_dir: str | None) -> Path:
    """The Arrow file of the images of `files`, which is made where there is none."""
    path = index_files.path(data_dir, files, column, ending=".arrow")
    if path.exists():
        return path
    total = sum(_opened(file).metadata.num_rows for file in files)
    progress = Patience(f"{name}: images unpacked", total)
    with (
        index_files.writing(path, name) as partial,
        pa.OSFile(str(partial), "wb") as out,
        pa.ipc.new_file(out, SCHEMA) as to,
    ):
        for batch in _batches(files, column):
            to.write_batch(batch)
            progress.update(len(batch))
    progress.close()
    return path


def _batches(files: Sequence[str], column: str) -> Iterator[pa.RecordBatch]:
    for file in files:
        row = 0
        with _explained(file):
            opened = _opened(file, column)
            for batch in opened.iter_batches(BATCH, columns=[column]):
                images = batch.column(0)
                if pa.types.is_struct(images.type):
                    images = pc.struct_field(images, "bytes")
                if images.null_count:
                    row += pc.index(pc.is_null(images), True).as_py()
                    raise InputError(
                        f"{file}, row {row} has no bytes in {column!r}: the image lies "
                        "elsewhere. Embed the images, or give a folder of them."
                    )
                row += len(batch)
                images = images.cast(pa.binary())
                sides = [square_side(image.as_py()) for image in images]
                yield pa.record_batch([images, pa.array(sides, pa.int32())], SCHEMA)


def _opened(file: str, *columns: str) -> pq.ParquetFile:
    with _explained(file):
        # A row group can be larger than the memory: it is read page by page.
        opened = pq.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
    names = opened.schema_arrow.names
    if missing := sorted(set(columns) - set(names)):
        raise InputError(
            f"{file} has no column {missing[0]!r}, which the first file of the data "
            f"set has. Found: {', '.join(names)}."
        )
    return opened


@contextlib.contextmanager
def _explained(file: str) -> Iterator[None]:
    """Turns what pyarrow raises for a damaged file into a message that names it."""
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError) as error:
        text = " ".join(str(error).split())
        raise InputError(
            f"{file} is damaged, cut short or no Parquet: {text[:300]}. Bring it again."
        ) from error
