"""What is done to a training image: the fields, and the recipes that set them."""

import dataclasses
import difflib
from collections.abc import Mapping

from deit_jax.data.augment import randaugment
from deit_jax.errors import InputError

MIXING_FIELDS = (
    "mixup",
    "cutmix",
    "mix_probability",
    "mix_switch_probability",
    "mix_off_view",
)
# No fields of a config: they follow from others.
DERIVED = ("mix_off_view", "mean", "std")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """All that a training image follows from beside (seed, view, index) and the source.

    In the order in which it is applied; the defaults change nothing.

    Attributes:
      crop_area: Random crops of images that differ from the model's size: bounds of
        their share of the image.
      crop_aspect: And of their width / height.
      crop_padding: Images of the model's size: pixels added on each side before the
        size is cropped back at random; black, and with `three_augment` reflected.
      flip: Mirror every second image, left to right.
      color_jitter: Strengths of brightness, contrast, saturation and hue, as of
        torchvision's ColorJitter, in random order.
      randaugment: In timm's syntax, e.g. rand-m9-mstd0.5-inc1; empty for none.
      three_augment: Grey, solarized or blurred (DeiT III), before the colour jitter.
      interpolation: Of RandAugment's warps, bicubic or bilinear.
      erase_probability: Random erasing of an image ...
      erase_area: ... of this share of it ...
      erase_aspect: ... in rectangles of this height / width ...
      erase_mode: ... filled with `pixel` noise, or with the `constant` mean.
      mixup: alpha of MixUp; 0 for none.
      cutmix: alpha of CutMix; 0 for none.
      mix_probability: That a pair is mixed.
      mix_switch_probability: That it is CutMix and not MixUp, where both are on.
      mix_off_view: The first view in which no pair is mixed; 0 for none.
      mean, std: Of the data set's channels: what fills warped and erased places.
    """

    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_aspect: tuple[float, float] = (1.0, 1.0)
    crop_padding: int = 0
    flip: bool = False
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    randaugment: str = ""
    three_augment: bool = False
    interpolation: str = "bicubic"
    erase_probability: float = 0.0
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    erase_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    erase_mode: str = "pixel"
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    mix_switch_probability: float = 0.5
    mix_off_view: int = 0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)

    @property
    def mixes(self) -> bool:
        """Whether pairs are mixed at all."""
        return self.mix_probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def unmixed(self) -> "Augmentation":
        """The same without MixUp and CutMix."""
        off = {field: getattr(Augmentation, field) for field in MIXING_FIELDS}
        return dataclasses.replace(self, **off)

    def __str__(self) -> str:
        """What is switched on, in the order in which it is applied."""

        def in_words(value) -> str:
            if isinstance(value, tuple):
                return " (" + ", ".join(f"{x:g}" for x in value) + ")"
            return "" if value is True else f" {value}"

        on = [
            field.name + in_words(value)
            for field in dataclasses.fields(self)
            if field.name not in ("mean", "std")
            for value in [getattr(self, field.name)]
            if value != field.default
        ]
        return ", ".join(on) or "nothing"

    def describe(self) -> dict:
        """As JSON holds it; `mix_off_view`, which caches lack, only where it is set."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in dataclasses.fields(self)
            for value in [getattr(self, field.name)]
            if value or field.name != "mix_off_view"
        }


RANDOM_CROP = {"crop_area": (0.08, 1.0), "crop_aspect": (3 / 4, 4 / 3)}
MIX = {"mixup": 0.8, "cutmix": 1.0}
RECIPES = {
    # Nothing: of an image larger than the model's size, the centre.
    "none": {},
    # Crop and flip alone, what is usual on CIFAR.
    "crop_flip": RANDOM_CROP | {"crop_padding": 4, "flip": True},
    # The study that this project grew from, with MixUp and CutMix on every pair; it
    # names the operations, the strengths are ours.
    "seed_study": RANDOM_CROP
    | MIX
    | {
        "crop_padding": 4,
        "flip": True,
        "color_jitter": (0.2, 0.2, 0.2, 0.05),
        "erase_probability": 0.25,
        "erase_mode": "constant",
    },
    # Touvron et al. 2020, table 9 and the defaults of its code (colour jitter of 0.3
    # is one of them, and RandAugment switches it off). Images that have the model's
    # size already are padded and cropped there too.
    "deit": RANDOM_CROP
    | MIX
    | {
        "crop_padding": 4,
        "flip": True,
        "randaugment": "rand-m9-mstd0.5-inc1",
        "erase_probability": 0.25,
    },
    # Touvron et al. 2022 (DeiT III), section 3. Small images are padded by reflection,
    # as in `augment.py` of facebookresearch/deit.
    "three_augment": RANDOM_CROP
    | MIX
    | {
        "crop_padding": 4,
        "flip": True,
        "three_augment": True,
        "color_jitter": (0.3, 0.3, 0.3, 0.0),
    },
}
FIELDS = tuple(
    field.name
    for field in dataclasses.fields(Augmentation)
    if field.name not in DERIVED
)


def resolve(
    recipe: str,
    overrides: Mapping,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Augmentation:
    """The fields of a recipe, where `overrides` does not say otherwise.

    Args:
      recipe: One of `RECIPES`.
      overrides: Of the fields of `Augmentation`; None leaves a field to the recipe.
      mean, std: Of the data set.

    Raises:
      InputError: There is no such recipe, or two of its fields exclude each other.
    """
    if recipe not in RECIPES:
        close = difflib.get_close_matches(recipe, RECIPES, n=1)
        raise InputError(
            f"unknown augment.recipe={recipe!r}. Known: {', '.join(RECIPES)}."
            + (f" Did you mean {close[0]}?" if close else "")
        )
    given = {name: value for name, value in overrides.items() if value is not None}
    fields = RECIPES[recipe] | given | {"mean": mean, "std": std}
    settings = Augmentation(
        **{k: _uniform(v, getattr(Augmentation, k)) for k, v in fields.items()}
    )
    if settings.randaugment != "":
        randaugment.parse(settings.randaugment)
    if settings.three_augment and settings.randaugment:
        raise InputError(
            "augment.three_augment and augment.randaugment are both on: 3-Augment is "
            "what DeiT III takes instead of RandAugment. Switch one off."
        )
    return settings


def _uniform(value, default):
    """1 and 1.0, a list and a tuple: the same in every description of a cache."""
    if isinstance(default, tuple):
        return tuple(map(float, value))
    return float(value) if isinstance(default, float) else value
