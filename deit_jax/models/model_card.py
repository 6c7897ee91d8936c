"""`model.json`: what a run directory says of its model, for all that uses it.

Training writes it at its start, a conversion with the weights. With the parameters of
a checkpoint it is all that evaluation, prediction and export need.
"""

import dataclasses
import json
import math
import os
from pathlib import Path

from deit_jax import files
from deit_jax.errors import InputError
from deit_jax.files import replace_file
from deit_jax.models import variants
from deit_jax.models.vit import VisionTransformer

MODEL = "model.json"
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


def read(workdir: str | os.PathLike) -> ModelCard:
    """The card of a run directory.

    Raises:
      InputError: There is no such directory, or no `model.json` in it, or the file is
        damaged.
    """
    workdir = Path(workdir)
    path = workdir / MODEL
    if not path.is_file():
        what = (
            f"holds no {MODEL}"
            if workdir.is_dir()
            else "is a file, not a run directory"
            if workdir.exists()
            else "does not exist"
        )
        raise InputError(
            f"{workdir} {what}. Expected a run directory, as "
            "`python -m deit_jax.main` and `python -m deit_jax.convert` make them."
        )
    try:
        fields = files.read_json(path)
        exported = isinstance(fields, dict) and "format" in fields
        card = None if exported else _parse(fields)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged: {str(error).rstrip('.')}. Write it anew: the same "
            "training or conversion command does, in another --workdir."
        ) from error
    if card is None:
        raise InputError(
            f"{workdir} is an exported model, which its predict.py reads. Give the run "
            "directory that it was exported from."
        )
    return card


def _parse(fields) -> ModelCard:
    """Refuses, with ValueError, what `ModelCard` does not mean."""
    expected = {field.name for field in dataclasses.fields(ModelCard)}
    if isinstance(fields, dict):
        fields = {"pool": "token"} | fields  # files of older versions have none
    if not isinstance(fields, dict) or fields.keys() != expected:
        raise ValueError(f"expected the fields {', '.join(sorted(expected))}.")
    for name in ("variant", "dtype", "origin", "pool"):
        if not isinstance(fields[name], str):
            raise ValueError(f"{name} is no string.")
    names = fields["class_names"]
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ValueError("class_names is no list of strings.")
    if not names:
        raise ValueError("class_names is empty.")
    if type(fields["image_size"]) is not int:
        raise ValueError("image_size is no whole number.")
    for name in ("mean", "std"):
        values = fields[name]
        if not (
            isinstance(values, list)
            and len(values) == 3
            and all(_is_finite(value) for value in values)
        ):
            raise ValueError(f"{name} is not three numbers.")
    if min(fields["std"]) < MIN_STD:
        raise ValueError(f"std is not at least {MIN_STD:g}.")
    if not (_is_finite(fields["crop_ratio"]) and 0 < fields["crop_ratio"] <= 1):
        raise ValueError("crop_ratio is not above 0 and at most 1.")
    card = ModelCard(
        **fields
        | {name: tuple(fields[name]) for name in ("class_names", "mean", "std")}
    )
    card.create_model()  # an unknown variant, size, dtype or pool is refused here
    return card


def _is_finite(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
