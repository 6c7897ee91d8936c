"""RegNetX and RegNetY as torchvision has them, for inference only.

Radosavovic et al. 2020 (arXiv 2003.13678). The teacher of DeiT is RegNetY-16GF. As in
`deit_jax.models.resnet`, BatchNorm is part of the convolution before it, and submodules
have torchvision's names.
"""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from deit_jax.models.resnet import conv, pool_and_classify

# torchvision's names, and the parameters of the paper's design space: depth, w_0, w_a,
# w_m, group width. A Y is an X with squeeze-and-excitation.
SIZES = {
    "regnet_x_400mf": (22, 24, 24.48, 2.54, 16),
    "regnet_x_800mf": (16, 56, 35.73, 2.28, 16),
    "regnet_x_1_6gf": (18, 80, 34.01, 2.25, 24),
    "regnet_x_3_2gf": (25, 88, 26.31, 2.25, 48),
    "regnet_x_8gf": (23, 80, 49.56, 2.88, 120),
    "regnet_x_16gf": (22, 216, 55.59, 2.1, 128),
    "regnet_x_32gf": (23, 320, 69.86, 2.0, 168),
    "regnet_y_400mf": (16, 48, 27.89, 2.09, 8),
    "regnet_y_800mf": (14, 56, 38.84, 2.4, 16),
    "regnet_y_1_6gf": (27, 48, 20.71, 2.65, 24),
    "regnet_y_3_2gf": (21, 80, 42.63, 2.66, 24),
    "regnet_y_8gf": (17, 192, 76.82, 2.19, 56),
    "regnet_y_16gf": (18, 200, 106.23, 2.48, 112),
    "regnet_y_32gf": (20, 232, 115.89, 2.53, 232),
    "regnet_y_128gf": (27, 456, 160.83, 2.52, 264),
}
SQUEEZE = 0.25  # of a block's input


def stages(
    depth: int, w_0: int, w_a: float, w_m: float, group_width: int
) -> list[tuple[int, int, int]]:
    """(width, depth, group width) of the four stages: sections 3.3 and 4.

    The widths of the blocks grow linearly, are rounded to `w_0 w_m^k` and to multiples
    of 8, and then to whole groups.
    """
    steps = np.round(np.log1p(np.arange(depth) * w_a / w_0) / np.log(w_m))
    widths = (np.round(w_0 * w_m**steps / 8) * 8).astype(int).tolist()
    found = []
    for width, blocks in itertools.groupby(widths):
        group = min(group_width, width)
        whole = max(group, int(width + group / 2) // group * group)
        if whole < 0.9 * width:
            whole += group
        found.append((whole, len(list(blocks)), group))
    return found


class Block(nn.Module):
    """A residual bottleneck without expansion, of grouped convolutions."""

    channels: int
    stride: int
    groups: int
    squeeze: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        dtype, stride, out = self.dtype, self.stride, self.channels
        y = nn.relu(conv(out, 1, dtype, "f.a.0")(x))
        y = conv(out, 3, dtype, "f.b.0", stride=stride, groups=self.groups)(y)
        y = nn.relu(y)
        if self.squeeze:
            s = y.astype(jnp.float32).mean((1, 2), keepdims=True)
            s = conv(round(SQUEEZE * x.shape[-1]), 1, dtype, "f.se.fc1")(s)
            s = conv(out, 1, dtype, "f.se.fc2")(nn.relu(s))
            y = y * nn.sigmoid(s)
        y = conv(out, 1, dtype, "f.c.0")(y)
        if stride != 1 or x.shape[-1] != out:
            x = conv(out, 1, dtype, "proj.0", stride=stride)(x)
        return nn.relu(x + y)


class RegNet(nn.Module):
    """A RegNet of `SIZES`; `dtype` as in `deit_jax.models.resnet.ResNet`."""

    num_classes: int
    design: tuple[int, int, float, float, int]
    squeeze: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b height width 3"]
    ) -> Float32[Array, "b classes"]:
        """Logits of normalised images of any size."""
        x = images.astype(self.dtype)
        x = nn.relu(conv(32, 3, self.dtype, "stem.0", stride=2)(x))
        for stage, (width, depth, group) in enumerate(stages(*self.design), 1):
            for number in range(depth):
                x = Block(
                    width,
                    stride=1 if number else 2,
                    groups=width // group,
                    squeeze=self.squeeze,
                    dtype=self.dtype,
                    name=f"trunk_output.block{stage}.block{stage}-{number}",
                )(x)
        return pool_and_classify(x, self.num_classes)
