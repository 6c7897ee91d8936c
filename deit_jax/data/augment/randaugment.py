"""RandAugment (Cubuk et al. 2020) as DeiT takes it from timm: `rand-m9-mstd0.5-inc1`.

Each layer draws one of 15 operations, applies it with probability 0.5, and draws its
magnitude from N(m, mstd), clipped to 0 .. 10. What they are made of is shared: one warp
for the five that move pixels, one table of levels for the eight that change them one by
one, and two blends.
"""

import dataclasses
import functools
import re
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8

from deit_jax.data.augment import colour, geometry
from deit_jax.data.augment.fixed import FACTOR, below, chance, midpoints, quantile
from deit_jax.errors import InputError

# timm's `_RAND_INCREASING_TRANSFORMS`, in groups.
WARPS = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
TABLES = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "PosterizeIncreasing",
    "SolarizeIncreasing",
    "SolarizeAdd",
    "ContrastIncreasing",
    "BrightnessIncreasing",
)
BLENDS = ("ColorIncreasing", "SharpnessIncreasing")
OPERATIONS = WARPS + TABLES + BLENDS
MAX_MAGNITUDE = 10
PROBABILITY = 0.5  # of each layer


@dataclasses.dataclass(frozen=True)
class Policy:
    """What a string in timm's syntax says.

    Attributes:
      layers: Operations one after the other.
      magnitude: Mean, 0 .. 10.
      magnitude_std: Standard deviation of the magnitude.
    """

    layers: int
    magnitude: float
    magnitude_std: float


def parse(text: str) -> Policy:
    """`rand-m9-mstd0.5-inc1`, with `-n2` for the number of layers.

    Raises:
      InputError: It is not of this form, or a number is out of its range.
    """
    match = re.fullmatch(
        r"rand-m(\d+(?:\.\d+)?)(?:-n(\d+))?(?:-mstd(\d+(?:\.\d+)?))?(?:-n(\d+))?-inc1",
        str(text),
    )
    if match and not (match[2] and match[4]):
        magnitude, std = float(match[1]), float(match[3] or 0)
        layers = int(match[2] or match[4] or 2)
        # Beyond a std of 100 timm takes a uniform distribution.
        if magnitude <= MAX_MAGNITUDE and std <= 100 and layers >= 1:
            return Policy(layers, magnitude, std)
    raise InputError(
        f"augment.randaugment={text!r}: expected timm's syntax with increasing "
        "magnitudes up to 10, such as rand-m9-mstd0.5-inc1 or rand-m7-n3-mstd0.5-inc1; "
        "an empty string switches it off."
    )


def magnitudes(policy: Policy) -> np.ndarray:
    """Quantiles of the clipped normal distribution, float64 [QUANTILES]."""
    values = np.full(len(midpoints()), policy.magnitude)
    if policy.magnitude_std:
        normal = NormalDist(policy.magnitude, policy.magnitude_std)
        values = np.array([normal.inv_cdf(p) for p in midpoints()])
    return values.clip(0, MAX_MAGNITUDE)


@functools.cache
def arguments(policy: Policy) -> dict[str, np.ndarray]:
    """What each operation does at each quantile of the magnitude, as integers.

    Returns:
      int32 [QUANTILES], [QUANTILES, 2] for `rotate`:
      - `rotate` (cos, sin) of up to 30 degrees, `shear` and `translate` (a share of
        the side), in 2^-20; their sign is drawn apart;
      - `enhance`: how far the factor is from 1, in 1 / FACTOR; either way;
      - `bits` that posterize keeps, `threshold` of solarize, `addition` of SolarizeAdd.
    """
    levels = magnitudes(policy) / MAX_MAGNITUDE
    one = 1 << geometry.COORDINATE_BITS
    return {
        "rotate": np.array([geometry.rotation(30 * level) for level in levels]),
        "shear": np.round(0.3 * levels * one).astype(np.int32),
        "translate": np.round(0.45 * levels * one).astype(np.int32),
        "enhance": np.round(0.9 * levels * FACTOR).astype(np.int32),
        "bits": 4 - (4 * levels).astype(np.int32),
        "threshold": 256 - np.minimum((256 * levels).astype(np.int32), 256),
        "addition": np.minimum((110 * levels).astype(np.int32), 128),
    }


def randaugment(
    key: Key[Array, ""],
    image: UInt8[Array, "h w 3"],
    *,
    policy: Policy,
    fill: tuple[int, int, int],
    interpolation: str,
) -> UInt8[Array, "h w 3"]:
    """Draws and applies the operations of all layers.

    Args:
      fill: RGB of the pixels that a warp brings in from outside.
      interpolation: Of the warps, see `geometry.warp`.
    """
    for layer_bits in jax.random.bits(key, (policy.layers, 4)):
        drawn = draw(layer_bits)
        image = apply(
            image, *drawn, policy=policy, fill=fill, interpolation=interpolation
        )
    return image


def draw(bits):
    """One layer from uint32 [4].

    Returns:
      The place in `OPERATIONS`, or -1 for none; random bits for the magnitude; 1 or -1.
    """
    operation = jnp.where(
        chance(bits[0], PROBABILITY), below(bits[1], len(OPERATIONS)), -1
    )
    return operation, bits[2], jnp.where(chance(bits[3], 0.5), 1, -1)


def apply(image, operation, quantile_bits, sign, *, policy, fill, interpolation):
    """One operation; its arguments follow from `quantile_bits` and `sign`.

    The three groups are branches, not a switch of fifteen: under `vmap`, where all
    branches are computed, that is one warp, one table and two blends.
    """
    table = arguments(policy)
    argument = functools.partial(quantile, quantile_bits)
    first_table = len(WARPS)
    first_blend = first_table + len(TABLES)

    def warped(image):
        matrix = _matrix(operation, sign, argument, table, *image.shape[:2])
        return geometry.warp(image, matrix, fill=fill, interpolation=interpolation)

    def looked_up(image):
        factor = _factor(argument, table, sign)
        tables = jax.lax.switch(
            operation - first_table,
            [
                lambda: colour.autocontrast(image),
                lambda: colour.equalize(image),
                lambda: colour.invert(),
                lambda: colour.posterize(argument(table["bits"])),
                lambda: colour.solarize(argument(table["threshold"])),
                lambda: colour.solarize_add(argument(table["addition"])),
                lambda: colour.contrast(image, factor),
                lambda: colour.brightness(factor),
            ],
        )
        return colour.look_up(image, tables)

    def blended(image):
        factor = _factor(argument, table, sign)
        return jax.lax.cond(
            operation == first_blend, colour.saturation, colour.sharpness, image, factor
        )

    group = (
        (operation >= 0).astype(jnp.int32)
        + (operation >= first_table)
        + (operation >= first_blend)
    )
    return jax.lax.switch(group, [lambda x: x, warped, looked_up, blended], image)


def _factor(argument, table, sign):
    # Not below timm's bound of 0.1, which is what magnitude 10 gives.
    return FACTOR + sign * argument(table["enhance"])


def _matrix(operation, sign, argument, table, height, width):
    one = jnp.int32(1 << geometry.COORDINATE_BITS)
    zero = jnp.int32(0)
    cos, sin = argument(table["rotate"])
    shear = sign * argument(table["shear"])
    shift = sign * argument(table["translate"])
    matrices = [
        geometry.rotation_matrix(cos, sign * sin, height, width),
        jnp.stack([one, shear, zero, zero, one, zero]),
        jnp.stack([one, zero, zero, shear, one, zero]),
        jnp.stack([one, zero, shift * width, zero, one, zero]),
        jnp.stack([one, zero, zero, zero, one, shift * height]),
    ]
    return jnp.stack(matrices)[operation]
