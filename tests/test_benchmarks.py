"""The benchmarks that are too long for a test: their commands and their tables."""

import argparse
import json
import re
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict

from benchmarks import augmentation, variants
from configs import deit, vit
from deit_jax.models.params import abstract_params, count_parameters
from deit_jax.models.variants import create
from experiments import teacher_views


@pytest.fixture
def flags(tmp_path):
    return argparse.Namespace(
        teacher="t.pt",
        arch="resnet50",
        image_size=64,
        data_dir="data",
        precision="float32",
        out=tmp_path,
        seeds=2,
    )


def fields_of(command):
    """{dotted field: text} of the `--config.` flags."""
    matches = (re.fullmatch(r"--config\.([\w.]+)=(.*)", part) for part in command)
    return {match[1]: match[2] for match in matches if match}


def test_commands_name_fields_that_exist(flags):
    commands = [
        teacher_views.train_command(flags, row, 1) for row in teacher_views.ROWS
    ]
    commands += [teacher_views.export_command(flags, c) for c in teacher_views.CACHES]
    for command in commands:
        [recipe] = [part for part in command if part.startswith("--config=")]
        module = vit if "vit.py" in recipe else deit
        known = flatten_dict(module.get_config("cifar10").to_dict(), sep=".")
        assert fields_of(command).keys() <= known.keys()


def test_a_run_reads_the_cache_that_an_export_writes(flags):
    for cache in teacher_views.CACHES:
        exported = fields_of(teacher_views.export_command(flags, cache))
        rows = [row for row, (c, *_) in teacher_views.ROWS.items() if c == cache]
        assert rows
        for row in rows:
            trained = fields_of(teacher_views.train_command(flags, row, 0))
            for field, value in exported.items():
                if field not in ("distillation.num_views", "distillation.kind"):
                    assert trained[field] == value
            if trained.get("distillation.kind") == "features":
                assert exported["distillation.kind"] == "features"
            assert int(trained["distillation.num_views"]) <= teacher_views.EPOCHS


def test_the_table_holds_mean_and_standard_deviation(flags):
    for number, row in enumerate(teacher_views.ROWS):
        for seed in range(flags.seeds):
            heads = ("class",) if row == "no teacher" else teacher_views.HEADS
            top1 = {head: {"top1": 0.5 + number / 100 + seed / 50} for head in heads}
            workdir = teacher_views.workdir(flags, row, seed)
            workdir.mkdir()
            (workdir / "summary.json").write_text(
                json.dumps({"eval": top1, "eval_ema": top1})
            )
    text, figures = teacher_views.table(flags)
    lines = text.splitlines()
    assert lines[2] == "| no teacher | 51.00 +- 1.41 |  |  | 51.00 +- 1.41 |  |"
    assert lines[3].startswith("| plain, linear | 52.00 +- 1.41 | 52.00")
    assert figures["same, exact"]["eval/mean"] == [0.53, 0.55]


@pytest.mark.slow
def test_the_cost_of_augmentation_is_measured():
    seconds = augmentation.measure("vit_nano_patch8_32", 4, "crop_flip", rounds=2)
    assert set(seconds) == {"augmentation", "step with", "step without"}
    assert all(len(values) == 2 and min(values) > 0 for values in seconds.values())


@pytest.mark.slow
def test_the_table_of_sizes_in_the_documents_is_what_the_command_prints():
    page = Path(teacher_views.__file__).parents[1] / "docs" / "performance.md"
    lines = page.read_text().splitlines()
    assert f"| {variants.HEADER} |" in lines
    for row in (*variants.rows("nano"), *variants.rows("small_patch16_224")):
        assert row in lines


def test_a_figure_by_depth_is_that_of_the_whole_model():
    model = create("deit3_nano_distilled_patch8_32", num_classes=10)

    def count(model):
        return count_parameters(abstract_params(model))

    assert variants.by_depth(count, model) == count(model)
    assert variants.by_depth(variants.kept, model) == variants.kept(model)
