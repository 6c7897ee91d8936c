"""Evaluation over a whole split: every image once, every head."""

from collections.abc import Callable

import jax
import numpy as np

from deit_jax.data import batches
from deit_jax.training import metrics


def collect_logits(
    eval_step: Callable, params, source, *, batch_size: int, devices: int
) -> dict[str, np.ndarray]:
    """Logits float32 [N, C] of each head, in the order of the source.

    Args:
      eval_step: `step.pmap_eval_step`'s: (params, images) -> logits [d, b, C].
      batch_size: Global, rounded up to a multiple of `devices`.
    """
    parts = []
    for batch, real in batches.eval_batches(
        source, batch_size=batch_size, devices=devices
    ):
        logits = eval_step(params, batch["image"])
        parts.append(
            jax.tree.map(
                lambda x, n=real: np.asarray(x).reshape(-1, x.shape[-1])[:n], logits
            )
        )
    return {head: np.concatenate([part[head] for part in parts]) for head in parts[0]}


def evaluate(
    eval_step: Callable, params, source, *, batch_size: int, devices: int
) -> dict[str, dict[str, float]]:
    """{head: {"loss", "top1", "top5"}} for `class` and, with the token, `distill`, `mean`."""
    logits = collect_logits(
        eval_step, params, source, batch_size=batch_size, devices=devices
    )
    return {
        head: metrics.classification(scores, source.labels)
        for head, scores in metrics.heads(logits).items()
    }
