"""Nano models that compile in half the time, for tests of what is around a model."""

from unittest import mock

from deit_jax.models.variants import VARIANTS

SMALL = {"width": 24, "depth": 2}
WHOLE = {name: shape for name, shape in VARIANTS.items() if "_nano_" in name}


def small_nano():
    """A context in which every nano model is narrower and has two blocks."""
    shapes = {name: shape | SMALL for name, shape in WHOLE.items()}
    return mock.patch.dict(VARIANTS, shapes)


def whole_nano():
    """Within `small_nano` the nano models as they are."""
    return mock.patch.dict(VARIANTS, WHOLE)
