import jax
import numpy as np
import pytest

from deit_jax.errors import InputError
from deit_jax.models import position, transfer, variants
from deit_jax.models.params import abstract_params

VIT, DEIT = "vit_nano_patch8_32", "deit_nano_distilled_patch8_32"


def model_and_params(variant, seed=0, **options):
    """With random numbers for parameters: none is 0, no two are the same."""
    model = variants.create(variant, **{"num_classes": 3} | options)
    random = np.random.default_rng(seed)
    return model, jax.tree.map(
        lambda x: random.normal(size=x.shape).astype(np.float32), abstract_params(model)
    )


def adapted(source_options, target_options, *, classes=(0, 1, 2), **options):
    """(params, fresh, what `adapt` makes of them, its sentences)."""
    source, params = model_and_params(**source_options)
    target, fresh = model_and_params(seed=1, **target_options)
    got, changes = transfer.adapt(
        params, fresh, source=source, target=target, classes=classes, **options
    )
    assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, fresh)
    assert {x.dtype for x in jax.tree.leaves(got)} == {np.dtype(np.float32)}
    trunk = ("patch_embed", "cls_token", "blocks_0", "blocks_3")
    for name in trunk:
        jax.tree.map(np.testing.assert_array_equal, got[name], params[name])
    return params, fresh, got, changes


@pytest.mark.parametrize("variant", [VIT, DEIT])
def test_the_same_model_is_not_changed(variant):
    params, _, got, changes = adapted({"variant": variant}, {"variant": variant})
    jax.tree.map(np.testing.assert_array_equal, got, params)
    assert changes == []


@pytest.mark.parametrize(
    "classes", [(2, 0, 1), (None, 2, None, 0), (None,) * 3, (None,) * 7]
)
def test_known_classes_keep_their_rows_wherever_they_stand(classes):
    params, fresh, got, changes = adapted(
        {"variant": DEIT},
        {"variant": DEIT, "num_classes": len(classes)},
        classes=classes,
    )
    for name in ("head", "head_dist"):
        for c, theirs in enumerate(classes):
            expected, at = (fresh, c) if theirs is None else (params, theirs)
            for field in ("kernel", "bias"):
                np.testing.assert_array_equal(
                    got[name][field][..., c], expected[name][field][..., at]
                )
    np.testing.assert_array_equal(got["pos_embed"], params["pos_embed"])
    assert changes == []


@pytest.mark.parametrize("method", position.METHODS)
@pytest.mark.parametrize(("variant", "prefix"), [(VIT, 1), (DEIT, 2)])
def test_another_image_size_has_resized_positions(variant, prefix, method):
    params, _, got, changes = adapted(
        {"variant": variant},
        {"variant": variant, "image_size": 48},
        position_resize=method,
    )
    expected = position.resize(params["pos_embed"], 6, prefix=prefix, method=method)
    np.testing.assert_array_equal(got["pos_embed"], expected)
    np.testing.assert_array_equal(got["head"]["kernel"], params["head"]["kernel"])
    (change,) = changes
    assert f"from 4 x 4 to 6 x 6 patches ({method})" in change


@pytest.mark.parametrize("known", [True, False])
def test_a_distillation_token_starts_as_the_class_token(known):
    params, fresh, got, changes = adapted(
        {"variant": VIT}, {"variant": DEIT}, classes=(0, 1, 2) if known else [None] * 3
    )
    np.testing.assert_array_equal(got["dist_token"], params["cls_token"])
    assert not np.shares_memory(got["dist_token"], got["cls_token"])
    positions = got["pos_embed"]
    np.testing.assert_array_equal(positions[:, 1], params["pos_embed"][:, 0])
    np.testing.assert_array_equal(np.delete(positions, 1, axis=1), params["pos_embed"])
    expected = params["head"] if known else fresh["head_dist"]
    jax.tree.map(np.testing.assert_array_equal, got["head_dist"], expected)
    assert changes[0].startswith("a distillation token is added")


def test_a_distillation_token_is_dropped():
    params, _, got, changes = adapted(
        {"variant": DEIT}, {"variant": VIT, "image_size": 40}
    )
    np.testing.assert_array_equal(
        got["pos_embed"],
        position.resize(np.delete(params["pos_embed"], 1, axis=1), 5, prefix=1),
    )
    assert len(changes) == 2
    assert changes[0].endswith("are dropped")


VIT3, DEIT3 = "deit3_nano_patch8_32", "deit3_nano_distilled_patch8_32"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "target"), [(VIT, VIT3), (VIT3, VIT), (DEIT, DEIT3), (DEIT3, DEIT)]
)
def test_layer_scale_and_positions_of_tokens_come_and_go_with_the_same_logits(
    source, target
):
    source, params = model_and_params(source)
    target, fresh = model_and_params(target, seed=1)
    params = jax.tree.map(lambda x: 0.2 * x, params)
    got, changes = transfer.adapt(
        params, fresh, source=source, target=target, classes=(0, 1, 2)
    )
    assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, fresh)
    assert [change.split()[0] for change in changes] == ["positions", "LayerScale"]
    images = np.random.default_rng(2).normal(size=(2, 32, 32, 3)).astype(np.float32)
    expected, found = (
        jax.jit(model.apply)({"params": p}, images)
        for model, p in ((source, params), (target, got))
    )
    for head, logits in expected.items():
        assert np.std(logits) > 0.2
        np.testing.assert_allclose(found[head], logits, atol=1e-4)


@pytest.mark.parametrize(
    ("source", "target"), [(VIT, DEIT3), (VIT3, DEIT3), (VIT3, DEIT), (DEIT3, VIT3)]
)
def test_a_distillation_token_of_deit3(source, target):
    source, params = model_and_params(source)
    target, fresh = model_and_params(target, seed=1, image_size=48)
    got, _ = transfer.adapt(
        params, fresh, source=source, target=target, classes=(0, 1, 2)
    )
    assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, fresh)
    if target.distilled:
        np.testing.assert_array_equal(got["dist_token"], got["cls_token"])
    expected = position.resize(params["pos_embed"], 6, prefix=source.token_positions)[
        :, source.token_positions :
    ]
    np.testing.assert_array_equal(
        got["pos_embed"][:, target.token_positions :], expected
    )


@pytest.mark.parametrize(("before", "after"), [("token", "mean"), ("mean", "token")])
def test_another_pooling_keeps_the_last_norm(before, after):
    params, _, got, changes = adapted(
        {"variant": VIT3, "pool": before}, {"variant": VIT3, "pool": after}
    )
    names = {"token": "norm", "mean": "fc_norm"}
    assert got[names[after]] is params[names[before]]
    assert changes[0].startswith("the class head reads the ")


@pytest.mark.parametrize(
    ("source", "target", "differ", "fitting"),
    [
        (
            "deit_tiny_distilled_patch16_224",
            "deit_small_patch16_384",
            "width 192, num_heads 3; this run's has width 384, num_heads 6",
            "vit_tiny_patch16_384 or deit_tiny_patch16_384",
        ),
        (
            "vit_tiny_patch4_32",
            "deit_tiny_distilled_patch16_224",
            "patch_size 4; this run's has patch_size 16",
            "deit_tiny_distilled_patch4_32",
        ),
        (
            "vit_tiny_patch16_224",
            "deit_nano_distilled_patch8_32",
            "width 192, depth 12, patch_size 16; this run's has width 96, depth 4",
            "deit_tiny_distilled_patch16_224",
        ),
    ],
)
def test_another_trunk_is_refused_with_what_fits(source, target, differ, fitting):
    source, target = (variants.create(v, num_classes=3) for v in (source, target))
    with pytest.raises(InputError) as refused:
        transfer.adapt({}, {}, source=source, target=target, classes=(0, 1, 2))
    assert differ in str(refused.value)
    assert str(refused.value).endswith(f"--config.model.variant={fitting}.")
