"""ResNets as torchvision has them, for inference only.

He et al. 2016 (arXiv 1512.03385), with the stride in the 3 x 3 convolution; wide ones
(Zagoruyko and Komodakis 2016, arXiv 1605.07146) and ResNeXt (Xie et al. 2017, arXiv
1611.05431). A trained network's BatchNorm is a scale and a shift for each channel,
which is part of the convolution before it here: there are kernels and biases only.

Submodules have torchvision's names, dots included.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Float32

STEMS = ("standard", "cifar")
# torchvision's names. `width` is that of a group in the first stage.
SIZES = {
    "resnet18": {"depths": (2, 2, 2, 2), "bottleneck": False},
    "resnet34": {"depths": (3, 4, 6, 3), "bottleneck": False},
    "resnet50": {"depths": (3, 4, 6, 3)},
    "resnet101": {"depths": (3, 4, 23, 3)},
    "resnet152": {"depths": (3, 8, 36, 3)},
    "wide_resnet50_2": {"depths": (3, 4, 6, 3), "width": 128},
    "wide_resnet101_2": {"depths": (3, 4, 23, 3), "width": 128},
    "resnext50_32x4d": {"depths": (3, 4, 6, 3), "groups": 32, "width": 4},
    "resnext101_32x8d": {"depths": (3, 4, 23, 3), "groups": 32, "width": 8},
    "resnext101_64x4d": {"depths": (3, 4, 23, 3), "groups": 64, "width": 4},
}
EXPANSION = 4  # of a bottleneck


def conv(features: int, side: int, dtype, name: str, *, stride=1, groups=1) -> nn.Conv:
    """A convolution whose output is as large as its input, divided by the stride."""
    return nn.Conv(
        features,
        (side, side),
        strides=stride,
        padding=side // 2,
        feature_group_count=groups,
        dtype=dtype,
        name=name,
    )


def pool_and_classify(
    x: Float[Array, "b h w c"], num_classes: int
) -> Float32[Array, "b classes"]:
    """The mean over all positions and a linear head, in float32."""
    x = x.astype(jnp.float32).mean((1, 2))
    return nn.Dense(num_classes, name="fc")(x)


class Block(nn.Module):
    """A residual block: two 3 x 3 convolutions, or a bottleneck of three."""

    channels: int
    stride: int
    bottleneck: bool
    groups: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        dtype, stride, out = self.dtype, self.stride, self.channels
        if self.bottleneck:
            inner = out * self.width // 64 * self.groups
            out *= EXPANSION
            y = nn.relu(conv(inner, 1, dtype, "conv1")(x))
            y = conv(inner, 3, dtype, "conv2", stride=stride, groups=self.groups)(y)
            y = conv(out, 1, dtype, "conv3")(nn.relu(y))
        else:
            y = nn.relu(conv(out, 3, dtype, "conv1", stride=stride)(x))
            y = conv(out, 3, dtype, "conv2")(y)
        if stride != 1 or x.shape[-1] != out:
            x = conv(out, 1, dtype, "downsample.0", stride=stride)(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A ResNet of `SIZES`.

    `depths` are the blocks of the four stages. The `cifar` stem, for images of about 32
    px, is a 3 x 3 convolution of stride 1 without a max-pool. `dtype` is that of the
    convolutions and of what is between them; parameters and the head are float32.
    """

    num_classes: int
    depths: Sequence[int]
    bottleneck: bool = True
    groups: int = 1
    width: int = 64
    stem: str = "standard"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b height width 3"]
    ) -> Float32[Array, "b classes"]:
        """Logits of normalised images of any size."""
        x = images.astype(self.dtype)
        if self.stem == "cifar":
            x = nn.relu(conv(64, 3, self.dtype, "conv1")(x))
        else:
            x = nn.relu(conv(64, 7, self.dtype, "conv1", stride=2)(x))
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, depth in enumerate(self.depths):
            for number in range(depth):
                x = Block(
                    64 * 2**stage,
                    stride=2 if stage and not number else 1,
                    bottleneck=self.bottleneck,
                    groups=self.groups,
                    width=self.width,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}.{number}",
                )(x)
        return pool_and_classify(x, self.num_classes)
