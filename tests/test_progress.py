import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.data.views import BatchPlan
from deit_jax.training import progress


@pytest.fixture
def bar():
    plan = BatchPlan(length=40, batch_size=4, seed=0, augment_seed=0)
    made = progress.Progress(0, 20, plan, 4, lambda step: 0.1 * (step + 1))
    yield made
    made.close()


def metrics(loss, grad_norm=1.0):
    values = {"loss": loss, "loss_ce": loss, "grad_norm": grad_norm, "top1": 0.5}
    return {name: jnp.asarray(value) for name, value in values.items()}


def test_an_interval_is_the_mean_of_its_steps(bar, capsys):
    for done, loss in enumerate([1.0, 2.0, 6.0], start=1):
        bar.dispatched(done, metrics(loss))
    values = bar.interval()
    assert values["train/loss"] == pytest.approx(3.0)
    assert values["train/learning_rate"] == pytest.approx(0.3)
    assert values["train/images_per_sec"] > 0
    out = capsys.readouterr().out
    assert "step 3/20  epoch 0.3" in out
    assert "ETA 0:" in out
    bar.dispatched(4, metrics(5.0))
    assert bar.interval()["train/loss"] == 5.0


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (metrics(np.nan), "loss is nan at step 2 .learning rate 0.2"),
        (metrics(1.0, np.inf), "grad_norm is inf at step 2"),
    ],
)
def test_a_number_that_is_not_finite_names_its_step(bar, broken, message):
    bar.dispatched(1, metrics(1.0))
    bar.dispatched(2, broken)
    with pytest.raises(FloatingPointError, match=message):
        bar.drain()


def test_it_is_found_while_later_steps_are_in_flight(bar):
    bar.dispatched(1, metrics(np.nan))
    with pytest.raises(FloatingPointError, match="step 1 "):
        for done in range(2, 3 + progress.IN_FLIGHT):
            bar.dispatched(done, metrics(1.0))


def test_the_time_of_an_evaluation_is_not_the_trainings(bar, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    bar.dispatched(1, metrics(1.0))
    bar.interval()
    bar.dispatched(2, metrics(1.0))
    clock[0] += 2.0
    bar.pause()
    clock[0] += 100.0
    bar.resume("eval")
    assert bar.interval()["train/images_per_sec"] == pytest.approx(4 / 2)
    assert bar.images_per_sec == 2.0
