"""Computes entries of a finished cache again, and compares them with what is stored."""

import numpy as np

from deit_jax.distillation import cache_writer, teacher_cache
from deit_jax.errors import InputError
from teacher.export import Export


def verify(
    job: Export, cache: teacher_cache.TeacherCache, count: int, seed: int = 0
) -> tuple[float, float]:
    """Computes random entries again and compares what is stored.

    Args:
      cache: The finished cache, of the same teacher and images.
      count: Entries, at least 1.

    Returns:
      The largest |cached - live|, and the most by which one exceeds half the distance
      of neighbouring float16 numbers, which rounding alone explains (0.03 for logits
      between 64 and 128).

    Raises:
      InputError: The cache is of another teacher, source or other views.
    """
    ours, theirs = map(cache_writer.identity, (job.manifest(), cache.manifest))
    # Whatever computes them, the numbers are to be the same.
    theirs["teacher"]["backend"] = ours["teacher"]["backend"]
    differing = [
        f"  {field}: {there} in the cache, {here} here"
        for field, (there, here) in cache_writer.differences(theirs, ours).items()
    ]
    if differing:
        raise InputError(
            f"{cache.directory} is of another teacher, data set or setting:\n"
            + "\n".join(differing)
            + "\n--verify wants the flags of the export."
        )
    blocks = _random_blocks(job, cache.num_views, count, seed)
    gaps, beyond = [], []
    with job.open() as opened:
        computed = job.answers(opened, blocks)
        for (index, view), live in zip(blocks, computed, strict=True):
            gap, more = job.encoding.compare(cache.rows(view, index), live)
            gaps.append(gap)
            beyond.append(more)
    return float(np.max(gaps)), float(np.maximum(np.max(beyond), 0))


def _random_blocks(job: Export, num_views: int, count: int, seed: int) -> list:
    """Blocks (index, view) of random entries, whole pairs where pairs are seen."""
    unit = 1 if job.seen is None else 2
    per_view = job.entries_per_view // unit
    total = num_views * per_view
    chosen = np.random.default_rng(seed).choice(
        total, min(-(-count // unit), total), replace=False
    )
    singles = []
    for view, place in zip(*np.divmod(np.sort(chosen), per_view), strict=True):
        index = job.order(int(view))[unit * place : unit * (place + 1)]
        singles.append((index, np.full(unit, view, np.int32)))
    per_block = job.batch_size // unit
    return [
        tuple(map(np.concatenate, zip(*singles[n : n + per_block], strict=True)))
        for n in range(0, len(singles), per_block)
    ]
