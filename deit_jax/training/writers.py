"""Where the figures of a run go: TensorBoard through clu, and metrics.jsonl."""

import io
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from deit_jax import files
from deit_jax.errors import InputError
from deit_jax.files import replace_file

METRICS = "metrics.jsonl"


def create(workdir: str | os.PathLike, start: int = 0):
    """clu's writer for TensorBoard, or `EventWriter` where TensorFlow is missing.

    Args:
      start: The step that the run goes on from. TensorBoard drops what earlier starts
        wrote after it.
    """
    _mark_start(workdir, start)
    try:
        import tensorflow as tf

        # TensorFlow would otherwise take the memory of every GPU for itself.
        tf.config.set_visible_devices([], "GPU")
        from clu import metric_writers
    except ImportError as error:
        print(
            f"TensorBoard events are written without TensorFlow ({error}).",
            file=sys.stderr,
        )
        return EventWriter(workdir)
    return metric_writers.AsyncWriter(metric_writers.SummaryWriter(os.fspath(workdir)))


def _mark_start(workdir: str | os.PathLike, start: int) -> None:
    """Writes an event file that only says: the steps after `start` come (again).

    The first of these marks changes nothing, each later one makes TensorBoard forget.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.summary.writer.record_writer import RecordWriter

    # It forgets this step and all later ones. What step 0 shows is written again by a
    # run that starts there.
    first = start + 1 if start else 0
    session = SessionLog(status=SessionLog.START)
    now = time.time()
    # Event files are read by name: this one before that of the writer, which has the
    # host's name in place of the 0.
    name = f"events.out.tfevents.{int(now):010}.0-start.{os.getpid()}"
    with open(Path(workdir) / name, "wb") as file:
        writer = RecordWriter(file)
        for event in (
            Event(file_version="brain.Event:2", wall_time=now),
            Event(step=first, session_log=session, wall_time=now),
        ):
            writer.write(event.SerializeToString())


class EventWriter:
    """The methods of clu's writer that the loop calls, over tensorboard alone."""

    def __init__(self, workdir: str | os.PathLike):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(os.fspath(workdir))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=tag, simple_value=float(value))
            for tag, value in scalars.items()
        ]
        self._write(step, Summary(value=values))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        from tensorboard.plugins.text import metadata

        strings = {tag: ((), [text.encode()]) for tag, text in texts.items()}
        self._write_strings(step, strings, metadata)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Each of `images` is uint8 [N, H, W, 3]; TensorBoard shows all N."""
        from tensorboard.plugins.image import metadata

        strings = {}
        for tag, pictures in images.items():
            count, height, width, _ = pictures.shape
            sides = [str(width).encode(), str(height).encode()]
            strings[tag] = ((2 + count,), [*sides, *map(_png, pictures)])
        self._write_strings(step, strings, metadata)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write_strings(self, step: int, tensors: Mapping, plugin_metadata) -> None:
        """By tag, the shape and the strings of what a plugin of tensorboard shows."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        values = [
            Summary.Value(
                tag=tag,
                metadata=plugin_metadata.create_summary_metadata(tag, description=""),
                tensor=TensorProto(
                    dtype=DT_STRING,
                    string_val=strings,
                    tensor_shape=TensorShapeProto(
                        dim=[TensorShapeProto.Dim(size=size) for size in shape]
                    ),
                ),
            )
            for tag, (shape, strings) in tensors.items()
        ]
        self._write(step, Summary(value=values))

    def _write(self, step: int, summary) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(step=step, summary=summary, wall_time=time.time()))


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


class MetricsFile:
    """`metrics.jsonl`: one object a write, `{"step": int, "name": value, ...}`.

    On opening it is cut back to `restored_step`: what a killed run wrote after its last
    checkpoint is computed, and written, again.
    """

    def __init__(self, workdir: str | os.PathLike, restored_step: int):
        path = Path(workdir) / METRICS
        self.kept = [row for row in read(workdir) if row["step"] <= restored_step]
        replace_file(path, "".join(json.dumps(row) + "\n" for row in self.kept))
        self._file = open(path, "a")  # noqa: SIM115 - closed by close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Returns when all rows are on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read(workdir: str | os.PathLike) -> list[dict]:
    """The rows of metrics.jsonl before the first that is none.

    The last line may have been cut short by a kill. Every row has a whole `step`, and
    all of its values are numbers.

    Raises:
      InputError: It is no regular file, or cannot be read.
    """
    path = Path(workdir) / METRICS
    if not path.exists():
        return []
    try:
        files.check_regular(path)
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read: {error}. Move it away, or give another --workdir."
        ) from error
    rows = []
    for line in content.splitlines():
        try:
            row = json.loads(line)
            files.check(row, {"step": int})
            files.check(row, {...: float})
        except ValueError:
            break
        rows.append(row)
    return rows
