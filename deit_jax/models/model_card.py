"""`model.json`: what a run directory says of its model, for all that uses it.

Training writes it at its start, a conversion with the weights. With the parameters of
a checkpoint it is all that evaluation, prediction and export need.
"""

import dataclasses
import json
import os
from pathlib import Path

from deit_jax import files
from deit_jax.errors import InputError
from deit_jax.files import replace_file
from deit_jax.models import variants
from deit_jax.models.vit import VisionTransformer

MODEL = "model.json"
# What a card has; `pool` came later.
FIELDS = {
    "variant": str,
    "image_size": int,
    "class_names": [str],
    "mean": [float],
    "std": [float],
    "crop_ratio": float,
    "dtype": str,
    "origin": str,
}
MIN_STD = 1e-3  # of channels in 0 .. 1, whose smallest step is 4e-3


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """A model, its classes, and the images it expects.

    Attributes:
      variant: A name of `models/variants.py`.
      image_size: Pixels a side.
      class_names: One name a class, in the order of the logits.
      mean: Of the channels, for pixels in 0 .. 1.
      std: As `mean`.
      crop_ratio: Of `data.crops.centre_view`, which brings an image to the model's
        size. 1 where the training images had that size: then such images are taken as
        they are, and of others nothing but the longer side is cropped.
      dtype: The compute type.
      origin: `training`, or what the weights were converted from.
      pool: What the class head reads, one of `variants.POOLS`.
    """

    variant: str
    image_size: int
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_ratio: float
    dtype: str = "float32"
    origin: str = "training"
    pool: str = "token"

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def create_model(self) -> VisionTransformer:
        """The module, without dropout and stochastic depth."""
        return variants.create(
            self.variant,
            num_classes=self.num_classes,
            image_size=self.image_size,
            dtype=self.dtype,
            pool=self.pool,
        )


def write(workdir: str | os.PathLike, card: ModelCard) -> None:
    """Writes `card` as the `model.json` of `workdir`, which exists."""
    text = json.dumps(dataclasses.asdict(card), indent=1)
    replace_file(Path(workdir) / MODEL, text + "\n")


def is_run(path: str | os.PathLike) -> bool:
    """Whether this is a run directory, whole or damaged, not weights of others."""
    return any(Path(path, name).exists() for name in (MODEL, "checkpoints"))


def read(workdir: str | os.PathLike) -> ModelCard:
    """The card of a run directory.

    Raises:
      InputError: There is no `model.json` in it, or the file is damaged.
    """
    path = Path(workdir) / MODEL
    if not path.is_file():
        what = f"holds no {MODEL}" if path.parent.exists() else "does not exist"
        raise InputError(
            f"{workdir} {what}. Expected a run directory, as "
            "`python -m deit_jax.main` and `python -m deit_jax.convert` make them."
        )
    try:
        fields = files.read_json(path)
        files.check(fields, FIELDS)
        card = ModelCard(
            **{x: tuple(v) if isinstance(v, list) else v for x, v in fields.items()}
        )
        card.create_model()  # an unknown variant, size, dtype or pool is refused here
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} is damaged: {str(error).rstrip('.')}. Write it anew: the same "
            "training or conversion command does, in another --workdir. An exported "
            "model is read by its own predict.py."
        ) from error
    return card
