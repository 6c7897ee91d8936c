import jax
import jax.numpy as jnp
import pytest

from deit_jax.models import cost, variants


@pytest.mark.parametrize(
    ("variant", "billion_macs"),  # as published with timm
    [
        ("vit_tiny_patch16_224", 1.26),
        ("vit_small_patch16_224", 4.61),
        ("vit_base_patch16_224", 17.58),
    ],
)
def test_half_of_the_operations_are_the_published_multiply_adds(variant, billion_macs):
    model = variants.create(variant, num_classes=1000)
    macs = cost.forward_flops(model) / 2e9
    assert macs == pytest.approx(billion_macs, rel=1e-2)


def test_the_compiler_counts_a_little_more():
    """It knows of norms, softmax and GELU too, which are more of a small model."""
    model = variants.create("deit_nano_distilled_patch8_32", num_classes=100)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    lowered = jax.jit(lambda p, x: model.apply({"params": p}, x)).lower(params, images)
    counted = lowered.cost_analysis()["flops"]
    assert 1 < counted / cost.forward_flops(model) < 1.15
