"""Exact metrics from the logits of a whole split, on the host."""

import numpy as np


def heads(logits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds `mean`, the mean of the two heads' logits, where there are two.

    The reference predicts with it (Touvron et al. 2020, section 4, and timm).
    """
    if "distill" not in logits:
        return logits
    return logits | {"mean": (logits["class"] + logits["distill"]) / 2}


def classification(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Cross-entropy (nats), top-1 and top-5 accuracy (0 .. 1).

    Args:
      logits: float [N, C]; with fewer than five classes top-5 is 1.
      labels: int [N].

    Ties go to the smaller class index, and a logit that is not a number outranks the
    label, so that a constant or broken model gets no accuracy for free.
    """
    logits = logits.astype(np.float64)
    rows = np.arange(len(labels))
    true = logits[rows, labels][:, None]
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    # Not `logits > true`: a comparison with nan is false, and must count as a loss.
    rank = (~(logits <= true) | ((logits == true) & earlier)).sum(axis=1)
    high = logits.max(axis=1, keepdims=True)
    log_sum = high + np.log(np.exp(logits - high).sum(axis=1, keepdims=True))
    return {
        "loss": float((log_sum - true).mean()),
        "top1": float((rank < 1).mean()),
        "top5": float((rank < 5).mean()),
    }
