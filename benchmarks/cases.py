"""What is timed: a model, a batch and a precision, by name."""

import argparse
import dataclasses

from configs import deit
from deit_jax import targets
from deit_jax.errors import InputError
from deit_jax.models import variants


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to time, the same for both sides.

    Attributes:
      variant: With a distillation token, of deit_jax/models/variants.py.
      batch_size: Images a step.
      num_classes: Of both heads.
      dtype: Of the products, float32 or bfloat16.
      training: A whole train step, or the logits of a batch.
      augmented: Augmentation in the train step: the recipe `deit` here; what timm does
        on batches there (random erasing, MixUp or CutMix).
      attention: Of this project, see configs/deit.py; timm has its own way.
      steps_per_dispatch: Of this project.
    """

    variant: str
    batch_size: int
    num_classes: int
    dtype: str = "float32"
    training: bool = True
    augmented: bool = True
    attention: str = "auto"
    steps_per_dispatch: int = 1

    def config(self):
        """configs/deit.py:cifar10 with this model; its data are never read."""
        config = deit.get_config("cifar10")
        config.model.variant = self.variant
        config.model.dtype = self.dtype
        config.model.attention = self.attention
        config.steps_per_dispatch = self.steps_per_dispatch
        config.batch_size = self.batch_size
        config.augment.recipe = "deit" if self.augmented else "none"
        return config

    @property
    def flags(self) -> list[str]:
        """On a command line, for `add_flags`."""
        return [
            f"--{'' if value else 'no-'}{name}"
            if isinstance(value, bool)
            else f"--{name}={value}"
            for name, value in dataclasses.asdict(self).items()
        ]


TINY_32 = "deit_tiny_distilled_patch4_32"
TINY_224 = "deit_tiny_distilled_patch16_224"

# Of CIFAR-10 and of ImageNet in shape, at sizes that a CPU takes a second for.
TRAIN = {
    "train_32": Case(TINY_32, 64, 10),
    "train_224": Case(TINY_224, 16, 1000),
    "train_32_plain": Case(TINY_32, 64, 10, augmented=False),
    "train_224_plain": Case(TINY_224, 16, 1000, augmented=False),
}
INFERENCE = {
    "inference_32": Case(TINY_32, 64, 10, training=False),
    "inference_224": Case(TINY_224, 16, 1000, training=False),
}
# The paper's models in the precision that GPUs are made for.
GPU = {
    "gpu_tiny_224": Case(TINY_224, 256, 1000, "bfloat16"),
    "gpu_tiny_32": Case(TINY_32, 1024, 10, "bfloat16"),
    "gpu_small_224": Case("deit_small_distilled_patch16_224", 256, 1000, "bfloat16"),
    "gpu_base_224": Case("deit_base_distilled_patch16_224", 256, 1000, "bfloat16"),
}
GPU |= {
    f"{name}_plain": dataclasses.replace(case, augmented=False)
    for name, case in GPU.items()
}
# This project in other ways, beside what timm does for the case without the ending.
GPU_WAYS = {
    f"{name}_xla": dataclasses.replace(case, attention="xla")
    for name, case in GPU.items()
    if case.augmented
} | {
    "gpu_tiny_32_dispatch": dataclasses.replace(
        GPU["gpu_tiny_32"], steps_per_dispatch=10
    )
}


def target_names(text: str) -> list[str]:
    """`h100,v5e:4` as a list, for a flag of argparse."""
    names = text.split(",")
    try:
        for name in names:
            targets.parse(name)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return names


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The fields of a `Case`, as the measuring programs take them."""
    parser.add_argument("--variant", choices=distilled(), default=TINY_32)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_classes", type=int, default=10)
    parser.add_argument("--dtype", choices=variants.DTYPES, default="float32")
    for name in ("training", "augmented"):
        parser.add_argument(
            f"--{name}", action=argparse.BooleanOptionalAction, default=True
        )
    parser.add_argument("--attention", choices=variants.ATTENTIONS, default="auto")
    parser.add_argument("--steps_per_dispatch", type=int, default=1)


def from_flags(flags: argparse.Namespace) -> Case:
    """The inverse of `Case.flags`."""
    names = (field.name for field in dataclasses.fields(Case))
    return Case(**{name: getattr(flags, name) for name in names})


def distilled() -> list[str]:
    """The variants with a distillation token."""
    return [name for name, shape in variants.VARIANTS.items() if shape["distilled"]]
