"""What the prefix tokens look at: attention weights as maps over the patches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deit_jax.models.vit import VisionTransformer


class AttentionMaps(NamedTuple):
    """Over the patch grid [S, S], for each of the t prefix tokens (class, distill).

    A map sums to less than 1: the rest of the attention goes to the prefix tokens. Of a
    model whose class head reads the mean of the patches, the first map is the mean of
    theirs, not the class token's.
    """

    heads: Float[Array, "b t h s s"]  # of the last block
    rollout: Float[Array, "b t s s"]


def attention_maps(
    model: VisionTransformer, params: dict, images: Float[Array, "b height width 3"]
) -> tuple[AttentionMaps, dict[str, Float[Array, "b classes"]]]:
    """The maps of normalised images, and the logits of every head."""
    logits, sown = model.apply({"params": params}, images, mutable=["intermediates"])
    blocks = [
        sown["intermediates"][f"blocks_{i}"]["attn"]["attention"][0]
        for i in range(model.depth)
    ]  # each [B, H, N, N]
    t = len(model.heads)
    side = model.image_size // model.patch_size

    def over_patches(weights):  # [..., N, N] to [..., t, S, S]
        rows = weights[..., :t, t:]
        if model.pool == "mean":
            rows = rows.at[..., 0, :].set(weights[..., t:, t:].mean(axis=-2))
        return rows.reshape(*rows.shape[:-1], side, side)

    heads = jnp.swapaxes(over_patches(blocks[-1]), 1, 2)  # [B, t, H, S, S]
    return AttentionMaps(heads, over_patches(rollout(blocks))), logits


def rollout(blocks: list[Float[Array, "b h n n"]]) -> Float[Array, "b n n"]:
    """Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928, section 3).

    The weights of every block, averaged over its heads, are mixed half and half with
    the identity, which stands for the residual connection, and multiplied, the first
    block rightmost. Row i says how much of token i of the last block came from each
    token of the input; it sums to 1.
    """
    identity = jnp.eye(blocks[0].shape[-1])
    product = identity[None]
    for weights in blocks:
        mixed = 0.5 * weights.mean(axis=1) + 0.5 * identity[None]
        product = jnp.matmul(mixed, product, precision=jax.lax.Precision.HIGHEST)
    return product
