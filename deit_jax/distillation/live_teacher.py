"""A teacher that is asked in each train step, or several whose answers are averaged."""

import dataclasses
import functools
import hashlib
import json

import jax
import numpy as np

from deit_jax.distillation.teacher import (
    Answers,
    Teacher,
    answers,
    average,
    describe,
    describe_one,
)


@dataclasses.dataclass(frozen=True, eq=False)
class LiveTeacher:
    """One teacher or several, whose answers are averaged, for use in a program.

    Attributes:
      members: The teachers, with the classes of the run in its order.
      tau: Temperature at which their probabilities are averaged.
      flops: Floating-point operations for one image of the student's, by XLA's count.
      top1: Accuracy in 0 .. 1 on `split`; None where it was not measured.
      split: What `top1` was measured on, in words.
      features: Whether `ask` gives its features too.
    """

    members: tuple[Teacher, ...]
    tau: float
    flops: float = 0.0
    top1: float | None = None
    split: str | None = None
    features: bool = False

    @property
    def params(self) -> tuple:
        """The parameters of each member, as NumPy arrays."""
        return tuple(jax.tree.map(np.asarray, member.params) for member in self.members)

    def ask(self, params: tuple, images: jax.Array) -> Answers:
        """Answers to uint8 images [b, H, W, 3]; `params` as `params`."""
        each = [
            answers(member, own, images, features=self.features)
            for member, own in zip(self.members, params, strict=True)
        ]
        logits = average([found.logits for found in each], self.tau)
        return Answers(logits, each[0].features)

    @property
    def num_features(self) -> int:
        """The number of features that `ask` gives."""
        return self.members[0].num_features if self.features else 0

    @property
    def arch(self) -> str:
        return " + ".join(member.arch for member in self.members)

    @property
    def bytes(self) -> int:
        """Bytes of the parameters, on each device."""
        return sum(x.nbytes for x in jax.tree.leaves(self.params))

    def describe(self) -> dict:
        """The summary's `teacher`, as far as it is that of a cache's manifest."""
        return describe(
            [describe_one(member) for member in self.members],
            self.tau,
            precision=self.members[0].dtype,
            backend="jax",
            top1=self.top1,
            top1_split=self.split,
        )

    @functools.cached_property
    def identity(self) -> str:
        """What it is, in words, with a SHA-256 of all that its answers follow from."""
        about = dataclasses.replace(self, top1=None, split=None).describe()
        about = json.dumps(about, sort_keys=True)
        sizes = " + ".join(str(member.image_size) for member in self.members)
        digest = hashlib.sha256(about.encode()).hexdigest()
        return f"{self.arch} at {sizes} px, SHA-256 {digest}"
