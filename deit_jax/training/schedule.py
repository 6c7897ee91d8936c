"""Learning rates by the step: a linear warm-up, and what follows it."""

import optax

NAMES = ("cosine", "constant", "linear", "wsd")


def create(
    name: str,
    peak: float,
    *,
    total_steps: int,
    warmup_steps: int,
    cooldown_steps: int = 0,
    warmup_learning_rate: float = 0.0,
    min_learning_rate: float = 0.0,
) -> optax.Schedule:
    """Creates the schedule of a run: step (from 0) -> learning rate.

    Args:
      name: One of `NAMES`. After the warm-up the rate falls to `min_learning_rate`
        along half a `cosine` (Loshchilov and Hutter 2017, arXiv 1608.03983) or
        `linear`ly; or it stays at the peak (`constant`), until with `wsd` (warm-up,
        stable, decay: Hu et al. 2024, arXiv 2404.06395) it falls linearly over the
        last `cooldown_steps`, as in Haegele et al. 2024 (arXiv 2405.18392).
      peak: After the warm-up.
    """
    first = warmup_learning_rate if warmup_steps else peak
    left = total_steps - warmup_steps
    match name:
        case "cosine":
            floor = min_learning_rate / peak if peak else 0.0
            after = optax.cosine_decay_schedule(peak, left, alpha=floor)
        case "constant":
            after = optax.constant_schedule(peak)
        case "linear":
            after = optax.linear_schedule(peak, min_learning_rate, left)
        case "wsd":
            begin = left - cooldown_steps
            after = optax.linear_schedule(
                peak, min_learning_rate, cooldown_steps, transition_begin=begin
            )
        case _:
            raise ValueError(f"unknown schedule {name!r}; known: {NAMES}")
    warmup = optax.linear_schedule(first, peak, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])
