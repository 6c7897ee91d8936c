"""The command as a user types it: into a run directory, and out of one."""

import dataclasses
import json
import sys
import time
from unittest import mock

import commands
import jax
import numpy as np
import pytest
import run_directories
from PIL import Image

from deit_jax import convert, trained_model
from deit_jax.errors import InputError
from deit_jax.models import model_card
from deit_jax.training.checkpoint import Checkpoints
from deit_jax.training.saved_params import load_params
from deit_jax.training.state import TrainState
from deit_jax.weights import download, hub_page
from deit_jax.weights.load import load

SUMMARY = "docs/runs/study-micro/deit-seed0.json"
NAMES = ("cat", "dög", "cat")  # names of ImageNet occur twice too


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run directory of step 3, its card and its parameters."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, *run_directories.make(workdir, class_names=NAMES, ema=True)


@pytest.fixture
def run(made):
    return made[0]


def assert_same_params(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def command(*flags):
    done = commands.run("deit_jax.convert", *flags)
    assert done.returncode == 0, done.stderr
    assert "\nerror" not in done.stderr and "Traceback" not in done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_the_command(made, tmp_path):
    run, card, params = made
    out = tmp_path / "new" / "w.safetensors"
    first, note, last = command(
        f"--workdir={run}", "--to=timm", "--step=3", f"--out={out}"
    )
    assert first == f"{card.variant}, raw parameters of step 3"
    assert note.startswith("note: class names and preprocessing are in a directory")
    assert last == str(out)

    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\nthrée\n", "utf-8")
    again = tmp_path / "again"
    told = command(
        f"--src={out}",
        f"--out={again}",
        f"--class_names={names}",
        f"--variant={card.variant}",
        "--mean=0.1,0.2,0.3",
        "--std=1,1,0.5",
        "--crop_ratio=0.5",
    )
    assert told == [
        f"{card.variant}: 468,582 parameters, 3 classes, 32 px",
        "mean 0.1, 0.2, 0.3, std 1, 1, 0.5, crop ratio 0.5",
        f"run directory {again}",
    ]
    assert model_card.read(again) == dataclasses.replace(
        card,
        class_names=("one", "two", "thrée"),
        mean=(0.1, 0.2, 0.3),
        std=(1, 1, 0.5),
        crop_ratio=0.5,
        origin=str(out),
    )
    found, _ = load_params(again, card.create_model())
    assert_same_params(found, params["raw"])


def test_names_are_read(tmp_path):
    path = tmp_path / "names.txt"
    for content in (b"", b"a\n\nb\n", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"--class_names=.*names\.txt"):
            convert.read_class_names(path)
    with pytest.raises(InputError, match=r"cannot be read: .*No such file"):
        convert.read_class_names(tmp_path / "none.txt")


@pytest.mark.parametrize("layout", convert.LAYOUTS)
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_there_and_back(made, tmp_path, layout, weights):
    run, card, params = made
    out = tmp_path / "out"
    told = convert.export_weights(run, out, layout=layout, weights=weights)
    names = ["model.safetensors", "config.json"]
    names += ["preprocessor_config.json"] * (layout == "hf") + ["README.md"]
    assert told.splitlines()[1:] == [str(out / name) for name in names]
    assert {path.name for path in out.iterdir()} == set(names)

    told = convert.import_weights(out, tmp_path / "again")
    assert "note:" not in told
    again = trained_model.load(tmp_path / "again")
    assert again.step == 0
    assert again.card == dataclasses.replace(card, origin=str(out))
    assert_same_params(jax.device_get(again.params), params[weights])


def test_a_conversion_is_no_run_to_resume(made, tmp_path):
    run, _, params = made
    convert.export_weights(run, tmp_path / "w.safetensors", layout="hf")
    workdir = tmp_path / "again"
    convert.import_weights(tmp_path / "w.safetensors", workdir)
    checkpoints = Checkpoints(workdir, keep=1)
    assert checkpoints.latest_step == 0
    state = TrainState(np.zeros((), np.int32), params["raw"], (), None)
    with pytest.raises(InputError, match="converted weights, not a training run"):
        checkpoints.restore(state, {})
    checkpoints.close()
    for options, message in (
        ({"weights": "ema"}, "no moving average"),
        ({"step": 1}, "no checkpoint of step 1"),
    ):
        with pytest.raises(InputError, match=message):
            convert.export_weights(workdir, tmp_path / "x", layout="hf", **options)


# The page of a model, and the hub.


@pytest.fixture
def finished(tmp_path):
    """A run directory with the summary of a run, and its content."""
    about = json.loads((commands.ROOT / SUMMARY).read_text("utf-8"))
    run_directories.make(
        tmp_path / "run", class_names=about["class_names"], step=about["steps"]
    )
    (tmp_path / "run/summary.json").write_text(json.dumps(about))
    return tmp_path / "run", about


@pytest.mark.parametrize("layout", convert.LAYOUTS)
def test_the_page_says_what_the_hub_wants_to_know(finished, tmp_path, layout):
    hub = pytest.importorskip("huggingface_hub")
    run, summary = finished
    convert.export_weights(run, tmp_path / "nano", layout=layout, license="mit")
    text = (tmp_path / "nano/README.md").read_text("utf-8")
    about = hub.ModelCard.load(tmp_path / "nano/README.md").data
    assert (about.license, about.model_name) == ("mit", "nano")
    assert about.library_name == {"hf": "transformers", "timm": "timm"}[layout]
    assert "distillation" in about.tags
    figures = {r.metric_name: r.metric_value for r in about.eval_results}
    assert figures["top-1"] == summary["eval"]["mean"]["top1"]
    assert figures["F1 (macro)"] == summary["eval"]["mean"]["f1"]
    dataset = about.eval_results[0]
    assert (dataset.dataset_name, dataset.dataset_split) == ("cifar10", "test")
    assert f"| distill | {summary['eval']['distill']['top1']:.4f} |" in text
    assert "distilled from resnet50 (top-1 80.52%)" in text
    assert "10: airplane, automobile, bird, cat," in text


@pytest.mark.slow
@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("layout", convert.LAYOUTS)
def test_the_code_on_the_page_runs(run, tmp_path, monkeypatch, layout, capsys):
    pytest.importorskip("transformers" if layout == "hf" else "timm")
    convert.export_weights(run, tmp_path / "nano", layout=layout)
    page = (tmp_path / "nano/README.md").read_text("utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    Image.new("RGB", (40, 50)).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.strip() in NAMES


def test_a_page_claims_only_what_is_known(run, finished, tmp_path):
    """No metrics of another step, no licence for weights from elsewhere, no paths."""
    convert.export_weights(run, tmp_path / "a", layout="hf")
    convert.import_weights(tmp_path / "a", tmp_path / "again")
    convert.export_weights(tmp_path / "again", tmp_path / "b", layout="timm")
    text = (tmp_path / "b/README.md").read_text("utf-8")
    assert "license: other" in text
    assert "model-index" not in text and str(tmp_path) not in text
    assert "3: cat, dög, cat" in text
    assert "converted from elsewhere by deit_jax." in text
    (finished[0] / "checkpoints/15620").rename(finished[0] / "checkpoints/15000")
    convert.export_weights(finished[0], tmp_path / "c", layout="hf")
    assert "model-index" not in (tmp_path / "c/README.md").read_text()

    (tmp_path / "c/README.md").write_text("mine")
    told = convert.export_weights(run, tmp_path / "c", layout="hf")
    assert "README.md was there already and stays" in told
    assert (tmp_path / "c/README.md").read_text() == "mine"


def test_a_data_set_is_named_without_its_path():
    for name, shown in {
        "cifar10": "cifar10",
        "folder:/home/me/pets/": "pets",
        "hf:uoft-cs/cifar10": "uoft-cs/cifar10",
        "hf:/data/parquet": "parquet",
    }.items():
        assert hub_page.dataset(name) == shown


def test_a_push_uploads_what_was_written_and_nothing_else(run, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    api = mock.create_autospec(hub.HfApi, instance=True)
    api.create_repo.return_value.repo_id = "me/nano"
    api.upload_folder.return_value.commit_url = "https://hub/me/nano/commit/1"
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_x")
    (tmp_path / "private.txt").touch()
    told = convert.export_weights(run, tmp_path, layout="timm", push="me/nano")
    assert "pushed: https://hub/me/nano/commit/1" in told.splitlines()
    api.create_repo.assert_called_once_with("me/nano", exist_ok=True)
    asked = api.upload_folder.call_args.kwargs
    names = ["README.md", "config.json", "model.safetensors"]
    assert sorted(asked["allow_patterns"]) == names
    assert (asked["repo_id"], asked["folder_path"]) == ("me/nano", tmp_path)
    assert "hf-hub:me/nano" in (tmp_path / "README.md").read_text("utf-8")

    api.create_repo.side_effect = OSError("403 Forbidden.\nand more")
    with pytest.raises(InputError, match=r"--push=me/nano: 403 Forbidden. The fi") as e:
        convert.export_weights(run, tmp_path, layout="timm", push="me/nano")
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "out", "token", "message"),
    [
        ("me/nano", "nano", None, "needs a token .*: hf auth login, or set HF_TOKEN"),
        ("me/na no", "nano", "hf_x", "na no: expected org/name"),
        ("me/nano", "w.safetensors", "hf_x", "wants a directory: --out=w"),
    ],
)
def test_a_push_that_cannot_work_writes_nothing(
    run, tmp_path, monkeypatch, name, out, token, message
):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "get_token", lambda: token)
    with pytest.raises(InputError, match=message):
        convert.export_weights(run, tmp_path / out, layout="hf", push=name)
    assert not (tmp_path / out).exists()


# What is refused.


def test_a_run_is_not_written_over(run, tmp_path):
    with pytest.raises(InputError, match="holds a run already"):
        convert.import_weights(tmp_path / "w.safetensors", run)
    with pytest.raises(InputError, match=r"holds a run, whose config\.json"):
        convert.export_weights(run, run, layout="timm")


def test_what_cannot_be_written(run, tmp_path):
    (tmp_path / "file").touch()
    convert.export_weights(run, tmp_path / "w.safetensors", layout="timm")
    with pytest.raises(InputError, match="run cannot be written: Not a directory"):
        convert.import_weights(tmp_path / "w.safetensors", tmp_path / "file" / "run")
    with pytest.raises(InputError, match=r"nothing\.safetensors does not exist"):
        convert.import_weights(tmp_path / "nothing.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for out, message in (
        ("file/out", "cannot be written: Not a directory"),
        ("out.pth", r"expected a file that ends in \.safetensors"),
    ):
        with pytest.raises(InputError, match=message):
            convert.export_weights(run, tmp_path / out, layout="timm")


# Downloads: `timm:NAME` itself is in test_weights.py.


def test_a_directory_of_the_hub(made, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    convert.export_weights(made[0], tmp_path / "hub", layout="hf")
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, *allow_patterns[2:]))
        return str(tmp_path / "hub")

    monkeypatch.setattr(download, "_ask_hub", lambda: None)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    loaded = load("hf:someone/model")
    assert loaded.card.origin == "hf:someone/model"
    assert_same_params(loaded.params, made[2]["raw"])
    names = ("model.safetensors", "model.safetensors.index.json")
    assert asked == [("someone/model", *names, "model-*-of-*.safetensors")]

    # Without safetensors the pickle is asked for.
    (tmp_path / "hub" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors or pytorch_model"):
        load("hf:someone/model")
    names = ("pytorch_model.bin", "pytorch_model.bin.index.json")
    assert asked[2:] == [("someone/model", *names, "pytorch_model-*-of-*.bin")]


def test_without_the_network(monkeypatch, tmp_path, capfd):
    hub = pytest.importorskip("huggingface_hub")
    timm = pytest.importorskip("timm")

    def fail(*_, **__):
        raise OSError("Temporary failure in name resolution\nand more")

    monkeypatch.setattr(hub, "get_session", fail)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    sources = {
        "hf:someone/model": "https://huggingface.co/someone/model by hand",
        "timm:deit_tiny_patch16_224": "patch16_224.fb_in1k by hand",
    }
    for src, address in sources.items():
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
        began = time.perf_counter()
        with pytest.raises(
            InputError,
            match=f"{src} cannot be downloaded: it is not in the local .*{address}",
        ) as refused:
            load(src)
        assert len(str(refused.value).splitlines()) == 1
        assert time.perf_counter() - began < 15  # the libraries' retries take 55 s
        assert capfd.readouterr() == ("", "")

    # The hub answers, and then something fails.
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(download, "_ask_hub", lambda: None)
    monkeypatch.setattr(hub, "snapshot_download", fail)
    monkeypatch.setattr(timm, "create_model", fail)
    for src in sources:
        with pytest.raises(InputError, match=f"{src} cannot be downloaded: Temp") as e:
            load(src)
        assert "and more" not in str(e.value)
    with pytest.raises(InputError, match=r"no such model\. Did you mean deit_tiny"):
        load("timm:deit_tini_patch16_224")


@pytest.mark.parametrize(
    ("src", "library"), [("hf:someone/model", "huggingface_hub"), ("timm:x", "timm")]
)
def test_without_the_library(monkeypatch, src, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        InputError, match=f"{src} needs {library}.* pip install {library}"
    ):
        load(src)
