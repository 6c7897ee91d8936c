"""The train steps of other ViTs in Flax, for `programs` to compile beside ours.

    git clone https://github.com/google-research/big_vision
    PYTHONPATH=big_vision make programs ARGS="--programs=train,big_vision"

Their models as they are, with one token fewer than ours; cross-entropy of one head,
AdamW and a moving average are ours, in as few lines as they take. big_vision needs
`einops` and TensorFlow, vision_transformer nothing else.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import optax

from benchmarks.cases import Case
from deit_jax.errors import InputError
from deit_jax.models import cost, variants

# The module of each. google-research/vision_transformer computes in float32 only.
MODULES = {
    "big_vision": "big_vision.models.vit",
    "vision_transformer": "vit_jax.models_vit",
}
LEARNING_RATE, WEIGHT_DECAY, EMA_DECAY = 1e-3, 0.05, 0.9999


def model(peer: str, case: Case):
    """A peer's ViT of a case's size, and its logits as a function of (params, images).

    Raises:
      InputError: Its code is not on PYTHONPATH.
    """
    try:
        module = importlib.import_module(MODULES[peer])
    except ImportError as error:
        raise InputError(
            f"{peer}: {error}. Clone https://github.com/google-research/{peer}, put "
            "the clone on PYTHONPATH, and install what it imports"
        ) from error
    shape = variants.VARIANTS[case.variant]
    patch = (shape["patch_size"],) * 2
    width, depth, heads = shape["width"], shape["depth"], shape["num_heads"]
    if peer == "big_vision":
        built = module.Model(
            num_classes=case.num_classes,
            width=width,
            depth=depth,
            mlp_dim=4 * width,
            num_heads=heads,
            patch_size=patch,
            pool_type="tok",
            dtype_mm=case.dtype,
        )
        return built, lambda *args: built.apply(*args, train=True)[0]
    encoder = {"num_layers": depth, "mlp_dim": 4 * width, "num_heads": heads}
    encoder |= {"dropout_rate": 0.0, "attention_dropout_rate": 0.0}
    built = module.VisionTransformer(
        num_classes=case.num_classes,
        patches=_Patches(patch),
        hidden_size=width,
        transformer=encoder,
    )
    return built, functools.partial(built.apply, train=True)


class _Patches:
    def __init__(self, size: tuple[int, int]):
        self.size = size


def lower(peer: str, case: Case, devices) -> tuple[jax.stages.Lowered, float]:
    """The train step of a peer, and the FLOPs of its products on each device.

    Args:
      peer: One of `MODULES`.
      case: Its variant says the size, its batch size the images on each device.
    """
    built, logits = model(peer, case)
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    side = variants.resolve_image_size(case.variant)
    shape = (len(devices), case.batch_size)
    images = jax.ShapeDtypeStruct((*shape, side, side, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct(shape, jnp.int32)

    def initial():
        image = jnp.zeros((1, side, side, 3))
        params = built.init(jax.random.key(0), image, train=False)["params"]
        return params, params, optimizer.init(params)

    def train_step(state, images, labels):
        params, ema, opt_state = state

        def loss(params):
            found = logits({"params": params}, images / 127.5 - 1)
            losses = optax.softmax_cross_entropy_with_integer_labels(found, labels)
            return losses.mean()

        value, grads = jax.value_and_grad(loss)(params)
        grads = jax.lax.pmean(grads, "devices")
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        ema = optax.incremental_update(params, ema, 1 - EMA_DECAY)
        return (params, ema, opt_state), value

    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((len(devices), *x.shape), x.dtype),
        jax.eval_shape(initial),
    )
    mapped = jax.pmap(train_step, "devices", devices=devices, donate_argnums=0)
    plain = case.variant.replace("_distilled", "")
    twin = variants.create(plain, num_classes=case.num_classes)
    flops = 3 * cost.forward_flops(twin) * case.batch_size
    return mapped.lower(state, images, labels), flops
