"""What the study plans: which commands, and which of them are done already."""

import argparse
import sys

import commands
import pytest
from absl import flags
from ml_collections import config_flags

from benchmarks.cores import Cores
from configs import study as config
from experiments import study


@pytest.fixture
def settings(tmp_path):
    return argparse.Namespace(
        scale="micro",
        data_dir="data",
        teacher="teacher.pt",
        arch="resnet50",
        image_size=64,
        precision="auto",
        out=tmp_path,
        seeds=2,
        epochs=20,
        cores=2,
        gpu=False,
    )


def finish(path, name):
    path.mkdir()
    (path / name).touch()


def test_the_large_export_has_a_part_for_each_core(settings):
    planned = study.exports(settings)
    assert list(planned) == [
        "export-deit",
        "export-deit_augment-0",
        "export-deit_augment-1",
    ]
    views = study.VIEWS[settings.scale]
    share = f"--only_views={views // 2}:{views}"
    assert share in planned["export-deit_augment-1"]
    assert not any("--only_views" in argument for argument in planned["export-deit"])
    settings.cores = 1
    assert list(study.exports(settings)) == ["export-deit", "export-deit_augment"]


def test_what_is_done_is_not_done_again(settings):
    finish(study.cache(settings, "deit"), "manifest.json")
    assert all(name.startswith("export-deit_aug") for name in study.exports(settings))
    assert list(study.finishes(settings)) == ["finish-deit_augment"]
    finish(study.workdir(settings, "vit", 0), "summary.json")
    assert list(study.runs(settings)) == [
        "deit-seed0",
        "deit_augment-seed0",
        "vit-seed1",
        "deit-seed1",
        "deit_augment-seed1",
    ]


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
@pytest.mark.parametrize("scale", study.VARIANTS)
@pytest.mark.parametrize("model", study.MODELS)
def test_a_run_has_the_config_of_its_export(settings, scale, model, monkeypatch):
    settings.scale = scale
    arguments = ["run", *study.student_flags(settings, model)]
    monkeypatch.setattr(sys, "argv", arguments)  # config_flags looks there too
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(arguments)
    run = values.config
    variant = study.VARIANTS[scale][model != "vit"]
    assert run.model.variant == variant
    assert run.dataset.data_dir == "data"
    assert (run.epochs, run.batch_size) == (20, 64)
    if model == "vit":
        assert run.distillation.kind == "none"
    else:
        assert run.distillation.logits_dir == str(study.cache(settings, model))
        views = {"deit": "plain", "deit_augment": "same"}
        assert run.distillation.view == views[model]
        exporting = study.export_command(settings, model)
        training = study.train_command(settings, model, 1, settings.out)
        shared = set(study.student_flags(settings, model))
        assert shared <= set(exporting) and shared <= set(training)


def test_the_full_study_has_the_models_of_its_config():
    for model in study.MODELS:
        variant = config.get_config(model).model.variant
        assert variant == study.VARIANTS["full"][model != "vit"]


def test_the_budget_adds_up():
    text = study.describe(
        {
            "export-deit": {"seconds": 60, "bytes": 1e6},
            "train-vit": {"seconds": 600, "bytes": 2e6},
        }
    )
    assert text.splitlines()[-1].split() == ["all", "11.0", "3.0"]


def test_a_command_that_fails_ends_the_study(tmp_path):
    cores = Cores(1)
    good = [sys.executable, "-c", "print('good')"]
    bad = [sys.executable, "-c", "import sys; sys.exit('bad')"]
    with pytest.raises(SystemExit, match=r"(?s)error: failed: .*See .*bad\.log"):
        cores.run({"good": good, "bad": bad, "never": good}, tmp_path)
    assert "good" in (tmp_path / "good.log").read_text()
    assert "bad" in (tmp_path / "bad.log").read_text()
    assert not (tmp_path / "never.log").exists()


def test_a_trial_gives_what_it_prints_or_ends_the_study():
    cores = Cores(2)
    assert cores.output([sys.executable, "-c", "print('fast')"]) == "fast\n"
    with pytest.raises(SystemExit, match=r"(?s)slow.*error: failed: "):
        cores.output([sys.executable, "-c", "import sys; sys.exit('slow')"])


def test_bad_flags_are_one_message():
    done = commands.run("experiments.study", "--scale=huge", "--data_dir=x")
    assert done.returncode == 2
    assert "invalid choice: 'huge'" in done.stderr
