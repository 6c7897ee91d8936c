"""Runs in which something happens before a step."""

import contextlib
import itertools
import os
from unittest import mock

from deit_jax.training import step


@contextlib.contextmanager
def before_each(act, made="pmap_train_step"):
    """Calls `act(number, state, batch)` before every step, from 1; or of evaluations.

    What it returns, if anything, is the batch.
    """
    real = getattr(step, made)

    def make(*args, **kwargs):
        mapped, calls = real(*args, **kwargs), itertools.count(1)

        def one(state, batch, *rest):
            changed = act(next(calls), state, batch)
            return mapped(state, batch if changed is None else changed, *rest)

        return one

    with mock.patch.object(step, made, make):
        yield


def stopped_after(number, signal=None, **made):
    """Makes a run die, as if killed, when it dispatches its next step.

    With a `signal` the process gets it at that step instead, and does the step.
    """

    def act(call, *_):
        if signal and call == number:
            os.kill(os.getpid(), signal)
        elif not signal and call > number:
            raise KeyboardInterrupt

    return before_each(act, **made)
