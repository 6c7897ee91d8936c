"""JAX as what computes a teacher's logits, on all devices of this process."""

import functools

import jax
import numpy as np

from deit_jax.data import batches
from deit_jax.distillation import teacher as teachers
from deit_jax.distillation.teacher import Answers, Teacher
from deit_jax.errors import InputError
from deit_jax.models.variants import DTYPES
from deit_jax.training.step import AXIS, replicate


def choose_precision(name: str) -> str:
    """What the networks compute in: `auto` is bfloat16 but on CPUs.

    Raises:
      InputError: JAX's networks do not compute in it.
    """
    if name == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in DTYPES:
        raise InputError(
            f"--precision={name} with --backend=jax: expected auto, "
            f"{' or '.join(DTYPES)}."
        )
    return name


class JaxBackend:
    """Computes the logits of `Teacher`s, pmapped over the local devices.

    Args:
      precision: What the teachers have been opened to compute in.
      batch_size: Images a call; fewer are filled up, so that one program serves all.

    Attributes:
      name: `jax`.
      device: The devices, for messages.
    """

    name = "jax"

    def __init__(self, precision: str, batch_size: int):
        self.precision = precision
        self._devices = jax.local_devices()
        self._rows = -(-batch_size // len(self._devices)) * len(self._devices)
        self._programs = {}
        kind = self._devices[0].device_kind
        self.device = (
            kind if len(self._devices) == 1 else f"{len(self._devices)} {kind}"
        )

    def answers(
        self, teacher: Teacher, images: np.ndarray, *, features: bool = False
    ) -> Answers:
        """Answers float32 [B, ...] to uint8 images [B, H, W, 3]."""
        if (teacher, features) not in self._programs:
            self._programs[teacher, features] = self._open(teacher, features)
        apply, params = self._programs[teacher, features]
        padded = batches.pad(images, self._rows - len(images))
        split = batches.split({"image": padded}, len(self._devices))
        try:
            found = jax.tree.map(np.asarray, apply(params, split["image"]))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise InputError(
                "the memory of the device ran out. Lower --batch_size (now "
                f"{self._rows}), or end other programs that use it."
            ) from error
        return jax.tree.map(lambda x: x.reshape(self._rows, -1)[: len(images)], found)

    def _open(self, teacher: Teacher, features: bool):
        apply = jax.pmap(
            functools.partial(teachers.answers, teacher, features=features),
            axis_name=AXIS,
            in_axes=(None, 0),
            devices=self._devices,
        )
        return apply, replicate(teacher.params, self._devices)
