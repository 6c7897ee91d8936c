"""What is not trained keeps its bits, and costs neither gradient nor memory."""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import vit
from deit_jax import train
from deit_jax.errors import InputError
from deit_jax.models import variants
from deit_jax.models.params import abstract_params, parameter_names
from deit_jax.models.vit import VisionTransformer
from deit_jax.training import optimizer, saved_params, state, step, trainable
from deit_jax.training.inputs import Inputs

HEADS = {"head/bias", "head/kernel", "head_dist/bias", "head_dist/kernel"}
ATTENTION = {f"attn/{x}/{y}" for x in ("qkv", "proj") for y in ("bias", "kernel")}


def nano():
    model = variants.create("deit_nano_distilled_patch8_32", num_classes=10)
    return abstract_params(model)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("heads", HEADS),
        (
            "attention",
            HEADS
            | {"pos_embed"}
            | {f"blocks_{n}/{name}" for n in range(4) for name in ATTENTION},
        ),
        (
            r"blocks_3/norm1|^dist_",
            {"blocks_3/norm1/bias", "blocks_3/norm1/scale", "dist_token"},
        ),
        ("all", set(parameter_names(nano()))),
    ],
)
def test_a_pattern_says_what_is_trained(which, expected):
    trained, frozen = trainable.split(nano(), which)
    names = [*jax.tree.leaves_with_path(trained), *jax.tree.leaves_with_path(frozen)]
    assert set(parameter_names(trained)) == expected
    assert len(names) == len(jax.tree.leaves(nano()))
    assert trainable.merge(trained, frozen) == nano()


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("atention", r"no parameter.*blocks_N/attn/qkv/kernel.*or give all, heads,"),
        ("blocks_(", r"no regular expression: missing \)"),
    ],
)
def test_what_names_nothing_is_refused_in_a_line(which, message):
    with pytest.raises(InputError, match=message) as caught:
        trainable.split(nano(), which)
    assert "\n" not in str(caught.value)


@functools.cache
def after_a_step(which, accumulation=1):
    """(before, after) a step of AdamW with all that it can have."""
    model = VisionTransformer(10, 16, patch_size=8, width=24, depth=2, num_heads=3)
    tx = optimizer.create("adamw", 0.1, weight_decay=0.1, layer_decay=0.5)
    before = state.create(model, tx, seed=0, ema=True, trainable=which)
    random = np.random.default_rng(0)
    batch = {"label": np.arange(4)}
    inputs = Inputs(
        random.normal(size=(4, 16, 16, 3)).astype("f4"),
        np.eye(10, dtype="f4")[:4],
        None,
    )
    one_step = functools.partial(
        step.train_step,
        model=model,
        optimizer=tx,
        inputs=lambda _: jax.tree.map(lambda x: x[: 4 // accumulation], inputs),
        loss=lambda logits, targets, *_: {
            "loss": -(jax.nn.log_softmax(logits["class"]) * targets).sum(-1)
        },
        seed=0,
        ema_decay=0.7,
        accumulation=accumulation,
        trainable=which,
    )
    return before, *jax.jit(one_step)(before, batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "accumulation"), [("heads", 1), ("attention", 1), ("^blocks_1/mlp", 2)]
)
def test_the_frozen_keep_their_bits_and_the_trained_move(which, accumulation):
    before, after, metrics = after_a_step(which, accumulation)
    trained, frozen = (
        flatten_dict(t, sep="/") for t in trainable.split(before.params, which)
    )
    params, ema = (flatten_dict(t, sep="/") for t in (after.params, after.ema_params))
    for name, value in frozen.items():
        if value is not None:
            assert params[name].tobytes() == ema[name].tobytes() == value.tobytes()
    moved = [name for name, value in trained.items() if value is not None]
    assert all((params[name] != trained[name]).any() for name in moved)
    assert all((ema[name] != trained[name]).any() for name in moved)
    assert metrics["grad_norms"].shape == (len(moved),)
    size = sum(trained[name].size for name in moved)
    assert sum(x.size for x in jax.tree.leaves(before.opt_state)) <= 2 * size + 2


@pytest.mark.slow
def test_the_trained_take_the_step_that_they_take_among_all():
    (_, everything, _), (_, some, _) = after_a_step("all"), after_a_step("attention")
    trained, _ = trainable.split(some.params, "attention")
    expected, _ = trainable.split(everything.params, "attention")
    for tree in (trained, expected):
        for n in range(2):
            # The keys' biases: no gradient but rounding, which AdamW makes a step of.
            bias = np.array(tree[f"blocks_{n}"]["attn"]["qkv"]["bias"])
            tree[f"blocks_{n}"]["attn"]["qkv"]["bias"] = np.delete(bias, np.s_[24:48])
    close = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(close, trained, expected)


@pytest.mark.slow
def test_heads_are_trained_on_another_runs_features(digits_run, tmp_path, capsys):
    config = vit.get_config("digits")
    config.init_from = str(digits_run)
    config.optimizer.trainable = "heads"
    config.epochs = 0.1
    config.dataset.eval_split = "test[:50]"
    config.ema.decay = 0.5
    train.train_and_evaluate(config, tmp_path / "run")
    assert (
        "970 of them trained (optimizer.trainable='heads')" in capsys.readouterr().out
    )
    model = variants.create("vit_nano_patch8_32", num_classes=10)
    distilled = variants.create("deit_nano_distilled_patch8_32", num_classes=10)
    source, _ = saved_params.load_params(digits_run, distilled)
    for weights in ("raw", "ema"):
        params, _ = saved_params.load_params(tmp_path / "run", model, weights=weights)
        assert (params.pop("head")["kernel"] != source["head"]["kernel"]).any()
        params.pop("pos_embed")  # without that of the distillation token
        for name, value in flatten_dict(params, sep="/").items():
            assert value.tobytes() == flatten_dict(source, sep="/")[name].tobytes()
