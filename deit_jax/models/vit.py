"""The vision transformer, with or without DeiT's distillation token.

ViT: Dosovitskiy et al. 2020 (arXiv 2010.11929). DeiT: Touvron et al. 2020 (arXiv
2012.12877). DeiT III: Touvron et al. 2022 (arXiv 2204.07118). Submodules and parameters
are named and laid out so that timm's state dict maps on to them by transposes alone.

Letters of the shapes: b images, n tokens, d width, h heads, p patch side.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32, Key

from deit_jax.models.gelu import gelu

# timm's trunc_normal_(std=0.02) cuts at +-2.0, which is 100 standard deviations and
# so no cut at all. JAX cuts at two, which would leave a standard deviation of 0.8796
# times the one asked for: divide, so that the weights really have 0.02.
TRUNCATED_STD = 0.87962566103423978
trunc_normal = nn.initializers.truncated_normal(0.02 / TRUNCATED_STD)

# DeiT leaves the patch projection at torch's default for a convolution:
# U(-1/sqrt(fan_in), 1/sqrt(fan_in)). Deviation: torch draws its bias from the same
# interval, here it starts at 0 like every other bias.
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

Dense = partial(nn.Dense, kernel_init=trunc_normal)


def scaled_dense(features: int, gamma: Float[Array, " d"] | None, **fields) -> nn.Dense:
    """A dense layer, and LayerScale behind it where `gamma` is not None.

    gamma (x W + b) is x (W gamma) + b gamma: with the kernel scaled, no pass over the
    activations is added, and none of them is kept for the gradient of gamma. Dropout
    between the two would commute with the scale.
    """
    if gamma is None:
        return Dense(features, **fields)
    return Dense(features, promote_dtype=partial(_promote_scaled, gamma), **fields)


def _promote_scaled(gamma, x, kernel, bias, *, dtype):
    # Scaled in float32: the kernel is rounded to 16 bits once, as it is without.
    return nn.dtypes.promote_dtype(x, kernel * gamma[None], bias * gamma, dtype=dtype)


class LayerScale(nn.Module):
    """gamma [D] of a residual branch (Touvron et al. 2021, arXiv 2103.17239, eq. 4)."""

    width: int
    init_value: float

    @nn.compact
    def __call__(self) -> Float32[Array, " d"]:
        start = nn.initializers.constant(self.init_value)
        return self.param("gamma", start, (self.width,))


# Statistics and result in float32 whatever the model's dtype.
LayerNorm = partial(nn.LayerNorm, epsilon=1e-6, dtype=jnp.float32)

# Every place that drops something has an integer of its own, `site`: 0 after the
# position embeddings, then SITES_PER_BLOCK for each block.
SITES_PER_BLOCK = 5


def drop(
    x: Float[Array, "*rows d"],
    drop_keys: Key[Array, " b"] | None,
    *,
    site: int,
    rate: float,
    whole: bool = False,
) -> Float[Array, "*rows d"]:
    """Zero entries of `x` with probability `rate`; scale the kept by 1 / (1 - rate).

    With `whole` an image is kept or zeroed as one, which on a residual branch is
    stochastic depth (Huang et al. 2016, arXiv 1603.09382); without, it is dropout.
    No keys, or a rate of 0, return `x` as it is. The rows of `x` are the tokens of one
    image after the other. Unlike with Linen's rngs a mask depends on the image's key
    and the site only, not on the batch around it or the number of devices.
    """
    if drop_keys is None or rate == 0:
        return x
    images = x.reshape(drop_keys.shape[0], -1, x.shape[-1])
    shape = (1, 1) if whole else images.shape[1:]

    def keep_one(key):
        return jax.random.bernoulli(jax.random.fold_in(key, site), 1 - rate, shape)

    kept = jnp.where(jax.vmap(keep_one)(drop_keys), images / (1 - rate), 0)
    return kept.reshape(x.shape)


class PatchEmbed(nn.Module):
    """Cut the images into patches, row by row, and project each to `width`."""

    patch_size: int
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b height width 3"]
    ) -> Float[Array, "b n d"]:
        b, height, width, channels = images.shape
        p = self.patch_size
        x = images.reshape(b, height // p, p, width // p, p, channels)
        x = x.swapaxes(2, 3).reshape(b, -1, p, p, channels)  # [B, N, P, P, 3]
        # The kernel is [P, P, 3, D], that of a convolution with stride P: the same
        # function, but as one matrix product.
        return nn.DenseGeneral(
            self.width,
            axis=(-3, -2, -1),
            kernel_init=uniform_fan_in,
            dtype=self.dtype,
            name="proj",
        )(x)  # [B, N, D]


class Attention(nn.Module):
    """Multi-head self-attention.

    `xla` sows its weights, [B, H, N, N], as `attention`. `cudnn` is cuDNN's flash
    attention (Dao et al. 2022, arXiv 2205.14135), in bfloat16 on NVIDIA GPUs, and
    `pallas` is `tpu_attention`, in bfloat16 on TPUs; there are no such weights then, in
    memory or otherwise. The images' tokens are rows, [B N, D] or [B, N, D].
    """

    num_heads: int
    dtype: Any = jnp.float32
    implementation: str = "xla"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*rows d"],
        b: int,
        gamma: Float32[Array, " d"] | None = None,
    ) -> Float[Array, "*rows d"]:
        *rows, d = x.shape
        project = scaled_dense(d, gamma, dtype=self.dtype, name="proj")
        head_dim = d // self.num_heads
        qkv = Dense(3 * d, dtype=self.dtype, name="qkv")(x)
        if self.implementation == "pallas" and not self.is_initializing():
            from deit_jax.models import tpu_attention  # Pallas takes long to import

            x = tpu_attention.attend(qkv.reshape(b, -1, 3 * d), self.num_heads)
            return project(x.reshape(*rows, d))
        qkv = qkv.reshape(b, -1, 3, self.num_heads, head_dim)  # timm's order
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # each [B, N, H, D / H]
        if self.implementation == "cudnn" and not self.is_initializing():
            x = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
        else:
            # Heads first and k transposed, as a CPU multiplies fastest; the scale on q,
            # not on the [N, N] of each head, which are more.
            q, v = (part.swapaxes(1, 2) for part in (q * head_dim**-0.5, v))
            logits = jnp.matmul(
                q, k.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32
            )
            weights = jax.nn.softmax(logits)  # [B, H, N, N], float32
            self.sow("intermediates", "attention", weights)
            x = jnp.matmul(weights.astype(self.dtype), v).swapaxes(1, 2)
        return project(x.reshape(*rows, d))


class Mlp(nn.Module):
    """Two layers with an exact GELU (erf, not the tanh approximation) between."""

    hidden: int
    dropout: float = 0.0
    site: int = 0
    dtype: Any = jnp.float32
    tpu_layout: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*rows d"],
        drop_keys: Key[Array, " b"] | None = None,
        gamma: Float32[Array, " d"] | None = None,
    ) -> Float[Array, "*rows d"]:
        d = x.shape[-1]
        x = Dense(self.hidden, dtype=self.dtype, name="fc1")(x)
        x = gelu(x, self.tpu_layout)
        x = drop(x, drop_keys, site=self.site, rate=self.dropout)
        return scaled_dense(d, gamma, dtype=self.dtype, name="fc2")(x)


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream.

    With `init_values` LayerScale multiplies each branch, at first by that.

    The stream stays float32 whatever `dtype` is, as under torch's autocast: only the
    products inside the branches are rounded.

    All tokens are rows of one matrix, [B N, D]: on a CPU the gradient of a kernel would
    have a transposed copy in it otherwise, and on a GPU XLA would put the batch
    innermost, where a norm takes several loops. With `tpu_layout` they stay [B, N, D]:
    a TPU's tiles of eight rows make the fold a copy.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    drop_path: float = 0.0
    site: int = 0  # the first of this block's SITES_PER_BLOCK
    dtype: Any = jnp.float32
    attention: str = "xla"
    tpu_layout: bool = False
    init_values: float | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], drop_keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b n d"]:
        shape = x.shape
        if not self.tpu_layout:
            x = x.reshape(-1, shape[-1])

        gammas = [None, None]
        if self.init_values is not None:
            scale = partial(LayerScale, shape[-1], self.init_values)
            gammas = [scale(name="ls1")(), scale(name="ls2")()]

        def branch_end(y, site):
            y = drop(y, drop_keys, site=site, rate=self.dropout)
            return drop(y, drop_keys, site=site + 1, rate=self.drop_path, whole=True)

        y = LayerNorm(name="norm1")(x)
        y = Attention(
            self.num_heads, dtype=self.dtype, implementation=self.attention, name="attn"
        )(y, shape[0], gammas[0])
        x = x + branch_end(y, self.site)

        y = LayerNorm(name="norm2")(x)
        y = Mlp(
            int(x.shape[-1] * self.mlp_ratio),
            dropout=self.dropout,
            site=self.site + 2,
            dtype=self.dtype,
            tpu_layout=self.tpu_layout,
            name="mlp",
        )(y, drop_keys, gammas[1])
        return (x + branch_end(y, self.site + 3)).reshape(shape)


class VisionTransformer(nn.Module):
    """ViT, and with `distilled` DeiT: a second token with a head of its own.

    `image_size` and `patch_size` are sides in pixels, the first a multiple of the
    second. `drop_path` is the rate of stochastic depth in the last block; it grows
    linearly over the blocks from 0 in the first, or is that of all with
    `constant_drop_path`. `position_std` is the initial standard deviation of the
    position embeddings. `dtype` is that of the products; parameters, norms, softmax,
    the residual stream and the heads are float32. With `remat` the backward pass
    computes each block again from its input, in place of keeping all that is in it
    (Chen et al. 2016, arXiv 1604.06174). `attention` is `xla`, `cudnn` or `pallas`, see
    `Attention`; `tpu_layout` see `Block`.

    DeiT III has LayerScale, which starts with `init_values` (None: there is none);
    positions of the patches only, `no_embed_class`; and `constant_drop_path`. With
    `pool` `token` the class head reads the class token, with `mean` the mean of the
    patches before the last norm, which is then called `fc_norm`: timm's
    `global_pool="avg"`.
    """

    num_classes: int
    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    distilled: bool = False
    drop_path: float = 0.0
    dropout: float = 0.0
    position_std: float = 0.02
    dtype: Any = jnp.float32
    remat: bool = False
    attention: str = "xla"
    tpu_layout: bool = False
    init_values: float | None = None
    no_embed_class: bool = False
    constant_drop_path: bool = False
    pool: str = "token"

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the logits that a call returns."""
        return ("class", "distill") if self.distilled else ("class",)

    @property
    def token_positions(self) -> int:
        """Position embeddings before those of the patches."""
        return 0 if self.no_embed_class else len(self.heads)

    @property
    def last_norm(self) -> str:
        """The name of the norm before the heads, timm's."""
        return "fc_norm" if self.pool == "mean" else "norm"

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b height width 3"],
        *,
        drop_keys: Key[Array, " b"] | None = None,
    ) -> dict[str, Float32[Array, "b classes"]]:
        """Return the logits of each head: `class`, and `distill` where there is one.

        `images` are normalised; ValueError where they are not of this model's size.
        `drop_keys` holds one typed PRNG key an image, which decides all its masks;
        None drops nothing. What the heads read is sown as `class_token` and
        `distill_token`, [B, D], the mean of the last block's patches as `patch_mean`.
        """
        side = self.image_size
        if images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"the images are {' x '.join(map(str, images.shape[1:]))}, but this "
                f"model takes {side} x {side} x 3 (height x width x channels)"
            )

        x = PatchEmbed(
            self.patch_size, self.width, dtype=self.dtype, name="patch_embed"
        )(images)  # [B, N, D]

        # DeiT's order: class token, distillation token, patches.
        names = ["cls_token", "dist_token"] if self.distilled else ["cls_token"]
        tokens = [self.param(name, trunc_normal, (1, 1, self.width)) for name in names]
        tokens = jnp.tile(jnp.concatenate(tokens, axis=1), (x.shape[0], 1, 1))
        positions = nn.initializers.truncated_normal(self.position_std / TRUNCATED_STD)
        if not self.no_embed_class:
            x = jnp.concatenate([tokens, x], axis=1)
        x = x + self.param("pos_embed", positions, (1, *x.shape[1:]))
        if self.no_embed_class:
            x = jnp.concatenate([tokens, x], axis=1)  # [B, 1 or 2 + N, D], float32
        x = drop(x, drop_keys, site=0, rate=self.dropout)

        x = self._blocks(x, drop_keys)

        # The norm treats each token by itself, so the patches need none.
        read, patch_mean = x[:, : len(names)], x[:, len(names) :].mean(axis=1)
        self.sow("intermediates", "patch_mean", patch_mean)
        if self.pool == "mean":
            read = read.at[:, 0].set(patch_mean)
        x = LayerNorm(name=self.last_norm)(read)

        self.sow("intermediates", "class_token", x[:, 0])
        logits = {"class": Dense(self.num_classes, name="head")(x[:, 0])}
        if self.distilled:
            self.sow("intermediates", "distill_token", x[:, 1])
            logits["distill"] = Dense(self.num_classes, name="head_dist")(x[:, 1])
        return logits

    @nn.nowrap
    def _blocks(
        self, x: Float[Array, "b n d"], drop_keys: Key[Array, " b"] | None
    ) -> Float[Array, "b n d"]:
        block = nn.remat(Block) if self.remat else Block
        first = self.drop_path if self.constant_drop_path else 0
        rates = np.linspace(first, self.drop_path, self.depth).tolist()
        for i, rate in enumerate(rates):
            x = block(
                self.num_heads,
                mlp_ratio=self.mlp_ratio,
                dropout=self.dropout,
                drop_path=rate,
                site=1 + SITES_PER_BLOCK * i,
                dtype=self.dtype,
                attention=self.attention,
                tpu_layout=self.tpu_layout,
                init_values=self.init_values,
                name=f"blocks_{i}",
            )(x, drop_keys)
        return x
