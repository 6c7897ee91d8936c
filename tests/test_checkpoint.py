import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import run_directories
from flax.traverse_util import flatten_dict

from configs import deit
from deit_jax.errors import InputError
from deit_jax.models import model_card
from deit_jax.training import checkpoint, saved_params
from deit_jax.training.checkpoint import Checkpoints, check_resumable
from deit_jax.training.state import TrainState

CONFIG = {
    "seed": 0,
    "optimizer": {"name": "adamw", "learning_rate": 1e-3},
    "log": {"every_steps": 10},
    "dataset": {"mean": [0.5, 0.5], "data_dir": None},
}


def state_at(step, ema=True):
    params = {"kernel": jnp.full((3, 2), float(step)), "bias": jnp.arange(2.0)}
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        opt_state=(jax.tree.map(lambda x: -x, params),),
        ema_params=params if ema else None,
    )


@pytest.fixture
def opened(tmp_path):
    """Opens the checkpoints of a run again and again."""
    last = []

    def reopen(workdir=tmp_path):
        for checkpoints in last:
            checkpoints.close()
        last[:] = [Checkpoints(workdir, keep=2)]
        return last[0]

    yield reopen
    last[0].close()


@pytest.mark.parametrize("ema", [True, False])
def test_what_is_saved_comes_back(opened, ema):
    assert opened().latest_step is None
    progress = {"rows": [[7, {"loss": 0.1}]], "seconds": 2.5}
    opened().save(state_at(7, ema), CONFIG, progress=progress)
    restored, resume_state = opened().restore(state_at(0, ema), CONFIG)
    assert resume_state == progress
    assert jax.tree.structure(restored) == jax.tree.structure(state_at(7, ema))
    jax.tree.map(np.testing.assert_array_equal, restored, state_at(7, ema))


def test_the_newest_are_kept_and_what_a_kill_cut_short_is_passed_over(opened, tmp_path):
    checkpoints = opened()
    for step in (1, 2, 3):
        checkpoints.save(state_at(step), CONFIG)
    checkpoints.save(state_at(3), CONFIG)  # again: nothing to do
    checkpoints.wait()
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"2", "3"}
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()
    assert opened().latest_step == 3
    restored, _ = opened().restore(state_at(0), CONFIG)
    assert restored.step == 3


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "an array": lambda folder: flip(largest(folder)),
    "the end": lambda folder: os.truncate(largest(folder), 100),
    "the config": lambda folder: flip(folder / "config" / "metadata"),
    "the progress": lambda folder: flip(folder / "progress" / "metadata"),
    "the digests": lambda folder: flip(folder / "digests" / "metadata"),
    "a folder": lambda folder: shutil.rmtree(folder / "state"),
    "everything": lambda folder: [shutil.rmtree(p) for p in folder.glob("*/")],
}


def largest(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    path = tmp_path_factory.mktemp("two")
    checkpoints = Checkpoints(path, keep=2)
    # Noise: its compressed bytes cannot be told from others.
    noise = np.random.default_rng(0).standard_normal((100, 100), np.float32)
    for step in (1, 2):
        state = state_at(step)
        state.params["kernel"] = noise + step
        checkpoints.save(state, CONFIG)
    checkpoints.close()
    target = state_at(0)
    target.params["kernel"] = np.zeros_like(noise)
    return path, target


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_set_aside(
    two_checkpoints, opened, tmp_path, damage, capsys
):
    original, target = two_checkpoints
    run = shutil.copytree(original, tmp_path / "run")
    damage(run / "checkpoints" / "2")
    checkpoints = opened(run)
    restored, _ = checkpoints.restore(target, CONFIG)
    assert restored.step == checkpoints.latest_step == 1
    out = capsys.readouterr().out
    assert "the checkpoint of step 2 is damaged" in out
    assert "goes on from step 1" in out
    checkpoints.save(restored.replace(step=np.full((), 2, np.int32)), CONFIG)
    checkpoints.wait()
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"1", "2", "2.damaged"}
    assert checkpoint.steps(run) == [1, 2]


def test_where_all_are_damaged_nothing_is_touched(two_checkpoints, opened, tmp_path):
    original, target = two_checkpoints
    run = shutil.copytree(original, tmp_path / "run")
    for step in ("1", "2"):
        flip(largest(run / "checkpoints" / step))
    with pytest.raises(InputError, match=r"can be read[^!]*params\.kernel"):
        opened(run).restore(target, CONFIG)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"1", "2"}


def changed(section, **values):
    return CONFIG | {section: CONFIG[section] | values}


@pytest.mark.parametrize(
    "harmless",
    [
        changed("log", every_steps=99),
        changed("dataset", data_dir="elsewhere"),
        changed("dataset", mean=(0.5, 0.5)),
        changed("dataset", eval_crop_ratio=0.9),
        # Absent in runs of older versions.
        CONFIG | {"augment": {"place": "host"}},
        CONFIG | {"distillation": {"source": "cache", "teacher": ""}},
        CONFIG | {"loss": {"kind": "softmax"}},  # what they did
        CONFIG | {"model": {"pool": "token", "init_values": None}},  # so are these
    ],
)
def test_a_harmless_change_resumes(harmless):
    check_resumable(CONFIG, harmless, where="runs/x")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIG | {"seed": 1}, "seed: 0 -> 1"),
        (
            changed("optimizer", learning_rate=1e-2),
            r"optimizer\.learning_rate: 0\.001 -> 0\.01",
        ),
        (CONFIG | {"ema": {"decay": 0.9}}, r"ema\.decay: 'absent' -> 0\.9"),
        (CONFIG | {"distillation": {"source": "live"}}, "source: 'cache' -> 'live'"),
        (CONFIG | {"loss": {"kind": "bce"}}, r"loss\.kind: 'softmax' -> 'bce'"),
        (CONFIG | {"model": {"pool": "mean"}}, r"model\.pool: 'token' -> 'mean'"),
    ],
)
def test_another_run_is_refused_by_field(config, message):
    with pytest.raises(InputError, match=message):
        check_resumable(CONFIG, config, where="runs/x")


def test_a_config_of_today_has_what_older_runs_did_by_default():
    defaults = flatten_dict(deit.get_config("folder").to_dict(), sep=".")
    for field, value in checkpoint.ADDED_FIELDS.items():
        assert defaults[field] == value


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    card, params = run_directories.make(path, ema=True)
    return path, card.create_model(), params


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_parameters_alone_come_back(run, weights):
    path, model, params = run
    loaded, step = saved_params.load_params(path, model, weights=weights)
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, loaded, params[weights])
    assert saved_params.weights_in(path) == ("raw", "ema")


@pytest.mark.slow
def test_parameters_of_a_training_run(digits_run):
    model = model_card.read(digits_run).create_model()
    newest, step = saved_params.load_params(digits_run, model)
    earlier, earlier_step = saved_params.load_params(digits_run, model, step=8)
    assert (step, earlier_step) == (9, 8)
    assert not np.array_equal(newest["pos_embed"], earlier["pos_embed"])


@pytest.fixture
def copied(run, tmp_path):
    path, model, _ = run
    return shutil.copytree(path, tmp_path / "run"), model


def test_parameters_of_another_model_are_refused(run):
    path, model, _ = run
    said = r"another model .* head\.bias: \(10,\), expected \(7,\); 4 differ"
    with pytest.raises(InputError, match=said):
        saved_params.load_params(path, model.clone(num_classes=7))
    with pytest.raises(InputError, match=r"dist_token: .* no such parameter"):
        saved_params.load_params(path, model.clone(distilled=False))


def test_a_missing_checkpoint_is_said(run, tmp_path):
    path, model, _ = run
    with pytest.raises(InputError, match=r"no checkpoint of step 7\. Steps there: 3"):
        saved_params.load_params(path, model, step=7)
    with pytest.raises(InputError, match=r"has no checkpoint yet\. Steps there: none"):
        saved_params.load_params(tmp_path, model)


@pytest.mark.parametrize("name", ["²", "003", "copy_3", "9" * 19])
def test_other_folders_than_of_steps_are_passed_over(copied, name):
    path, model = copied
    (path / "checkpoints" / name).mkdir()
    (path / "checkpoints" / "7").touch()
    assert saved_params.load_params(path, model)[1] == 3


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "d/more"])
def test_a_pipe_in_a_checkpoint_is_not_waited_for(copied, name):
    path, model = copied
    file = path / "checkpoints" / "3" / "state" / name
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    with pytest.raises(InputError, match=r"is damaged: .* is no regular file"):
        saved_params.load_params(path, model)


def test_flipped_bytes_are_found(copied):
    path, model = copied
    flip(largest(path / "checkpoints" / "3"))
    said = r"checkpoints/3 is damaged: .* not those .* No other"
    with pytest.raises(InputError, match=said):
        for weights in ("raw", "ema"):  # the byte is in one of them
            saved_params.load_params(path, model, weights=weights)
