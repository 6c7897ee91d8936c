"""Attention maps: what they are computed from, and the images of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import run_directories
from PIL import Image

from deit_jax import attention, trained_model
from deit_jax.errors import InputError
from deit_jax.models import attention_maps, variants
from deit_jax.models.params import abstract_params


def bright_patch_seeker(model):
    """Parameters with which every head of every block attends to bright patches.

    A bright patch is embedded off the zero vector and so has a norm of its own, which
    is the key; the class token's query asks for it. All values are zero, so that
    every block sees the same.
    """
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_params(model))
    params["cls_token"][0, 0, 1] = 1
    params["patch_embed"]["proj"]["kernel"][..., 0] = 1
    if model.distilled:
        params["dist_token"][0, 0, 0] = 1  # a bright patch to the keys, no query
    head_dim = model.width // model.num_heads
    for block in range(model.depth):
        block = params[f"blocks_{block}"]
        block["norm1"]["scale"][:] = 1
        kernel = block["attn"]["qkv"]["kernel"]
        for head in range(model.num_heads):
            kernel[1, head * head_dim] = 1
            kernel[0, model.width + head * head_dim] = 1
    return params


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit_nano", "deit_nano_distilled"])
def test_the_map_is_bright_where_the_token_looks(family):
    model = variants.create(f"{family}_patch8_32", num_classes=2)
    image = np.zeros((1, 32, 32, 3), np.float32)
    image[0, 8:16, 24:32] = 1  # the patch in row 1, column 3
    maps, logits = attention_maps.attention_maps(
        model, bright_patch_seeker(model), jnp.asarray(image)
    )
    tokens = 1 + model.distilled
    assert maps.heads.shape == (1, tokens, 3, 4, 4)
    assert maps.rollout.shape == (1, tokens, 4, 4)
    for one in [*maps.heads[0, 0], maps.rollout[0, 0]]:
        assert np.unravel_index(one.argmax(), one.shape) == (1, 3)
        assert one[1, 3] > 2 * np.sort(np.ravel(one))[-2]
    if model.distilled:  # asks for next to nothing: the same attention everywhere
        np.testing.assert_allclose(maps.heads[0, 1], 1 / 18, rtol=0.2)
    assert set(logits) == set(model.heads)


@pytest.mark.slow
def test_a_mean_looks_where_the_patches_look_on_average():
    model = variants.create("vit_nano_patch8_32", num_classes=2, pool="mean")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), "f4")
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    params["blocks_3"]["attn"]["qkv"]["kernel"] *= 30  # else all is looked at
    look = functools.partial(attention_maps.attention_maps, model)
    maps, _ = jax.jit(look)(params, images)
    apply = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))
    _, sown = apply({"params": params}, images)
    (last,) = sown["intermediates"]["blocks_3"]["attn"]["attention"]
    expected = np.asarray(last)[:, :, 1:, 1:].mean(axis=2).reshape(2, 3, 4, 4)
    assert expected.std() > 0.01
    np.testing.assert_allclose(maps.heads[:, 0], expected, rtol=1e-5)
    assert maps.rollout.shape == (2, 1, 4, 4)


def test_rollout_is_the_product_of_the_blocks():
    random = np.random.default_rng(0)
    blocks = random.dirichlet(np.ones(5), (3, 2, 4, 5))  # [depth, B, H, N, N]
    got = attention_maps.rollout([jnp.asarray(b, jnp.float32) for b in blocks])
    for image in range(2):
        first, second, third = (
            (b[image].mean(0) + np.eye(5)) / 2 for b in blocks.astype(np.float64)
        )
        np.testing.assert_allclose(got[image], third @ second @ first, atol=1e-6)
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:Glyph")
def test_an_image_a_file(tmp_path, capsys):
    names = ("猫", "$x_1", "🐶", *run_directories.DIGITS[3:])
    run_directories.make(tmp_path / "run", class_names=names)
    random = np.random.default_rng(0)
    for name in ("a/7.png", "b/7.png", "a/$八$.png"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    (tmp_path / "pictures" / "bad.png").write_bytes(b"x")
    out = tmp_path / "maps"
    assert attention.draw(tmp_path / "run", [tmp_path / "pictures"], out) == 1
    assert "bad.png is not an image" in capsys.readouterr().err
    assert sorted(p.name for p in out.iterdir()) == ["$八$.png", "7-2.png", "7.png"]
    with Image.open(out / "7.png") as picture:
        assert picture.width > picture.height > 200
    with pytest.raises(InputError, match=r"7\.png cannot be written: File exists"):
        attention.draw(tmp_path / "run", [tmp_path / "pictures"], out / "7.png")


def test_every_head_of_every_token_is_shown(tmp_path, monkeypatch):
    run_directories.make(tmp_path / "run")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    shown = []
    monkeypatch.setattr(
        "deit_jax.reporting.figures.overlay",
        lambda panel, weights, name, *, view: shown.append((name, weights, view)),
    )
    images, out = [tmp_path / "a.png"], tmp_path / "maps"
    assert attention.draw(tmp_path / "run", images, out) == 0
    names, weights, views = zip(*shown, strict=True)
    assert names == ("head 1", "head 2", "head 3", "rollout", "", "", "", "")
    for view in views:
        np.testing.assert_array_equal(view, pixels)
    maps, _ = trained_model.load(tmp_path / "run").attention(pixels)
    expected = np.concatenate([maps.heads, maps.rollout[:, None]], axis=1)
    np.testing.assert_allclose(weights, expected.reshape(8, 4, 4), rtol=1e-5)
