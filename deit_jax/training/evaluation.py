"""Evaluation over a whole split: every image once, every head, raw and EMA weights."""

import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np

from deit_jax.data import batches
from deit_jax.training import metrics


def collect_logits(
    eval_step: Callable, params: Mapping, source, *, batch_size: int, devices: int
) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray]:
    """Logits and labels, in the order of the source, from one pass over it.

    Args:
      eval_step: `step.pmap_eval_step`'s: (params, images) -> logits [d, b, C].
      params: Sets of parameters by name; each sees every batch.
      source: An `ArraySource` or a `HostPipeline`.
      batch_size: Global, rounded up to a multiple of `devices`.

    Returns:
      {name: {head: float32 [N, C]}} and the labels, int32 [N].
    """
    parts, labels = [], []
    for batch, real_labels in batches.eval_batches(
        source, batch_size=batch_size, devices=devices
    ):
        logits = {name: eval_step(p, batch["image"]) for name, p in params.items()}
        parts.append(jax.tree.map(functools.partial(_rows, len(real_labels)), logits))
        labels.append(real_labels)
    whole = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    return whole, np.concatenate(labels)


def _rows(real: int, logits: jax.Array) -> np.ndarray:
    """[d, b, C] to [real, C]: without the padding."""
    return np.asarray(logits).reshape(-1, logits.shape[-1])[:real]


def evaluate(
    eval_step: Callable, params: Mapping, source, *, batch_size: int, devices: int
) -> dict[str, dict[str, dict[str, float]]]:
    """{name: {head: {"loss", "top1", "top5"}}} for each of the sets in `params`.

    The heads are `class` and, with the token, `distill` and `mean`.
    """
    logits, labels = collect_logits(
        eval_step, params, source, batch_size=batch_size, devices=devices
    )
    return {
        name: {
            head: metrics.classification(scores, labels)
            for head, scores in metrics.heads(per_head).items()
        }
        for name, per_head in logits.items()
    }
