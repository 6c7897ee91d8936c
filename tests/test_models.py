"""The models: shapes and counts, parity with timm, initialisation, dropping."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen as nn
from flax import traverse_util

from deit_jax.errors import InputError
from deit_jax.models import features, tpu_attention, variants, vit
from deit_jax.models.params import abstract_params
from deit_jax.models.variants import VARIANTS, create
from deit_jax.weights.timm import to_flax, with_token_positions

NANO = "deit_nano_distilled_patch8_32"
NANO3 = "deit3_nano_distilled_patch8_32"
SCALES = ("ls1", "ls2")

# With 1,000 classes. The figures at 224 px and base at 384 px are the papers' and
# timm's; the others are those of timm's classes built with the same sizes.
COUNTS = {
    "nano_patch8_32": 564_808,
    "nano_distilled_patch8_32": 662_000,
    "micro_patch4_32": 1_333_608,
    "micro_distilled_patch4_32": 1_462_864,
    "tiny_patch16_224": 5_717_416,
    "tiny_patch16_384": 5_790_376,
    "tiny_patch4_32": 5_553_832,
    "tiny_distilled_patch16_224": 5_910_800,
    "tiny_distilled_patch16_384": 5_983_760,
    "tiny_distilled_patch4_32": 5_747_216,
    "small_patch16_224": 22_050_664,
    "small_patch16_384": 22_196_584,
    "small_patch4_32": 21_723_496,
    "small_distilled_patch16_224": 22_436_432,
    "small_distilled_patch16_384": 22_582_352,
    "small_distilled_patch4_32": 22_109_264,
    "base_patch16_224": 86_567_656,
    "base_patch16_384": 86_859_496,
    "base_patch4_32": 85_913_320,
    "base_distilled_patch16_224": 87_338_192,
    "base_distilled_patch16_384": 87_630_032,
    "base_distilled_patch4_32": 86_683_856,
    "large_patch16_224": 304_326_632,
    "large_patch16_384": 304_715_752,
    "huge_patch14_224": 632_045_800,
    "small_patch32_224": 22_878_952,
    "base_patch8_224": 86_576_872,
    "tiny_patch8_64": 5_581_480,
    "tiny_patch2_32": 5_583_784,
}
COUNTS = {f"deit_{name}": count for name, count in COUNTS.items()} | {
    "deit3_small_patch16_224": 22_059_496,
    "deit3_small_patch16_384": 22_205_416,
    "deit3_medium_patch16_224": 38_849_512,
    "deit3_base_patch16_224": 86_585_320,
    "deit3_base_patch16_384": 86_877_160,
    "deit3_large_patch16_224": 304_374_760,
    "deit3_large_patch16_384": 304_763_880,
    "deit3_huge_patch14_224": 632_126_440,
    "deit3_small_distilled_patch16_224": 22_444_880,
    "deit3_huge_distilled_patch14_224": 633_408_720,
    "deit3_nano_distilled_patch8_32": 662_576,
    "deit3_tiny_patch4_32": 5_558_248,
}


def random_images(batch, side, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, side, side, 3), dtype=np.float32)


def random_keys(batch, seed=0):
    return jax.random.split(jax.random.key(seed), batch)


def init(model, seed=0):
    images = jnp.zeros((1, model.image_size, model.image_size, 3))
    return jax.jit(model.init)(jax.random.key(seed), images)


@functools.cache
def nano_variables(variant=NANO):
    """Parameters for `create(variant, num_classes=10)`, whatever its rates and dtype.

    LayerScale starts with 0.5: at 1e-4 the blocks would count for nothing.
    """
    scale = {"init_values": 0.5} if variant == NANO3 else {}
    return init(create(variant, num_classes=10, **scale))


init_shapes = functools.cache(abstract_params)


def sine_loss(model, images, keys=None):
    """A loss with a gradient for every logit, of the variables."""

    def loss(variables):
        logits = model.apply(variables, images, drop_keys=keys)
        return sum(jnp.sin(values).sum() for values in logits.values())

    return loss


# The table and `create`.


@pytest.mark.parametrize("variant", COUNTS)
def test_parameter_count(variant):
    leaves = jax.tree.leaves(init_shapes(create(variant, num_classes=1000)))
    assert sum(leaf.size for leaf in leaves) == COUNTS[variant]


@pytest.mark.parametrize(
    ("size", "millions"),  # as published: DeiT III, table 5, and mmpretrain's of medium
    [
        ("small_patch16", 22.06),
        ("medium_patch16", 38.85),
        ("base_patch16", 86.59),
        ("large_patch16", 304.37),
        ("huge_patch14", 632.13),
    ],
)
def test_the_counts_of_deit3_are_the_published(size, millions):
    assert round(COUNTS[f"deit3_{size}_224"] / 1e6, 2) == millions


def test_image_size_overrides_the_variant_and_sizes_the_position_embeddings():
    model = create("deit_tiny_distilled_patch16_224", num_classes=3, image_size=96)
    assert init_shapes(model)["pos_embed"].shape == (1, 2 + 6 * 6, 192)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            {"variant": "deit_tiny_patch16_244"},
            ["'deit_tiny_patch16_244'", "did you mean deit_tiny_patch16_224"],
        ),
        ({"variant": "deit3_smal_patch16_224"}, ["did you mean deit3_small_patch16_"]),
        (
            {"variant": "resnet50"},
            [
                "'resnet50'",
                "deit3_SIZE_distilled",
                "\n  nano: _patch8_32, _patch4_32\n",
            ],
        ),
        ({"variant": NANO, "init_values": 0.1}, ["init_values=0.1", NANO, "deit3_*"]),
        ({"variant": NANO, "pool": "max"}, ["unknown pool 'max'", "token or mean"]),
        ({"variant": NANO, "image_size": 36}, ["36", "patch size 8", NANO]),
        ({"variant": NANO, "image_size": 0}, ["0", "patch size 8"]),
        ({"variant": NANO, "dtype": "float16"}, ["'float16'", "bfloat16"]),
        ({"variant": NANO, "drop_path": 1.0}, ["drop_path is 1.0", "below 1"]),
        ({"variant": NANO, "dropout": -0.1}, ["dropout is -0.1", "at least 0"]),
    ],
)
def test_create_explains_what_is_wrong(arguments, words):
    with pytest.raises(InputError) as error:
        create(num_classes=10, **arguments)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("shape", [(2, 28, 28, 3), (2, 32, 40, 3), (2, 32, 32, 1)])
def test_images_of_another_shape_are_refused(shape):
    model = create(NANO, num_classes=10)
    given = " x ".join(map(str, shape[1:]))
    with pytest.raises(ValueError, match=f"{given}, but .* 32 x 32 x 3"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


# Parity with timm.


def timm_model(variant, **fields):
    pytest.importorskip("torch")
    pytest.importorskip("timm")
    import timm_weights

    return timm_weights.make(variant, **fields)


def timm_params(model):
    return to_flax({n: x.numpy() for n, x in model.state_dict().items()})


def timm_apply(model, images):
    import torch
    from timm_weights import as_dict, to_torch

    with torch.no_grad():
        return {n: x.numpy() for n, x in as_dict(model(to_torch(images))).items()}


@pytest.mark.parametrize(
    "variant",
    [
        "deit_nano_distilled_patch8_32",
        "deit_tiny_distilled_patch4_32",
        # Those with patches of 16 px: tests/test_weights.py.
    ],
)
def test_logits_equal_timms(variant):
    theirs = timm_model(variant)
    images = random_images(2, VARIANTS[variant]["image_size"])
    expected = timm_apply(theirs, images)

    model = create(variant, num_classes=1000)
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(model.apply)({"params": timm_params(theirs)}, images)

    assert logits.keys() == expected.keys()
    for name in expected:
        # Weights that give small logits would make 1e-4 easy.
        assert expected[name].std() > 0.5
        np.testing.assert_allclose(logits[name], expected[name], rtol=0, atol=1e-4)


def test_the_norms_epsilon_is_timms():
    torch = pytest.importorskip("torch")
    norm = timm_model(NANO).norm
    # At a variance of 1e-6 an epsilon of 1e-6 matters; in the models it hides.
    x = 1e-3 * random_images(1, 96)[0, ..., 0]
    expected = norm(torch.from_numpy(x)).detach().numpy()
    params = {"scale": norm.weight.detach().numpy(), "bias": norm.bias.detach().numpy()}
    actual = vit.LayerNorm().apply({"params": params}, x)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", [NANO, "vit_nano_patch8_32"])
def test_features_are_timms(variant, one_torch_thread):
    torch = pytest.importorskip("torch")

    theirs = timm_model(variant).eval()
    ours, images = create(variant, num_classes=1000), random_images(2, 32)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2))
        expected = {-1: theirs.forward_features(pixels).numpy()}
        for layer, (patches, prefix) in enumerate(
            theirs.forward_intermediates(
                pixels,
                return_prefix_tokens=True,
                intermediates_only=True,
                output_fmt="NLC",
            )
        ):
            expected[layer] = torch.cat([prefix, patches], dim=1).numpy()
    expected[3] = expected[-1]  # the last: behind the norm
    for layer, values in expected.items():
        with jax.default_matmul_precision("highest"):
            found = features.tokens(ours, timm_params(theirs), images, layer)
        assert values.std() > 0.5
        np.testing.assert_allclose(found, values, rtol=0, atol=1e-5)
    parts = features.select(found, features.TOKENS, ours)
    t = len(ours.heads)
    for name, rows in {
        "class": found[:, 0],
        "distill": found[:, 1],
        "patches": found[:, t:],
        "all": found,
        "mean": found[:, t:].mean(axis=1),
    }.items():
        np.testing.assert_array_equal(parts[name], rows)


def test_every_layer_equals_timms():
    variant = "deit_tiny_distilled_patch16_224"
    theirs = timm_model(variant)
    images = random_images(2, 224)
    expected, actual = {}, {}

    def record_theirs(name):
        def hook(module, inputs, output):
            expected[f"{name} in"] = inputs[0].numpy()
            expected[f"{name} out"] = output.numpy()

        return hook

    def record_ours(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if isinstance(context.module, vit.Block):
            actual[f"{context.module.name} in"] = args[0]
            actual[f"{context.module.name} out"] = output
        return output

    for i, block in enumerate(theirs.blocks):
        block.register_forward_hook(record_theirs(f"blocks_{i}"))
    timm_apply(theirs, images)

    def layers(params):
        with nn.intercept_methods(record_ours):
            create(variant, num_classes=1000).apply({"params": params}, images)
        return actual

    with jax.default_matmul_precision("highest"):
        actual = jax.jit(layers)(timm_params(theirs))

    # The input of the first block is the embedding: patches, tokens and positions.
    assert next(iter(expected)) == "blocks_0 in"
    assert actual.keys() == expected.keys() and len(expected) == 2 * 12
    for name in expected:
        np.testing.assert_allclose(
            actual[name], expected[name], rtol=0, atol=1e-4, err_msg=name
        )


@pytest.mark.parametrize(
    ("variant", "pool"),
    [
        (name, pool)
        for name in VARIANTS
        if name.startswith("deit") and name.endswith(("16_224", "14_224", "8_32"))
        for pool in (("token",) if "distilled" in name else variants.POOLS)
    ],
)
def test_parameters_have_timms_names_and_shapes(variant, pool):
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        theirs = timm_model(
            variant, depth=1, global_pool={"token": "token", "mean": "avg"}[pool]
        ).state_dict()
    model = create(variant, num_classes=1000, pool=pool).clone(depth=1)
    ours = traverse_util.flatten_dict(init_shapes(model), sep=".")
    if model.distilled and model.no_embed_class:
        zeros = np.zeros(ours["pos_embed"].shape, np.float32)
        ours |= with_token_positions({"pos_embed": zeros})
    renamed = {
        name.replace("blocks_", "blocks.")
        .replace("kernel", "weight")
        .replace("scale", "weight"): sorted(leaf.shape)
        for name, leaf in ours.items()
    }
    assert renamed == {name: sorted(x.shape) for name, x in theirs.items()}


# Numbers: initialisation, gradients, bfloat16, what is sown.


@pytest.mark.slow
def test_initial_values():
    params = init(create("deit_tiny_distilled_patch4_32", num_classes=1000))["params"]
    flat = traverse_util.flatten_dict(params, sep="/")

    patches = flat.pop("patch_embed/proj/kernel")
    limit = (4 * 4 * 3) ** -0.5
    assert np.abs(patches).max() <= limit
    np.testing.assert_allclose(patches.std(), limit / 3**0.5, rtol=0.02)

    for name, value in flat.items():
        if name.endswith("bias"):
            assert (value == 0).all(), name
        elif name.endswith("scale"):
            assert (value == 1).all(), name
        else:
            # A token has 192 entries only, so that its own deviation scatters.
            rtol = 0.02 if value.size > 10_000 else 0.2
            np.testing.assert_allclose(value.std(), 0.02, rtol=rtol, err_msg=name)
            # Cut at 2 / 0.8796 standard deviations.
            assert np.abs(value).max() <= 2.274 * 0.02, name
            if value.size > 10_000:
                assert np.abs(value).max() > 2.2 * 0.02, name


@pytest.mark.slow
def test_the_gradient_reaches_every_parameter():
    model = create(NANO, num_classes=10, dropout=0.1, drop_path=0.1)
    loss = sine_loss(model, random_images(8, 32), random_keys(8))
    gradient = jax.jit(jax.grad(loss))(nano_variables())["params"]
    for name, value in traverse_util.flatten_dict(gradient, sep="/").items():
        if name.endswith("qkv/bias"):
            # Softmax does not see the key's bias: its gradient is rounding noise.
            value = np.delete(value, np.s_[96:192])
        assert np.isfinite(value).all(), name
        assert (np.abs(value) > 1e-12).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("variant", [NANO, NANO3])
def test_bfloat16_rounds_the_products_only(variant):
    images = random_images(4, 32)
    exact = create(variant, num_classes=10)
    rounded = create(variant, num_classes=10, dtype="bfloat16")
    variables = nano_variables(variant)
    shapes = init_shapes(rounded)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}

    expected = jax.jit(exact.apply)(variables, images)
    actual, sown = jax.jit(lambda v: rounded.apply(v, images, mutable="intermediates"))(
        variables
    )
    for name, logits in actual.items():
        assert logits.dtype == jnp.float32
        error = np.abs(logits - expected[name]).max()
        # Eight bits of mantissa: visible, and small beside logits of about 0.3.
        assert 1e-5 < error < 0.02
    assert {leaf.dtype for leaf in jax.tree.leaves(sown)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("variant", [NANO, NANO3])
def test_every_product_but_the_heads_is_bfloat16(variant):
    model = create(variant, num_classes=10, dtype="bfloat16")
    program = jax.jit(model.apply).lower(nano_variables(variant), random_images(2, 32))
    products = [
        line.rpartition(" : ")[2]
        for line in program.as_text().splitlines()
        if "stablehlo.dot_general" in line
    ]
    operands = [re.findall(r"x(f32|bf16)>", types)[:2] for types in products]
    # The patches, then six a block (qkv, two in attention, proj, fc1, fc2).
    assert operands == [["bf16"] * 2] * (1 + 6 * 4) + [["f32"] * 2] * 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_scale_keeps_nothing_for_the_backward_pass(dtype):
    """But kernels: of the activations, those that grow with the batch."""

    def kept(variant, batch):
        model = create(variant, num_classes=10, dtype=dtype)
        images = jnp.zeros((batch, 32, 32, 3))
        variables = jax.eval_shape(model.init, jax.random.key(0), images)

        def pull_back(variables):
            return jax.vjp(lambda v: model.apply(v, images), variables)[1]

        leaves = jax.tree.leaves(jax.eval_shape(pull_back, variables))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    growth = [kept(variant, 4) - kept(variant, 2) for variant in (NANO, NANO3)]
    assert growth[0] == growth[1] > 0


@pytest.mark.slow
def test_layer_scale_has_its_gradient_in_bfloat16():
    """Summed over kernels and not over activations, it must not lose its digits."""
    images = random_images(8, 32)

    def gradients(**options):
        loss = sine_loss(create(NANO3, num_classes=10, **options), images)
        blocks = jax.jit(jax.grad(loss))(nano_variables(NANO3))["params"]
        return [blocks[f"blocks_{i}"][s]["gamma"] for i in range(4) for s in SCALES]

    for exact, rounded in zip(gradients(), gradients(dtype="bfloat16"), strict=True):
        error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
        assert error < 0.05


@pytest.fixture
def cudnn_model():
    return vit.VisionTransformer(
        num_classes=10,
        image_size=32,
        patch_size=8,
        width=128,
        depth=2,
        num_heads=2,
        distilled=True,
        dtype=jnp.bfloat16,
        attention="cudnn",
    )


@pytest.mark.slow
def test_cudnn_is_asked_for_the_same_attention(cudnn_model, monkeypatch):
    """What it is given, computed by XLA: layout and scale."""
    images = random_images(4, 32)
    # Initialising never asks cuDNN, which is not here.
    variables = cudnn_model.init(jax.random.key(0), images)
    plain = cudnn_model.clone(attention="xla")
    # Attention that is near uniform would hide a wrong scale.
    for block in ("blocks_0", "blocks_1"):
        variables["params"][block]["attn"]["qkv"]["kernel"] *= 30.0
    expected = plain.apply(variables, images)
    asked = []

    def by_xla(q, k, v, *, implementation):
        asked.append((implementation, q.dtype))
        return attention(q, k, v, implementation="xla")

    attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    found = cudnn_model.apply(variables, images)
    assert asked == [("cudnn", jnp.bfloat16)] * 2
    for head, logits in expected.items():
        np.testing.assert_allclose(found[head], logits, atol=0.02)
        assert np.std(logits) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("variant", [NANO, NANO3])
def test_the_layout_for_tpus_gives_the_same_logits_and_gradients(variant):
    model = create(variant, num_classes=10, dropout=0.1, drop_path=0.1)
    images, keys = random_images(4, 32), random_keys(4)
    expected, found = (
        jax.value_and_grad(sine_loss(m, images, keys))(nano_variables(variant))
        for m in (model, model.clone(tpu_layout=True))
    )
    jax.tree.map(
        lambda e, f: np.testing.assert_allclose(f, e, rtol=1e-4, atol=2e-5),
        expected,
        found,
    )


@pytest.mark.slow
@pytest.mark.parametrize("tokens, width, heads", [(18, 96, 3), (5, 128, 2)])
def test_attention_for_tpus_is_attention(tokens, width, heads):
    rng = np.random.default_rng(0)
    qkv = jnp.asarray(rng.normal(0, 2, (3, tokens, 3 * width)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(3, tokens, width)), jnp.float32)

    def plain(qkv):
        parts = qkv.reshape(3, tokens, 3, heads, width // heads)
        q, k, v = (parts[:, :, n] for n in range(3))
        return jax.nn.dot_product_attention(q, k, v).reshape(weights.shape)

    def kernel(qkv):
        return tpu_attention.attend(qkv, heads, interpret=True)

    results = []
    for attend in (plain, kernel):
        value, pull_back = jax.vjp(attend, qkv)
        results.append((value, *pull_back(weights)))
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_attention_for_tpus_is_in_the_program_and_in_the_logits(monkeypatch):
    images, keys = random_images(4, 32), random_keys(4)
    model = create(NANO, num_classes=10, dtype="bfloat16", tpu_layout=True)
    fused = model.clone(attention="pallas")
    gradient = jax.grad(sine_loss(fused, images, keys))
    traced = jax.jit(gradient).trace(nano_variables())
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    # One call forward and one backward of each block.
    assert text.count("@tpu_custom_call") == 2 * fused.depth
    attend = tpu_attention.attend
    monkeypatch.setattr(
        tpu_attention, "attend", lambda qkv, heads: attend(qkv, heads, True)
    )
    expected, found = (m.apply(nano_variables(), images) for m in (model, fused))
    for head, logits in expected.items():
        np.testing.assert_allclose(found[head], logits, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_cudnn_is_in_the_program_for_gpus(cudnn_model, monkeypatch, devices):
    """Compiled here by nobody, but lowered: the shapes and types that it takes."""
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000
    )
    images, keys = random_images(4, 32), random_keys(4)
    variables = cudnn_model.init(jax.random.key(0), images)

    def gradients(variables, images, keys):
        return jax.grad(sine_loss(cudnn_model, images, keys))(variables)

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("batch",))
    whole, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("batch")
    gradient = jax.shard_map(
        gradients,
        mesh=mesh,
        in_specs=(whole, split, split),
        out_specs=whole,
        check_vma=False,  # as pmap has it
    )
    traced = jax.jit(gradient).trace(variables, images, keys)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert len(re.findall(r"@__cudnn\$fmhaSoftmax\(", text)) == 2
    assert len(re.findall(r"@__cudnn\$fmhaSoftmaxBackward\(", text)) == 2


@pytest.mark.slow
def test_remat_computes_the_blocks_again_and_has_the_same_gradients():
    images, keys = random_images(16, 32), random_keys(16)

    def compiled(**options):
        model = create(NANO, num_classes=10, dropout=0.1, drop_path=0.1, **options)
        gradient = jax.jit(jax.grad(sine_loss(model, images, keys)))
        return gradient.lower(nano_variables()).compile()

    plain, remat = compiled(), compiled(remat=True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6),
        *(program(nano_variables()) for program in (plain, remat)),
    )
    # One forward pass more, beside the forward and the two of the backward pass. Memory
    # is not asked for: on CPU XLA computes the blocks again long before they are used.
    flops = [x.cost_analysis()["flops"] for x in (plain, remat)]
    assert 1.15 < flops[1] / flops[0] < 4 / 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_is_exact_and_so_is_its_gradient(dtype):
    x = np.concatenate([np.linspace(-9, 9, 20001), [-100, 0, 100]])
    below = scipy.stats.norm.cdf(x)
    expected = x * below, below + x * scipy.stats.norm.pdf(x)
    actual = jax.vmap(jax.value_and_grad(vit.gelu))(jnp.asarray(x, dtype))
    # Rounding of x itself counts in bfloat16: its eight bits, times the slope.
    tolerance = {"float32": 2e-6, "bfloat16": 5e-2}[dtype]
    for value, wanted in zip(actual, expected, strict=True):
        assert value.dtype == dtype
        np.testing.assert_allclose(np.asarray(value, float), wanted, 0.01, tolerance)


def test_attention_and_tokens_can_be_read():
    model = create(NANO, num_classes=10)
    variables = nano_variables()
    assert set(variables) == {"params"}
    apply = jax.jit(model.apply, static_argnames="mutable")
    logits, sown = apply(variables, random_images(2, 32), mutable="intermediates")
    sown = sown["intermediates"]
    for i in range(4):
        (weights,) = sown[f"blocks_{i}"]["attn"]["attention"]
        assert weights.shape == (2, 3, 18, 18)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)

    heads = {"class": "head", "distill": "head_dist"}
    for name, head in heads.items():
        (token,) = sown[f"{name}_token"]
        layer = variables["params"][head]
        np.testing.assert_allclose(
            token @ layer["kernel"], logits[name], rtol=1e-4, atol=1e-5
        )


def test_a_model_without_the_token_has_one_head():
    model = create("vit_nano_patch8_32", num_classes=10)
    assert not {"dist_token", "head_dist"} & set(init_shapes(model))
    variables = jax.eval_shape(model.init, jax.random.key(0), random_images(1, 32))
    logits = jax.eval_shape(model.apply, variables, random_images(1, 32))
    assert {name: x.shape for name, x in logits.items()} == {"class": (1, 10)}


# Dropout and stochastic depth.


@pytest.mark.parametrize("whole", [False, True])
def test_drop_keeps_the_expectation(whole):
    x = jnp.ones((4000, 3, 5))
    dropped = vit.drop(x, random_keys(4000), site=7, rate=0.3, whole=whole)
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.7], rtol=1e-6)
    draws = dropped if not whole else dropped[:, 0, 0]
    # Five standard errors of the mean of independent draws.
    error = (0.3 / 0.7 / draws.size) ** 0.5
    np.testing.assert_allclose(draws.mean(), 1, atol=5 * error)
    images_of_one_value = (dropped == dropped[:, :1, :1]).all(axis=(1, 2)).mean()
    assert images_of_one_value == 1 if whole else images_of_one_value < 0.1


@pytest.mark.parametrize("whole", [False, True])
def test_drop_depends_on_the_key_and_the_site_only(whole):
    keys = random_keys(64)
    x = jnp.ones((64, 3, 5))

    def mask(x, keys, site=3):
        return vit.drop(x, keys, site=site, rate=0.5, whole=whole)

    np.testing.assert_array_equal(mask(x, keys)[10:13], mask(x[:3], keys[10:13]))
    np.testing.assert_array_equal(mask(x, keys)[::-1], mask(x, keys[::-1]))
    # Independent sites agree in about half of the images.
    other_site = mask(x, keys, site=4)
    agree = (mask(x, keys) == other_site).mean()
    assert 0.2 < agree < 0.8


@pytest.mark.parametrize(
    ("variant", "rates"), [(NANO, [0, 0, 0.1, 0.1, 0.2, 0.2]), (NANO3, [0.3] * 6)]
)
def test_every_site_draws_by_itself_and_depth_sets_the_rate(
    monkeypatch, variant, rates
):
    calls = []

    def record(x, drop_keys, *, site, rate, whole=False):
        calls.append((site, rate, whole))
        return x

    monkeypatch.setattr(vit, "drop", record)
    model = create(variant, num_classes=10, drop_path=0.3, dropout=0.1)
    jax.eval_shape(model.init, jax.random.key(0), random_images(1, 32))

    sites = [site for site, _, _ in calls]
    assert len(sites) == len(set(sites)) == 1 + 5 * 4
    # Attention and MLP of each block; none in the first. All the same in DeiT III, as
    # in its authors' code.
    depth_rates = [rate for _, rate, whole in calls if whole]
    np.testing.assert_allclose(depth_rates, [*rates, 0.3, 0.3])
    # After the positions and, a block, attn.proj, the activation and fc2.
    assert [rate for _, rate, whole in calls if not whole] == [0.1] * (1 + 3 * 4)


@pytest.mark.slow
@pytest.mark.parametrize("field", ["drop_path", "dropout"])
def test_masks_follow_the_image_through_any_batch(field):
    model = create(NANO, num_classes=10, **{field: 0.5})
    variables = nano_variables()
    apply = jax.jit(model.apply)
    images, keys = random_images(8, 32), random_keys(8)

    whole = apply(variables, images, drop_keys=keys)["distill"]
    alone = apply(variables, images[5:6], drop_keys=keys[5:6])["distill"]
    turned = apply(variables, images[::-1], drop_keys=keys[::-1])["distill"]
    # The masks are equal to the bit; products of another batch size may round.
    np.testing.assert_allclose(alone, whole[5:6], atol=1e-5)
    np.testing.assert_allclose(turned[::-1], whole, atol=1e-5)

    other = apply(variables, images, drop_keys=random_keys(8, seed=1))["distill"]
    assert np.abs(other - whole).max() > 0.01


@pytest.mark.parametrize("field", ["drop_path", "dropout"])
def test_without_keys_the_rates_do_nothing(field):
    plain, dropping = (
        create(NANO, num_classes=10, **rates) for rates in ({}, {field: 0.5})
    )
    expected, actual = (
        jax.jit(model.apply)(nano_variables(), random_images(2, 32))
        for model in (plain, dropping)
    )
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.slow
def test_stochastic_depth_spares_the_first_block_and_not_the_last():
    model = create(NANO, num_classes=10, drop_path=0.9)
    variables = nano_variables()
    images = random_images(16, 32)

    def blocks(drop_keys):
        _, seen = model.apply(
            variables,
            images,
            drop_keys=drop_keys,
            capture_intermediates=lambda module, _: isinstance(module, vit.Block),
        )
        return [seen["intermediates"][f"blocks_{i}"]["__call__"][0] for i in range(4)]

    kept, dropped = jax.jit(blocks)(None), jax.jit(blocks)(random_keys(16))
    np.testing.assert_allclose(dropped[0], kept[0], atol=1e-6)
    # In the last block one image in a hundred keeps both branches, four in five
    # neither: those leave it as they came.
    unchanged = (dropped[3] == dropped[2]).all(axis=(1, 2)).mean()
    assert 0.4 < unchanged <= 1
    assert (kept[3] != kept[2]).any(axis=(1, 2)).all()
