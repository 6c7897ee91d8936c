"""The peer is timed on the same work: the same loss from the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from timm_weights import randomise

from benchmarks import ours, timm_peer
from benchmarks.cases import Case
from deit_jax.distillation.teacher import Answers
from deit_jax.training import inputs
from deit_jax.weights import timm as naming

CASE = Case("deit_nano_distilled_patch8_32", 4, 10)


@pytest.fixture(scope="module")
def model():
    model = timm_peer.create_model(CASE).train()
    randomise(model)
    return model


@pytest.mark.slow
def test_the_loss_is_ours(model, one_torch_thread):
    config = CASE.config()
    pixels, labels, teacher = timm_peer.random_batch(CASE, torch.device("cpu"))
    images = timm_peer.normalise(pixels, config.dataset)
    targets = torch.nn.functional.one_hot(labels, 10) * 0.9 + 0.01
    loss = timm_peer.Loss(
        model, alpha=config.distillation.alpha, tau=config.distillation.tau
    )
    with torch.no_grad():
        theirs = loss(images, targets, teacher).item()

    built = ours.experiment(CASE, jax.local_devices()[:1])
    state_dict = {name: value.numpy() for name, value in model.state_dict().items()}
    logits = built.model.apply(
        {"params": naming.to_flax(state_dict)},
        inputs.normalise(
            jnp.asarray(pixels.numpy().transpose(0, 2, 3, 1)),
            config.dataset.mean,
            config.dataset.std,
        ),
    )
    mine = built.settings["loss"](
        logits, jnp.asarray(targets.numpy()), Answers(jnp.asarray(teacher.numpy()))
    )
    assert theirs == pytest.approx(float(mine["loss"].mean()), rel=1e-5)


def test_a_step_is_the_whole_of_it(one_torch_thread):
    """Weights, moving average and optimizer all move, with mixing and without."""
    for augmented in (True, False):
        case = Case(CASE.variant, 4, 10, augmented=augmented)
        training = timm_peer.Training(case, torch.device("cpu"), "eager")
        pixels, _, teacher = training.batch
        training.batch = pixels, torch.arange(4), teacher  # partners differ
        before = training.model.head_dist.weight.detach().clone()
        assert np.isfinite(training.step().item())
        after = training.model.head_dist.weight.detach()
        average = training.ema.module.head_dist.weight
        decay = case.config().ema.decay
        assert not torch.equal(before, after)
        torch.testing.assert_close(average, decay * before + (1 - decay) * after)
        smoothed = sorted([0.91] + 9 * [0.01])
        draws = [training.prepare()[1] for _ in range(10)]
        for targets in draws:
            torch.testing.assert_close(targets.sum(dim=-1), torch.ones(4))
        rows = [sorted(row) for targets in draws for row in targets.tolist()]
        assert augmented != all(row == pytest.approx(smoothed) for row in rows)
