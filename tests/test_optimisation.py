"""Every optimizer and schedule trains digits, and resumes to the same bits."""

import shutil

import jax
import numpy as np
import pytest
import same_run

from configs import vit
from deit_jax import experiment, train
from deit_jax.data import sources
from deit_jax.training import optimizer, schedule, step

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_nano")]


def make_config(name, rates="cosine"):
    """Six steps in three epochs."""
    config = vit.get_config("digits")
    config.dataset.train_split = "train[:64]"
    config.dataset.eval_split = "test[:32]"
    config.epochs = 3.0
    config.optimizer.name = name
    config.optimizer.learning_rate = 1e-2
    config.optimizer.weight_decay = 0.0 if name == "adam" else 0.05
    config.optimizer.layer_decay = 0.8
    config.schedule.name = rates
    config.schedule.warmup_epochs = 1.0
    config.schedule.cooldown_epochs = 1.0 if rates == "wsd" else 0.0
    config.checkpoint.every_steps = 4
    config.eval.every_epochs = 0.0
    return config


@pytest.mark.parametrize(
    ("name", "rates"),
    [(name, "cosine") for name in optimizer.NAMES]
    + [("adamw", rates) for rates in schedule.NAMES if rates != "cosine"],
)
def test_every_optimizer_and_every_schedule_learns(name, rates):
    config = make_config(name, rates)
    source = sources.load("digits", config.dataset.train_split)
    run = experiment.build(config, source, source, devices=jax.devices()[:1])
    assert run.total_steps == 6
    current = step.replicate(run.initial_state(), run.devices)
    before = jax.device_get(current.params)
    mapped, losses = run.train_step(), []
    for _ in range(3):  # each step three times: only so the loss can be compared
        with run.open_train_images() as images:
            for batch in run.train_batches(images, 0, 2):
                current, metrics = mapped(current, batch, None)
                losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert losses[-2] < losses[0]
    assert losses[-1] < losses[1]
    moved = jax.tree.map(lambda a, b: (a != b).any(), before, current.params)
    assert all(jax.tree.leaves(jax.device_get(moved)))


@pytest.mark.parametrize("name", optimizer.NAMES)
def test_every_optimizer_resumes_to_the_same_bits(name, tmp_path):
    config = make_config(name)
    train.train_and_evaluate(config, tmp_path / "whole")
    parts = tmp_path / "parts"
    shutil.copytree(tmp_path / "whole", parts)
    shutil.rmtree(parts / "checkpoints" / "6")
    (parts / "summary.json").unlink()
    assert train.train_and_evaluate(config, parts)["resumed_at_step"] == 4
    one, other = map(same_run.final_state, (tmp_path / "whole", parts))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
