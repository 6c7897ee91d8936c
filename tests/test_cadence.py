"""When something is due, and where dispatches end."""

import dataclasses

import numpy as np
import pytest

from deit_jax.training.cadence import Cadence


def due(is_due, total=20):
    return [done for done in range(1, total + 1) if is_due(done)]


def test_each_period_is_due_at_its_multiples_and_at_the_end():
    cadence = Cadence(total_steps=20, dispatch=1, log=6, evaluate=0, save=8)
    assert due(cadence.logs) == [6, 12, 18, 20]
    assert due(cadence.evaluates) == [20]
    assert due(cadence.saves) == [8, 16, 20]
    assert due(cadence.verifies) == []
    # Of a cache it is known at the end as well as before.
    assert due(dataclasses.replace(cadence, verify=9).verifies) == [9, 18]


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize(
    "periods", [(101, 0, 0), (10, 0, 0), (50, 39, 0), (7, 3, 0, 5)]
)
def test_dispatches_end_where_the_host_has_something_to_do(size, periods):
    cadence = Cadence(101, size, *periods)
    ends = list(cadence.ends(0))
    assert set(np.diff([0, *ends])) <= {1, size}
    everything = (cadence.logs, cadence.evaluates, cadence.saves, cadence.verifies)
    for is_due in everything:
        assert set(due(is_due, 101)) <= set(ends)
    if size == 4 and periods[0] == 10:
        assert ends[:6] == [4, 8, 9, 10, 14, 18]
    # A run that was stopped at one of them has the same others.
    for number, end in enumerate(ends, start=1):
        assert list(cadence.ends(end)) == ends[number:]
