import faults
import pytest


@pytest.mark.slow
def test_nothing_is_lost(tmp_path):
    """As `python -m tests.faults` at large: docs/reliability.md."""
    injected = faults.Faults(tmp_path, seed=2)
    faults.trainings(tmp_path, injected, count=2, steps=20)
    assert not injected.failures
    assert injected.kills == 2
    assert injected.counts["runs compared"] >= 1
