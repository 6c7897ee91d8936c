import contextlib
import json

import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.data.plan import BatchPlan
from deit_jax.training import progress
from deit_jax.training.cadence import Cadence


def create(start=0, log=1, total=20, **settings):
    plan = BatchPlan(length=40, batch_size=4, seed=0, augment_seed=0)
    return progress.Progress(
        start,
        Cadence(total_steps=total, dispatch=1, log=log, evaluate=0, save=0),
        plan,
        lambda step: 0.1 * (step + 1),
        max_consecutive_skips=3,
        parameters=["a/bias", "a/kernel", "b"],
        **settings,
    )


@pytest.fixture
def bar():
    with contextlib.closing(create()) as made:
        yield made


@pytest.fixture
def clock(monkeypatch):
    """The seconds, which a test changes."""
    seconds = [50.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def metrics(loss, grad_norm=1.0, grad_norms=(0.1, 0.9, 0.2)):
    values = {"loss": loss, "loss_ce": loss, "grad_norm": grad_norm, "top1": 0.5}
    values["skipped"] = float(not np.isfinite([loss, grad_norm]).all())
    values["grad_norms"] = grad_norms
    return {name: jnp.asarray(value) for name, value in values.items()}


BROKEN = metrics(np.nan, np.nan, (np.nan,) * 3)


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
    ("total", "log", "shown"),
    [
        (30, 100, list(range(3, 31, 3))),
        (5, 100, [1, 2, 3, 4, 5]),
        (32, 20, [4, 8, 12, 16, 20, 24, 28, 32]),
        (60, 5, list(range(5, 61, 5))),
    ],
)
def test_a_short_run_prints_ten_lines(capsys, total, log, shown):
    made = create(total=total, log=log)
    logged = []
    for done in range(1, total + 1):
        made.dispatched(done, metrics(float(done)))
        if done % log == 0 or done == total:
            logged.append(made.interval()["train/loss"])
    made.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("/")[0] for line in lines] == [f"step {n}" for n in shown]
    # A line is the mean of the steps since the one before, a row that of its interval.
    assert f"loss {np.mean(range(1, shown[0] + 1)):.4f}" in lines[0]
    before = shown[-2] if len(shown) > 1 else 0
    assert f"loss {np.mean(range(before + 1, total + 1)):.4f}" in lines[-1]
    assert logged[0] == np.mean(range(1, min(log, total) + 1))


def test_the_steps_of_a_dispatch_are_those_of_several(bar):
    losses = [1.0, np.nan, 6.0, 2.0]
    steps = [metrics(loss) for loss in losses]
    bar.dispatched(1, steps[0])
    together = {name: jnp.stack([one[name] for one in steps[1:]]) for name in BROKEN}
    bar.dispatched(4, together)
    values = bar.interval()
    assert values["train/loss"] == pytest.approx(3.0)
    assert values["train/skipped"] == 1
    assert values["train/learning_rate"] == pytest.approx(0.4)
    broken = {name: jnp.stack([one[name] for one in [BROKEN] * 4]) for name in BROKEN}
    bar.dispatched(8, broken)
    with pytest.raises(FloatingPointError, match=r"step 7 .* of step 4 was"):
        bar.drain()


def test_a_skipped_step_is_counted_and_in_no_mean(bar, capsys):
    for done, values in enumerate([metrics(1.0), BROKEN, metrics(3.0)], start=1):
        bar.dispatched(done, values)
    written = bar.interval()
    assert written["train/loss"] == 2.0
    assert written["train/grad_norm"] == 1.0
    assert written["train/skipped"] == 1
    out = capsys.readouterr().out
    assert "loss is nan at step 2 (learning rate 0.2): skipped" in out
    assert "skipped 1 of 3" in out
    bar.dispatched(4, metrics(1.0))
    assert bar.interval()["train/skipped"] == 0
    assert "skipped" not in capsys.readouterr().out


def test_an_interval_of_skipped_steps_has_no_means(bar):
    bar.dispatched(1, BROKEN)
    bar.dispatched(2, BROKEN)
    values = bar.interval()
    others = {"train/learning_rate", "train/images_per_sec"}
    assert values.keys() == {"train/skipped", *others}
    assert values["train/skipped"] == bar.consecutive_skips == 2


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            BROKEN,
            r"loss is nan at step 6 \(learning rate 0.6\), the last of 3 such steps in "
            r"a row. Not finite: 3 of 3 gradients \(all\). The largest of step 3 was "
            r"that of a/kernel, 0.9.",
        ),
        (
            metrics(1.0, np.inf, (np.inf, 1.0, np.nan)),
            r"grad_norm is inf at step 6 .* Not finite: 2 of 3 gradients \(a.bias, b\)",
        ),
        (
            metrics(1.0, np.inf, (3e19, 1.0, 2.0)),
            r"The largest gradient is that of a/bias, 3e\+19.",
        ),
    ],
)
def test_too_many_in_a_row_end_the_run(bar, broken, message):
    steps = [metrics(1.0), BROKEN, metrics(1.0), broken, broken, broken]
    for done, values in enumerate(steps, start=1):
        bar.dispatched(done, values)
    with pytest.raises(FloatingPointError, match=message):
        bar.drain()


def test_they_are_found_while_later_steps_are_in_flight(bar):
    with pytest.raises(FloatingPointError, match="step 3 "):
        for done in range(1, 4 + progress.IN_FLIGHT):
            bar.dispatched(done, BROKEN)


def test_the_time_of_an_evaluation_is_not_the_trainings(bar, clock):
    bar.dispatched(1, metrics(1.0))
    bar.interval()
    bar.dispatched(2, metrics(1.0))
    clock[0] += 2.0
    bar.pause()
    clock[0] += 100.0
    bar.resume("eval")
    assert bar.interval()["train/images_per_sec"] == pytest.approx(4 / 2)
    assert bar.images_per_sec == 2.0


def test_an_interval_goes_on_in_another_start(bar, clock):
    first = create()
    losses = [0.1, 0.7, 0.3]
    for done, loss in enumerate(losses[:2], start=1):
        first.dispatched(done, metrics(loss))
    clock[0] += 5.0
    state = json.loads(json.dumps(first.resume_state()))
    second = create(2, resume_state=state, rates=[8.0, 9.0, 10.0])
    clock[0] += 2.0
    for done, loss in enumerate(losses, start=1):
        bar.dispatched(done, metrics(loss))
    second.dispatched(3, metrics(losses[2]))
    values, undisturbed = second.interval(), bar.interval()
    # Of the one step that this start has done.
    assert values.pop("train/images_per_sec") == pytest.approx(4 / 2)
    undisturbed.pop("train/images_per_sec")
    assert values == undisturbed
    assert second.seconds == 7.0
    assert second.images_per_sec == 9.0  # the median of 9, 10 and 2
