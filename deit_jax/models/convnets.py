"""The table of convolutional teachers that run in JAX, and the function for one."""

import re

from flax import linen as nn

from deit_jax.errors import InputError
from deit_jax.models import regnet, resnet
from deit_jax.models.variants import DTYPES

# Under torchvision's names. Its other networks run in torch (`teacher.network`).
ARCHITECTURES = (*resnet.SIZES, *regnet.SIZES)
NAMES = "the ResNets, ResNeXts and RegNets of torchvision"


def create(
    arch: str, *, num_classes: int, stem: str = "standard", dtype: str = "float32"
) -> nn.Module:
    """Builds a network of `ARCHITECTURES`; raises InputError for another.

    Args:
      stem: `standard`, or `cifar` of a ResNet.
      dtype: `float32` or `bfloat16`.
    """
    if arch not in ARCHITECTURES:
        raise InputError(
            f"{arch} does not run in JAX, where there are {NAMES} and the models of "
            "this package. Export its logits with torch: --backend=torch."
        )
    if stem not in resnet.STEMS:
        raise InputError(f"--stem={stem}: expected one of {', '.join(resnet.STEMS)}.")
    if arch in resnet.SIZES:
        return resnet.ResNet(
            num_classes, **resnet.SIZES[arch], stem=stem, dtype=DTYPES[dtype]
        )
    if stem != "standard":
        raise InputError(
            f"--stem={stem} is for the ResNet family (resnet, resnext, wide_resnet), "
            f"not for {arch}. Leave --stem out."
        )
    squeeze = arch.startswith("regnet_y")
    return regnet.RegNet(
        num_classes, regnet.SIZES[arch], squeeze=squeeze, dtype=DTYPES[dtype]
    )


def torchvision_name(name: str) -> str:
    """torchvision's name of an architecture of timm, without the tag of its weights.

    `regnety_160` of timm is `regnet_y_16gf`, and some are `regnetx_004_tv` where timm's
    own have other widths; ResNets have one name in both.
    """
    name = name.partition(".")[0]
    if not (parts := re.fullmatch(r"regnet([xy])_(\d{3,4})(_tv)?", name)):
        return name
    flops = int(parts[2]) * 100  # in millions
    size = f"{flops}mf" if flops < 1000 else f"{flops / 1000:g}gf".replace(".", "_")
    return f"regnet_{parts[1]}_{size}"
