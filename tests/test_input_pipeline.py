"""The benchmark's images, at small scale: ImageNet's shape through the pipeline."""

import pytest

from benchmarks import input_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet-like")
    input_pipeline.make_folder(root, images=32, classes=4, sides=(30, 80))
    return root


def test_a_stopped_making_of_the_folder_is_taken_up_again(folder):
    paths = sorted(folder.rglob("*.jpg"))
    assert len(paths) == 32
    assert len(list((folder / "val").rglob("*.jpg"))) == 4
    before = paths[7].read_bytes()
    paths[7].unlink()
    input_pipeline.make_folder(folder, images=32, classes=4, sides=(30, 80))
    assert paths[7].read_bytes() == before


def test_what_is_printed(folder, capsys):
    input_pipeline.measure(folder, workers=1, size=24, batch_size=8)
    input_pipeline.measure_augmentation("crop_flip", size=16, batch_size=4, rounds=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:4]] == [
        "1 workers, epoch 1",
        "1 workers, epoch 2",
        "1 workers, evaluation",
        "crop_flip, 16 px",
    ]
    assert len(lines) == 5
