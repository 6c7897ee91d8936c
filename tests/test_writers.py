import builtins
import io
import json
import time

import numpy as np
import pytest
from PIL import Image

from deit_jax.errors import InputError
from deit_jax.training import event_files, writers

SCALARS = {"train/loss": 0.5, "eval/class/top1": 0.25}
# Two of 5 x 7 pixels: neither side is the other, and no number of images.
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)


def read_events(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    events.Reload()
    return events


@pytest.fixture
def without_tensorflow(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "tensorflow" or name.startswith("tensorflow."):
            raise ImportError("No module named 'tensorflow'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.parametrize("library", ["clu", "tensorboard"])
def test_tensorboard_reads_what_is_written(
    tmp_path, library, request, monkeypatch, capsys
):
    """By clu through TensorFlow and, without that, by tensorboard alone."""
    if library == "clu":
        pytest.importorskip("tensorflow")
    else:
        request.getfixturevalue("without_tensorflow")
    writer = event_files.create(tmp_path)
    assert type(writer).__module__.startswith("clu.") == (library == "clu")
    for number in (1, 2):
        writer.write_scalars(number, SCALARS)
    writer.write_texts(0, {"config": "some text"})
    writer.write_images(3, {"augmentation": IMAGES})
    writer.flush()
    writer.close()
    monkeypatch.undo()  # TensorBoard itself reads with TensorFlow where it is
    assert ("without TensorFlow" in capsys.readouterr().err) == (library != "clu")
    events = read_events(tmp_path)
    scalars = events.Tensors if library == "clu" else events.Scalars
    for name in SCALARS:
        assert [event.step for event in scalars(name)] == [1, 2]
    assert events.Tensors("config")[0].tensor_proto.string_val == [b"some text"]
    # Under the images' tag stand width, height and a PNG each, for the image plugin.
    metadata = events.SummaryMetadata("augmentation")
    assert metadata.plugin_data.plugin_name == "images"
    [event] = events.Tensors("augmentation")
    assert event.step == 3
    assert [d.size for d in event.tensor_proto.tensor_shape.dim] == [4]
    width, height, *encoded = event.tensor_proto.string_val
    assert (width, height) == (b"7", b"5")
    opened = [Image.open(io.BytesIO(png)) for png in encoded]
    assert [image.format for image in opened] == ["PNG"] * 2
    np.testing.assert_array_equal([np.asarray(image) for image in opened], IMAGES)


@pytest.mark.parametrize("restored", [0, 2])
def test_tensorboard_forgets_what_comes_again(
    tmp_path, restored, without_tensorflow, monkeypatch
):
    from tensorboard.backend.event_processing import plugin_event_accumulator

    first = event_files.create(tmp_path)
    for step in (0, 1, 2, 3, 4):
        first.write_scalars(step, {"loss": 1.0})
    first.close()
    time.sleep(1.1)  # the names of the files count seconds
    second = event_files.create(tmp_path, restored)
    for step in range(restored + 1 if restored else 0, 5):
        second.write_scalars(step, {"loss": 2.0})
    second.close()
    monkeypatch.undo()
    events = plugin_event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    values = [e.tensor_proto.float_val[0] for e in events.Tensors("loss")]
    again = 2 if restored else 5
    assert values == [1.0] * (5 - again) + [2.0] * again
    assert [e.step for e in events.Tensors("loss")] == [0, 1, 2, 3, 4]


def test_metrics_file_is_cut_back_to_the_restored_step(tmp_path):
    first = writers.MetricsFile(tmp_path, 0)
    for step in (10, 20, 30):
        first.write(step, {"train/loss": step / 10})
    first.close()
    with open(tmp_path / writers.METRICS, "a") as file:
        file.write('{"step": 40, "train/lo')  # killed while writing
    second = writers.MetricsFile(tmp_path, 20)
    second.write(30, {"train/loss": 7.0})
    second.close()
    lines = (tmp_path / writers.METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 30]
    assert writers.read(tmp_path)[-1] == {"step": 30, "train/loss": 7.0}


@pytest.mark.parametrize(
    "line", [b'{"step": 2', b'{"a": 1}', b"3", b'{"step": 2, "a": "1"}', b"\xff"]
)
def test_rows_end_at_the_first_that_is_none(tmp_path, line):
    rows = [b'{"step": 1}', line, b'{"step": 3}']
    (tmp_path / writers.METRICS).write_bytes(b"\n".join(rows))
    assert writers.read(tmp_path) == [{"step": 1}]
    writers.MetricsFile(tmp_path, restored_step=3).close()
    assert (tmp_path / writers.METRICS).read_text() == '{"step": 1}\n'
    (tmp_path / writers.METRICS).unlink()
    (tmp_path / writers.METRICS).mkdir()
    with pytest.raises(InputError, match=r"metrics\.jsonl cannot be read"):
        writers.read(tmp_path)
