"""Nano models that compile in half the time, for tests of what is around a model."""

from unittest import mock

from deit_jax.models.variants import VARIANTS

SMALL = {"width": 24, "depth": 2}


def small_nano():
    """A context in which every nano model is narrower and has two blocks."""
    shapes = {name: VARIANTS[name] | SMALL for name in VARIANTS if "_nano_" in name}
    return mock.patch.dict(VARIANTS, shapes)
