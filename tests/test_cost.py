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


@pytest.mark.parametrize(
    ("variant", "images", "unit", "size"),
    [
        ("deit_tiny_distilled_patch16_224", 16, 2, 4),
        ("deit_tiny_distilled_patch16_224", 500, 1, 5),
        ("deit_tiny_distilled_patch4_32", 64, 2, 16),
        ("deit_nano_distilled_patch8_32", 64, 2, 64),  # whole: it fits
        ("deit_base_distilled_patch16_224", 16, 2, 2),  # no smaller than a pair
        ("deit_tiny_distilled_patch16_224", 7, 1, 7),  # seven in one, not one by one
        ("deit_tiny_distilled_patch16_224", 1, 1, 1),
    ],
)
def test_a_batch_is_cut_into_parts_that_a_cache_holds(variant, images, unit, size):
    model = variants.create(variant, num_classes=10)
    assert images // cost.parts(model, images, unit) == size
