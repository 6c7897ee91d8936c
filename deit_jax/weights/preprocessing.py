"""What a model expects of its images, as other programs write it down.

It is a dict of `mean`, `std` and `crop_ratio`, as in `models.model_card.ModelCard`;
remarks on what is not quite it go to `notes`.
"""

import math
from collections.abc import Mapping

from deit_jax.errors import InputError
from deit_jax.models.model_card import MIN_STD
from deit_jax.models.variants import VARIANTS
from deit_jax.weights import timm

BICUBIC = 3  # Pillow's number, which transformers writes
RESIZED = "images were resized by {} interpolation there, here by bicubic"
DEIT_CROP_RATIO = 0.875  # 224 of 256 px, 384 of 438


def of_variant(variant: str, notes: list[str]) -> dict:
    """What weights are taken to expect that come alone.

    A `deit_*` comes from its authors, whose files say nothing more: the crop is that of
    their evaluation, which for a `deit3_*` leaves nothing out. A `vit_*` is timm's.
    """
    family = variant.partition("_")[0]
    mean, std = timm.MEAN_STD[family]
    size = VARIANTS[variant]["image_size"]
    # Of small images they, too, see the whole.
    ratio = {"deit": DEIT_CROP_RATIO, "deit3": 1.0}.get(family)
    if ratio is None or size < 224:
        ratio = timm.CROP_RATIO[size]
    notes.append(
        "nothing was found about the preparation of images: mean, std and crop of "
        f"{'timm' if family == 'vit' else 'facebookresearch/deit'} are taken "
        "(convert's --mean, --std and --crop_ratio change that)"
    )
    return {"mean": mean, "std": std, "crop_ratio": ratio}


def from_timm(config: Mapping, notes: list[str]) -> dict:
    """Reads a `pretrained_cfg`; what is missing or wrong is found by `check`."""
    if (interpolation := config.get("interpolation", "bicubic")) != "bicubic":
        notes.append(RESIZED.format(interpolation))
    if (mode := config.get("crop_mode", "center")) != "center":
        notes.append(f"timm's crop mode is {mode!r}; here the centre is cropped")
    names = {"mean": "mean", "std": "std", "crop_ratio": "crop_pct"}
    return {ours: config.get(theirs) for ours, theirs in names.items()}


def from_hugging_face(config: Mapping, notes: list[str]) -> dict:
    """Reads a `preprocessor_config.json`.

    `image_mean`, `image_std`, and the ratio of `crop_size` to `size`, where
    `do_center_crop` is set. What is missing or wrong is found by `check`.
    """
    factor = config.get("rescale_factor", 1 / 255)
    if not config.get("do_rescale", True) or abs(factor * 255 - 1) > 1e-3:
        mean = std = "of pixels that are not scaled by 1/255"
    elif config.get("do_normalize", True):
        mean, std = config.get("image_mean"), config.get("image_std")
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if (resample := config.get("resample", BICUBIC)) != BICUBIC:
        notes.append(RESIZED.format(f"Pillow's number {resample}"))
    size = config.get("size")
    crop = resized = _side(size)
    if config.get("do_center_crop", "crop_size" in config):
        crop = _side(config.get("crop_size"))
    ratio = crop_ratio(crop, resized) if crop and resized else None
    if not (isinstance(size, Mapping) and "shortest_edge" in size):
        notes.append(
            "transformers resizes an image straight to a square there; here the "
            "shorter side is resized and the centre cropped, so that images that "
            "are not square look a little different"
        )
    return {"mean": mean, "std": std, "crop_ratio": ratio}


def crop_ratio(crop: int, resized: int) -> float:
    """The ratio with which `data.crops.centre_view` resizes to just `resized` pixels.

    A quotient alone would not do: int(224 / (224 / 354)) is 353.
    """
    ratio = crop / resized
    while int(crop / ratio) < resized:
        ratio = math.nextafter(ratio, 0)
    return ratio


def check(found: Mapping, where: str) -> dict:
    """`mean`, `std` and `crop_ratio`, all of it floats.

    Raises:
      InputError: A mean or standard deviation is no three numbers, or the ratio is
        not in (0, 1].
    """
    for name, low in (("mean", -math.inf), ("std", MIN_STD)):
        value = found[name]
        if not (
            isinstance(value, list | tuple)
            and len(value) == 3
            and all(_is_number(x) and x >= low for x in value)
        ):
            least = f" of at least {MIN_STD:g}" if name == "std" else ""
            raise InputError(
                f"{where}: {name} is {value!r}, expected three numbers{least}, for "
                f"pixels in 0 .. 1. Give --{name}."
            )
    ratio = found["crop_ratio"]
    if not (_is_number(ratio) and 0 < ratio <= 1):
        raise InputError(
            f"{where}: the ratio of crop and size is {ratio!r}, expected a number "
            "above 0 and at most 1. Give --crop_ratio."
        )
    mean, std = (tuple(map(float, found[name])) for name in ("mean", "std"))
    return {"mean": mean, "std": std, "crop_ratio": float(ratio)}


def _side(size) -> int | None:
    """Reads a `size` or `crop_size`: a number, or a dict with a square or an edge."""
    if isinstance(size, Mapping):
        size = size.get("height", size.get("shortest_edge"))
    return size if type(size) is int else None


def _is_number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
