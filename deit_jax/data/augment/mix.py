"""MixUp (Zhang et al. 2017) and CutMix (Yun et al. 2019) of two partners.

Deviations from DeiT, which draws once a batch: lambda, the box and the choice between
the two are drawn for each pair, lambda is a multiple of 1 / 256, and the mixed image is
rounded to uint8. The box is that of CutMix's code and of the timm that DeiT was trained
with (0.3.2): of an odd side it is a pixel short, which later versions add.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Key, UInt8

from deit_jax.data.augment.fixed import below, chance, midpoints, quantile

LAMBDA_BITS = 8
LAMBDA = 1 << LAMBDA_BITS  # one, in units of lambda


class Mix(NamedTuple):
    """How two partners are mixed, the same for both.

    Attributes:
      share: int32, how much of its own image each keeps outside of the box, in 1 / 256.
      box: int32 [4], (top, left, bottom, right) of what it takes from its partner.
      weight: float32, the share of its own image, which is its own label's.
    """

    share: Int32[Array, "*b"]
    box: Int32[Array, "*b 4"]
    weight: Float[Array, "*b"]


def draw(
    key: Key[Array, ""],
    size: int,
    *,
    mixup: float,
    cutmix: float,
    probability: float,
    switch_probability: float,
) -> Mix:
    """Draws how a pair is mixed.

    Args:
      key: Of the pair.
      size: Pixels a side.
      mixup: alpha of lambda's Beta(alpha, alpha); 0 for no MixUp.
      cutmix: The same for CutMix.
      probability: That a pair is mixed at all.
      switch_probability: That it is CutMix, where both are on.
    """
    bits = jax.random.bits(key, (6,))
    if not mixup or not cutmix:
        switch_probability = float(cutmix > 0)
    cut = chance(bits[1], switch_probability)
    share = quantile(bits[2], beta_table(mixup)) if mixup else jnp.int32(LAMBDA)
    if cutmix:
        side = jnp.asarray(_cut_sides(size))[quantile(bits[3], beta_table(cutmix))]
        top, left = below(bits[4], size), below(bits[5], size)  # the centre, so far
        box = jnp.stack(
            [top - side // 2, left - side // 2, top + side // 2, left + side // 2]
        ).clip(0, size)
    else:
        box = jnp.zeros(4, jnp.int32)

    mixed = chance(bits[0], probability)
    share = jnp.where(mixed & ~cut, share, LAMBDA)
    box = jnp.where(mixed & cut, box, 0)
    area = (box[2] - box[0]) * (box[3] - box[1])
    # Exact but for the last bit: XLA may multiply by the reciprocal of a constant.
    weight = jnp.where(
        cut,
        (size * size - area).astype(jnp.float32) / (size * size),
        share.astype(jnp.float32) / LAMBDA,
    )
    return Mix(share, box, weight)


def unless(off: Bool[Array, "*b"], drawn: Mix) -> Mix:
    """`drawn`, or where `off` says so no mixing at all."""
    return Mix(
        jnp.where(off, LAMBDA, drawn.share),
        jnp.where(off[..., None], 0, drawn.box),
        jnp.where(off, 1.0, drawn.weight),
    )


def apply(
    image: UInt8[Array, "h w 3"], partner: UInt8[Array, "h w 3"], mix: Mix
) -> UInt8[Array, "h w 3"]:
    """What `image` becomes; an image that is its own partner stays as it is."""
    size = image.shape[0]
    own, other = image.astype(jnp.int32), partner.astype(jnp.int32)
    blended = (
        mix.share * own + (LAMBDA - mix.share) * other + LAMBDA // 2 >> LAMBDA_BITS
    )
    rows, columns = jnp.arange(size)[:, None, None], jnp.arange(size)[None, :, None]
    top, left, bottom, right = (mix.box[n] for n in range(4))
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return jnp.where(inside, other, blended).astype(jnp.uint8)


def apply_pair(pair: UInt8[Array, "2 h w 3"], mix: Mix) -> UInt8[Array, "2 h w 3"]:
    """What two partners become."""
    first, second = pair
    return jnp.stack([apply(first, second, mix), apply(second, first, mix)])


@functools.cache
def beta_table(alpha: float) -> np.ndarray:
    """Quantiles of Beta(alpha, alpha) in 1 / 256."""
    from scipy.stats import beta

    return np.round(beta.ppf(midpoints(), alpha, alpha) * LAMBDA).astype(np.int32)


@functools.cache
def _cut_sides(size: int) -> np.ndarray:
    """int(size * sqrt(1 - lambda)) for each lambda: int32 [LAMBDA + 1]."""
    return np.array(
        [math.isqrt(size * size * (LAMBDA - k) // LAMBDA) for k in range(LAMBDA + 1)],
        np.int32,
    )
