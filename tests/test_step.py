"""The pmapped step against the same step on one device, and what must not change it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from torchvision.transforms.v2 import functional as F

from deit_jax.data import batches
from deit_jax.distillation import losses
from deit_jax.distillation.teacher import Answers
from deit_jax.models import cost
from deit_jax.models.params import parameter_names
from deit_jax.models.vit import VisionTransformer
from deit_jax.training import inputs, optimizer, state, step

B, C = 16, 10
DISTILLATION = {
    "kind": "soft",
    "head": "token",
    "alpha": 0.5,
    "tau": 3.0,
    "reduction": "batchmean",
}


@functools.cache
def build(name="sgd", drop=0.0):
    # Small, as each test compiles a step of its own.
    model = VisionTransformer(
        num_classes=C,
        image_size=32,
        patch_size=8,
        width=24,
        depth=2,
        num_heads=3,
        distilled=True,
        drop_path=drop,
        dropout=drop,
    )
    tx = optimizer.create(name, 0.05 if name == "sgd" else 1e-3, clip_norm=1.0)
    return model, tx, jax.device_get(state.create(model, tx, seed=0, ema=True))


def statics(model, tx, **changes):
    return {
        "model": model,
        "optimizer": tx,
        "inputs": lambda batch: inputs.Inputs(
            inputs.normalise(batch["image"], (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
            losses.smooth_labels(batch["label"], C, 0.1),
            Answers(batch["teacher_logits"]),
        ),
        "loss": functools.partial(losses.training_loss, **DISTILLATION),
        "seed": 3,
        "ema_decay": 0.9,
    } | changes


def make_batch(number):
    rng = np.random.default_rng(number)
    return {
        "image": rng.integers(0, 256, (B, 32, 32, 3), np.uint8),
        "label": rng.integers(0, C, B).astype(np.int32),
        "teacher_logits": rng.normal(0, 3, (B, C)).astype(np.float16),
    }


@functools.cache
def run(devices, steps=1, name="sgd", drop=0.0, **changes):
    """(state, metrics of the last step) after `steps`; 0 devices: jit without pmap."""
    model, tx, current = build(name, drop)
    settings = statics(model, tx, **changes)
    if devices:
        mapped = step.pmap_train_step(jax.local_devices()[:devices], **settings)
        current = step.replicate(current, jax.local_devices()[:devices])
    else:
        mapped = jax.jit(functools.partial(step.train_step, **settings))
    for number in range(steps):
        batch = make_batch(number)
        if devices:
            batch = {
                k: v.reshape(devices, B // devices, *v.shape[1:])
                for k, v in batch.items()
            }
            current, metrics = mapped(current, batch, None)
        else:
            current, metrics = mapped(current, batch)
    return jax.device_get((current, metrics))


def assert_close(got, expected, atol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0), got, expected
    )


def gradient_of(new_state):
    """After one step of SGD its momentum trace is the gradient."""
    traces = [
        leaf.trace
        for leaf in jax.tree.leaves(
            new_state.opt_state, is_leaf=lambda x: hasattr(x, "trace")
        )
        if hasattr(leaf, "trace")
    ]
    assert len(traces) == 1
    return traces[0]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_pmap_gives_the_loss_and_gradient_of_jit(devices):
    mapped, mapped_metrics = run(devices)
    single, metrics = run(0)
    assert_close(mapped_metrics, metrics)
    assert_close(gradient_of(mapped), gradient_of(single))
    assert jax.tree.leaves(gradient_of(single))[0].any()


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_parameters_after_five_sgd_steps(devices):
    mapped, _ = run(devices, steps=5)
    single, _ = run(0, steps=5)
    assert mapped.step == 5
    assert_close(mapped.params, single.params)
    assert_close(mapped.ema_params, single.ema_params)


@pytest.mark.slow
def test_replicas_stay_equal():
    """With an output axis for each device, so that a forgotten pmean would show."""
    model, tx, start = build()
    devices = jax.local_devices()
    mapped = jax.pmap(
        functools.partial(step.train_step, axis_name="batch", **statics(model, tx)),
        axis_name="batch",
        in_axes=(None, 0),
        out_axes=0,
    )
    batch = {k: v.reshape(4, 4, *v.shape[1:]) for k, v in make_batch(0).items()}
    new_state, metrics = mapped(start, batch)
    for leaf in jax.tree.leaves((new_state, metrics)):
        assert leaf.shape[0] == len(devices)
        np.testing.assert_array_equal(
            leaf[1:], np.broadcast_to(leaf[:1], leaf[1:].shape)
        )


@pytest.mark.slow
@pytest.mark.parametrize("devices", [0, 2])
def test_accumulation_gives_the_gradient_of_the_whole_batch(devices):
    whole, whole_metrics = run(devices, drop=0.3)
    parts, parts_metrics = run(devices, drop=0.3, accumulation=4)
    assert_close(parts_metrics, whole_metrics)
    assert_close(gradient_of(parts), gradient_of(whole))


@pytest.mark.slow
def test_parts_that_a_cache_holds_give_what_the_whole_batch_does(monkeypatch):
    model, tx, start = build(drop=0.3)
    whole, whole_metrics = run(0, drop=0.3)
    # Of two images: 18 tokens of 24 numbers each.
    monkeypatch.setattr(cost, "CACHED", 2 * 18 * 24)
    settings = statics(model, tx, accumulation=2)
    parts, metrics = jax.jit(
        functools.partial(step.train_step, in_cache=True, **settings)
    )(start, make_batch(0))
    assert_close(metrics, whole_metrics)
    assert_close(gradient_of(parts), gradient_of(whole))
    arguments = {"model": model, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    images = make_batch(0)["image"]
    whole, parts = (
        step.eval_step(
            start.params, images, **arguments, token_cosine=True, in_cache=in_cache
        )
        for in_cache in (False, True)
    )
    assert_close(parts, whole)


@pytest.mark.slow
def test_drop_masks_do_not_depend_on_the_number_of_devices():
    mapped, mapped_metrics = run(4, drop=0.3)
    single, metrics = run(0, drop=0.3)
    assert_close(mapped_metrics, metrics)
    assert_close(gradient_of(mapped), gradient_of(single))
    _, undropped = run(0)
    assert abs(metrics["loss"] - undropped["loss"]) > 1e-4


@pytest.mark.slow
def test_drop_masks_change_with_step_and_seed():
    model, tx, start = build(drop=0.3)
    batch = make_batch(0)

    def loss_at(seed, *steps):
        train = functools.partial(step.train_step, **statics(model, tx, seed=seed))
        train = jax.jit(train)
        moved = [start.replace(step=jnp.asarray(number, jnp.int32)) for number in steps]
        return [float(train(at, batch)[1]["loss"]) for at in moved]

    first, again, other_step = loss_at(3, 0, 0, 1)
    assert first == again
    assert len({first, other_step, *loss_at(4, 0)}) == 3


@pytest.mark.slow
def test_only_the_first_step_compiles():
    model, tx, start = build()
    mapped = step.pmap_train_step(jax.local_devices(), **statics(model, tx))
    batch = {k: v.reshape(4, 4, *v.shape[1:]) for k, v in make_batch(0).items()}
    current, _ = mapped(step.replicate(start, jax.local_devices()), batch, None)
    compiled = []

    def listen(event, _duration, **_):
        if "compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for _ in range(2):
            current, _ = mapped(current, batch, None)
        assert not compiled
        jax.jit(lambda x: x + 1)(jnp.ones(3))
        assert compiled, "the listener must hear compilations at all"
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_several_steps_at_once_from_resident_images(devices):
    """As one by one, with the images in the batch; what the host sends is explicit."""
    model, tx, start = build("adamw", 0.3)
    mine = jax.local_devices()[:devices]
    mapped = step.pmap_train_step(mine, **statics(model, tx))
    images = np.concatenate([make_batch(number)["image"] for number in range(4)])
    index = np.random.default_rng(0).permutation(len(images)).astype(np.int32)
    singles = [
        make_batch(number) | {"index": part, "image": images[part]}
        for number, part in enumerate(index.reshape(4, -1))
    ]
    singles = [batches.split(batch, devices) for batch in singles]

    current, losses = step.replicate(start, mine), []
    for batch in step.on_devices((batch for batch in singles), mine):
        current, metrics = mapped(current, batch, None)
        losses.append(float(metrics["loss"]))

    several = step.replicate(start, mine)
    resident = step.place_whole({"images": images}, mine)
    bare = ({k: v for k, v in b.items() if k != "image"} for b in singles)
    with jax.transfer_guard("disallow"):
        for batch in step.on_devices(batches.together(bare, [3, 1]), mine):
            several, metrics = mapped(several, batch, resident)
            if metrics["loss"].ndim:
                first = metrics
    assert first["loss"].shape == (3,)
    found = [*first["loss"], metrics["loss"]]
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    assert first["grad_norms"].shape == (3, len(jax.tree.leaves(start.params)))
    assert several.step == 4
    assert_close(several.params, current.params, atol=1e-5)
    assert_close(several.ema_params, current.ema_params, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["cpu", "default"])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(form, monkeypatch):
    """In the form of a CPU and in that of the others; one of two devices is hit."""
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *args, **forms: forms[form](*args)
    )
    model, tx, start = build("adamw")
    devices = jax.local_devices()[:2]
    mapped = step.pmap_train_step(devices, **statics(model, tx))
    broken, whole = (
        {k: v.reshape(2, 8, *v.shape[1:]).copy() for k, v in make_batch(n).items()}
        for n in range(2)
    )
    broken["teacher_logits"][1, 3] = np.nan
    before, metrics = mapped(step.replicate(start, devices), whole, None)
    before = jax.device_get(before)
    assert metrics["skipped"] == 0
    after, metrics = mapped(step.replicate(before, devices), broken, None)
    assert metrics["skipped"] == 1
    assert not np.isfinite(metrics["loss"])
    assert after.step == before.step + 1 == 2
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(after),
        before.replace(step=np.int32(2)),
    )
    after, metrics = mapped(after, whole, None)
    assert metrics["skipped"] == 0
    assert after.step == 3
    assert not np.array_equal(
        after.params["head"]["kernel"], before.params["head"]["kernel"]
    )


def test_no_host_waits_for_whether_a_step_is_skipped():
    """A GPU's program has the branches of a CPU's but for this one."""
    model, tx, start = build()
    train = jax.jit(functools.partial(step.train_step, **statics(model, tx)))
    traced = train.trace(start, make_batch(0))
    cpu, gpu = (
        traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda")
    )
    assert gpu.count("stablehlo.case") == cpu.count("stablehlo.case") - 1
    assert gpu.count("stablehlo.select") > cpu.count("stablehlo.select")


@pytest.mark.slow
def test_the_norm_of_every_gradient():
    new_state, metrics = run(0)
    gradients = jax.tree.leaves(gradient_of(new_state))
    clipped = min(1, 1 / metrics["grad_norm"])
    expected = [np.linalg.norm(gradient.ravel()) / clipped for gradient in gradients]
    np.testing.assert_allclose(metrics["grad_norms"], expected, rtol=1e-4)
    names = parameter_names(new_state.params)
    assert len(names) == len(expected)
    shapes = {"/".join(k): v.shape for k, v in flatten_dict(new_state.params).items()}
    assert [g.shape for g in gradients] == [shapes[name] for name in names]


def test_ema_follows_the_parameters():
    _, _, start = build()
    new_state, _ = run(0)
    assert_close(
        new_state.ema_params,
        jax.tree.map(
            lambda old, new: 0.9 * old + 0.1 * new, start.params, new_state.params
        ),
        atol=3e-7,
    )


def test_normalise_is_torchvisions():
    images = make_batch(0)["image"]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = F.normalize(
        torch.tensor(images).permute(0, 3, 1, 2).float() / 255, mean, std
    ).permute(0, 2, 3, 1)
    got = inputs.normalise(images, mean, std)
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-6)


def test_eval_step_has_a_device_axis_and_drops_nothing():
    model, _, start = build(drop=0.3)
    images = make_batch(0)["image"]
    evaluate = step.pmap_eval_step(
        jax.local_devices(), model=model, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    logits = evaluate(start.params, images.reshape(4, 4, 32, 32, 3))
    plain = build()[0].apply(
        {"params": start.params}, inputs.normalise(images, (0.5,) * 3, (0.5,) * 3)
    )
    assert set(logits) == {"class", "distill"}
    for head in logits:
        assert logits[head].shape == (4, 4, C)
        np.testing.assert_allclose(logits[head].reshape(B, C), plain[head], atol=1e-5)


def test_agreement_with_the_teacher():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 2, (2, B, C)).astype(np.float32)
    got = step.agreement(student, teacher)
    p, q = torch.tensor(teacher).softmax(-1), torch.tensor(student).softmax(-1)
    expected = {
        "teacher_agreement": p.argmax(-1) == q.argmax(-1),
        "teacher_kl": (p * (p / q).log()).sum(-1),
        "teacher_cosine": torch.cosine_similarity(p, q),
    }
    assert set(got) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values.numpy(), atol=1e-5)


def test_a_step_reports_the_agreement_of_the_distillation_head():
    model, _, start = build()
    batch = make_batch(0)
    images = inputs.normalise(batch["image"], (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    logits = model.apply({"params": start.params}, images)["distill"]
    _, metrics = run(0)
    for name, values in step.agreement(logits, batch["teacher_logits"]).items():
        assert metrics[name] == pytest.approx(float(values.mean()), abs=1e-5)
