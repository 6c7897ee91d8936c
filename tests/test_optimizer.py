import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import timm
import torch
from flax.traverse_util import flatten_dict
from timm.optim import Lamb, Lion, param_groups_layer_decay

from deit_jax.errors import InputError
from deit_jax.models import variants
from deit_jax.models.params import abstract_params
from deit_jax.training import optimizer, trainable

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def assert_same_steps(created, reference, leaves, *, steps, clip_norm=0.0):
    """Both take the same steps from the tree of torch's `leaves`."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf.detach().numpy()), leaves)
    opt_state = created.init(params)
    for _ in range(steps):
        gradient = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), params)
        updates, opt_state = created.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        for leaf, value in zip(
            jax.tree.leaves(leaves), jax.tree.leaves(gradient), strict=True
        ):
            leaf.grad = torch.tensor(value)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(jax.tree.leaves(leaves), clip_norm)
        reference.step()
        for got, leaf in zip(
            jax.tree.leaves(params), jax.tree.leaves(leaves), strict=True
        ):
            np.testing.assert_allclose(got, leaf.detach().numpy(), atol=2e-6)


def parameters(*names_and_shapes):
    """A tree {name: {"kernel": a parameter of torch}}."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: {"kernel": torch.nn.Parameter(torch.randn(shape, generator=generator))}
        for name, shape in names_and_shapes
    }


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        ({"name": "adam"}, lambda p: torch.optim.Adam(p, 0.01)),
        (
            {"name": "adamw", "weight_decay": 0.05, "b2": 0.95},
            lambda p: torch.optim.AdamW(p, 0.01, betas=(0.9, 0.95), weight_decay=0.05),
        ),
        (
            {"name": "sgd", "weight_decay": 0.05},
            lambda p: torch.optim.SGD(
                p, 0.01, momentum=0.9, nesterov=True, weight_decay=0.05
            ),
        ),
        (
            {"name": "sgd", "momentum": 0.0, "clip_norm": 1.0},
            lambda p: torch.optim.SGD(p, 0.01),
        ),
        (
            {"name": "lamb", "weight_decay": 0.05},
            lambda p: Lamb(p, 0.01, weight_decay=0.05, max_grad_norm=None),
        ),
        (
            {"name": "lion", "weight_decay": 0.05, "b2": 0.99},
            lambda p: Lion(p, 0.01, betas=(0.9, 0.99), weight_decay=0.05),
        ),
    ],
    ids=lambda ours: ours["name"] if isinstance(ours, dict) else "",
)
def test_steps_are_those_of_torch_and_timm(ours, torchs):
    leaves = parameters(("fc", (4, 3)))
    reference = torchs(jax.tree.leaves(leaves))
    created = optimizer.create(learning_rate=0.01, **ours)
    clip_norm = ours.get("clip_norm", 0.0)
    assert_same_steps(created, reference, leaves, steps=20, clip_norm=clip_norm)


def test_decay_mask_leaves_out_vectors_tokens_and_positions():
    model = variants.create("deit3_nano_distilled_patch8_32", num_classes=10)
    mask = flatten_dict(optimizer.decay_mask(abstract_params(model)), sep="/")
    decayed = {name for name, on in mask.items() if on}
    assert decayed == {name for name in mask if name.endswith("/kernel")}
    assert {"patch_embed/proj/kernel", "head/kernel", "head_dist/kernel"} <= decayed
    kept = {"cls_token", "dist_token", "pos_embed", "norm/scale", "blocks_3/ls2/gamma"}
    assert kept <= mask.keys() - decayed


def random_tree(seed):
    model = variants.create("deit_nano_distilled_patch8_32", num_classes=10)
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: random.normal(size=x.shape).astype("f4"), abstract_params(model)
    )


def after(transformation, params, gradients):
    opt_state, update = transformation.init(params), jax.jit(transformation.update)
    for gradient in gradients:
        updates, opt_state = update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params


RATES = {"learning_rate": 0.01, "b2": 0.95}
DECAY = {"weight_decay": 0.05}
# Optax's own for the matrices of the blocks, other kernels, and all else.
OPTAXS = {
    "lamb": (
        optax.lamb(**RATES, **DECAY),
        optax.lamb(**RATES, **DECAY),
        optax.chain(optax.scale_by_adam(b2=0.95, eps=1e-6), optax.scale(-0.01)),
    ),
    "lion": (
        optax.lion(**RATES, **DECAY),
        optax.lion(**RATES, **DECAY),
        optax.lion(**RATES, weight_decay=0.0),
    ),
    "muon": (
        optax.contrib.muon(0.01, beta=0.9, consistent_rms=0.2, **DECAY),
        optax.adamw(**RATES, **DECAY),
        optax.adamw(**RATES, weight_decay=0.0),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTAXS)
def test_each_kind_of_parameter_has_the_step_of_optaxs_own(name):
    def kind(path):
        return (path.startswith("blocks_") + 1) * path.endswith("/kernel")

    params, *gradients = map(random_tree, range(4))
    created = optimizer.create(name, **RATES, **DECAY)
    ours = flatten_dict(after(created, params, gradients), sep="/")
    found = 0
    for number, optaxs in zip((2, 1, 0), OPTAXS[name], strict=True):
        params_of_kind, *gradients_of_kind = (
            {k: x for k, x in flatten_dict(t, sep="/").items() if kind(k) == number}
            for t in (params, *gradients)
        )
        expected = after(optaxs, params_of_kind, gradients_of_kind)
        for path, value in expected.items():
            np.testing.assert_allclose(ours[path], value, atol=1e-6, err_msg=path)
        found += len(expected)
    assert found == len(ours)


def test_muon_is_refused_where_no_matrix_is_trained():
    heads, _ = trainable.split(random_tree(0), "^head")
    with pytest.raises(InputError, match="trainable leaves none of them"):
        optimizer.check_trained("muon", heads)
    optimizer.check_trained("lamb", heads)
    optimizer.check_trained("muon", trainable.split(random_tree(0), "attention")[0])


@pytest.mark.parametrize(
    ("variant", "pool"),
    [
        ("deit_tiny_distilled_patch16_224", "token"),
        ("vit_tiny_patch16_224", "mean"),
        ("deit3_small_patch16_224", "token"),
    ],
)
def test_layer_scales_are_timms(variant, pool):
    params = abstract_params(variants.create(variant, num_classes=10, pool=pool))
    scales = flatten_dict(optimizer.layer_scales(params, 0.75), sep=".")
    ours = {
        re.sub("kernel$|scale$", "weight", path.replace("blocks_", "blocks.")): scale
        for path, scale in scales.items()
    }
    with torch.device("meta"):
        timms_pool = {"token": "token", "mean": "avg"}[pool]
        reference = timm.create_model(variant, num_classes=10, global_pool=timms_pool)
    names = {id(parameter): name for name, parameter in reference.named_parameters()}
    timms = {
        names[id(parameter)]: group["lr_scale"]
        for group in param_groups_layer_decay(reference, layer_decay=0.75)
        for parameter in group["params"]
    }
    assert ours == timms
    assert timms["head.weight"] == 1
    assert timms["blocks.0.norm1.bias"] == pytest.approx(0.75**12)


LAYERS = ["cls_token", "patch_embed", "blocks_0", "blocks_1", "norm", "head"]


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "adamw", "weight_decay": 0.5},
        {"name": "sgd", "weight_decay": 0.5, "clip_norm": 1.0},
        {"name": "lamb", "weight_decay": 0.5},
    ],
    ids=lambda settings: settings["name"],
)
def test_layer_decay_multiplies_the_learning_rate_of_each_layer(settings):
    """As timm does: a group of torch's optimizer for each layer, with its own rate."""
    leaves = parameters(*((name, 3) for name in LAYERS))
    leaves["cls_token"] = leaves["cls_token"]["kernel"]
    scales = dict(zip(LAYERS, (1 / 8, 1 / 8, 1 / 4, 1 / 2, 1 / 2, 1), strict=True))
    groups = [
        {
            "params": jax.tree.leaves(leaves[name]),
            "lr": 0.01 * scales[name],
            "weight_decay": 0 if name == "cls_token" else settings["weight_decay"],
        }
        for name in LAYERS
    ]
    reference = {
        "adamw": torch.optim.AdamW,
        "sgd": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
        "lamb": functools.partial(Lamb, max_grad_norm=None),
    }[settings["name"]](groups)
    created = optimizer.create(learning_rate=0.01, layer_decay=0.5, **settings)
    clip_norm = settings.get("clip_norm", 0.0)
    assert_same_steps(created, reference, leaves, steps=5, clip_norm=clip_norm)


def test_learning_rate_scales_with_the_batch():
    rate = functools.partial(optimizer.resolve_learning_rate, 5e-4, batch_size=1024)
    assert rate(reference_batch_size=0) == 5e-4
    assert rate(reference_batch_size=512) == pytest.approx(1e-3)


def test_a_decay_of_plain_adam_is_refused():
    with pytest.raises(InputError, match="no meaning for adam"):
        optimizer.create("adam", 0.1, weight_decay=0.1)
