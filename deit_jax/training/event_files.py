"""TensorBoard's event files of a run, through clu where TensorFlow is installed."""

import io
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto


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
    # It forgets this step and all later ones. What step 0 shows is written again by a
    # run that starts there.
    first = start + 1 if start else 0
    session, now = SessionLog(status=SessionLog.START), time.time()
    # Event files are read by name: this one before that of the writer, which has the
    # host's name in place of the 0.
    name = f"events.out.tfevents.{int(now):010}.0-start.{os.getpid()}"
    with open(Path(workdir) / name, "wb") as file:
        writer = RecordWriter(file)
        version, mark = {"file_version": "brain.Event:2"}, {"session_log": session}
        for fields in (version, mark | {"step": first}):
            writer.write(Event(wall_time=now, **fields).SerializeToString())


class EventWriter:
    """The methods of clu's writer that the loop calls, over tensorboard alone."""

    def __init__(self, workdir: str | os.PathLike):
        self._writer = EventFileWriter(os.fspath(workdir))
        self.flush, self.close = self._writer.flush, self._writer.close

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        for tag, value in scalars.items():
            self._write(step, Summary.Value(tag=tag, simple_value=float(value)))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for tag, text in texts.items():
            self._write(step, *text_pb(tag, text).value)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Each of `images` is uint8 [N, H, W, 3]; TensorBoard shows all N."""
        metadata = image_metadata.create_summary_metadata(None, description="")
        for tag, stack in images.items():
            _, height, width, _ = stack.shape
            strings = [str(width).encode(), str(height).encode(), *map(_png, stack)]
            tensor = make_tensor_proto(strings, dtype=np.object_)
            self._write(step, Summary.Value(tag=tag, metadata=metadata, tensor=tensor))

    def _write(self, step: int, *values: Summary.Value) -> None:
        summary = Summary(value=values)
        self._writer.add_event(Event(step=step, summary=summary, wall_time=time.time()))


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
