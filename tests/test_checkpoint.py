import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.errors import InputError
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


@pytest.mark.parametrize("ema", [True, False])
def test_what_is_saved_comes_back(tmp_path, ema):
    first = Checkpoints(tmp_path, keep=2)
    assert first.latest_step is None
    first.save(state_at(7, ema), CONFIG)
    first.close()
    second = Checkpoints(tmp_path, keep=2)
    restored = second.restore(state_at(0, ema), CONFIG)
    second.close()
    assert jax.tree.structure(restored) == jax.tree.structure(state_at(7, ema))
    jax.tree.map(np.testing.assert_array_equal, restored, state_at(7, ema))


def test_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(state_at(step), CONFIG)
    checkpoints.save(state_at(3), CONFIG)  # again: nothing to do
    checkpoints.close()
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"2", "3"}


def test_a_checkpoint_that_a_kill_cut_short_is_passed_over(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state_at(1), CONFIG)
    checkpoints.close()
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir()
    again = Checkpoints(tmp_path, keep=2)
    assert again.latest_step == 1
    assert again.restore(state_at(0), CONFIG).step == 1
    again.close()


def test_keep_must_leave_something(tmp_path):
    with pytest.raises(InputError, match=r"checkpoint\.keep=0"):
        Checkpoints(tmp_path, keep=0)


def changed(section, **values):
    return CONFIG | {section: CONFIG[section] | values}


@pytest.mark.parametrize(
    "harmless",
    [
        changed("log", every_steps=99),
        changed("dataset", data_dir="elsewhere"),
        changed("dataset", mean=(0.5, 0.5)),
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
    ],
)
def test_another_run_is_refused_by_field(config, message):
    with pytest.raises(InputError, match=message):
        check_resumable(CONFIG, config, where="runs/x")
