"""The benchmark's images, at small scale: ImageNet's shape through the pipeline."""

import numpy as np
import pytest

from benchmarks import input_pipeline
from deit_jax.data import batches, sources
from deit_jax.data.pipeline import HostPipeline
from deit_jax.data.plan import BatchPlan


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


@pytest.mark.slow
def test_two_epochs_are_the_same_with_any_number_of_workers(folder):
    source = sources.load(f"folder:{folder}", "train")
    plan = BatchPlan(length=28, batch_size=8, seed=0, augment_seed=0)
    read = {}
    for workers in (0, 1, 2):
        with HostPipeline(source, size=24, workers=workers) as pipeline:
            read[workers] = list(
                batches.train_batches(pipeline, plan, start=0, stop=6, devices=2)
            )
    assert len(read[0]) == 6
    for workers in (1, 2):
        for ours, theirs in zip(read[0], read[workers], strict=True):
            assert ours.keys() == theirs.keys()
            for field, value in ours.items():
                np.testing.assert_array_equal(value, theirs[field])


def test_what_is_printed(folder, capsys):
    input_pipeline.measure(folder, workers=1, size=24, batch_size=8)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "1 workers, epoch 1",
        "1 workers, epoch 2",
        "1 workers, evaluation",
    ]


def test_what_is_printed_of_the_augmentation(capsys):
    input_pipeline.measure_augmentation("crop_flip", size=16, batch_size=4, rounds=2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("crop_flip, 16 px: ")
