"""What a model makes of images before its heads: the tokens after a block."""

import jax
from jaxtyping import Array, Float

from deit_jax.models.vit import LayerNorm, VisionTransformer

TOKENS = ("class", "distill", "patches", "all", "mean")


def tokens(
    model: VisionTransformer,
    params: dict,
    images: Float[Array, "b height width 3"],
    layer: int = -1,
) -> Float[Array, "b n d"]:
    """Returns all tokens after a block: class, distillation token, patches by rows.

    Args:
      images: Normalised.
      layer: A block, from 0 or, with -1 for the last, from the end. Behind the last
        comes the final norm, as in timm's `forward_features`; after another stands the
        residual stream as it is, timm's `forward_intermediates(norm=False)`.
    """
    layer = range(model.depth)[layer]
    name = f"blocks_{layer}"
    _, found = model.apply(
        {"params": params},
        images,
        capture_intermediates=lambda module, _: module.name == name,
        mutable=["intermediates"],
    )
    x = found["intermediates"][name]["__call__"][0]
    # A model whose head reads the mean of the patches has its norm behind that.
    if layer == model.depth - 1 and "norm" in params:
        x = LayerNorm().apply({"params": params["norm"]}, x)
    return x


def select(
    x: Float[Array, "b n d"], names: tuple[str, ...], model: VisionTransformer
) -> dict[str, jax.Array]:
    """Returns the `names`, of `TOKENS`, of what `tokens` returns.

    `class`, `distill` and `mean`, that of the patches, are [b, d]; `patches` and `all`
    [b, n, d].
    """
    patches = x[:, len(model.heads) :]
    parts = {
        "class": x[:, 0],
        "distill": x[:, 1],
        "patches": patches,
        "all": x,
        "mean": patches.mean(axis=1),
    }
    return {name: parts[name] for name in names}
