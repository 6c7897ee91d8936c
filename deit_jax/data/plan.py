"""Which images meet in which batch, as a pure function of the step.

A training image is a pure function of (augment seed, view, index). `index` is the
position in the source, `view` says which of the many draws. Two images that are mixed
are partners in `pairs(view)`, a random perfect matching; an epoch is an order of the
pairs, and a batch is whole pairs. Nothing here has a state, so a run resumes from a
step number alone.
"""

import dataclasses
import functools
import math

import jax
import numpy as np

from deit_jax.data.rng import Stream, host_device, stream_key
from deit_jax.errors import InputError


def pairs(augment_seed: int, block: int, length: int) -> np.ndarray:
    """A random perfect matching of `length` indices: int32 [length // 2, 2].

    With an odd length one index, drawn anew for each block, rests. `block` is the view
    (or, under repeated augmentation, the block of views that share a matching).
    """
    shuffled = _permutation(Stream.PAIRS, augment_seed, block, length)
    return shuffled[: length // 2 * 2].reshape(-1, 2)


def view_pairs(augment_seed: int, view: int, length: int, repeats: int) -> np.ndarray:
    """The partners of a view: int32 [ceil(length / 2), 2].

    The index that rests, with an odd length, comes last as its own partner.
    """
    matching = pairs(augment_seed, view // repeats, length)
    if length % 2 == 0:
        return matching
    resting = np.setdiff1d(np.arange(length, dtype=np.int32), matching)
    return np.concatenate([matching, [[resting[0], resting[0]]]], dtype=np.int32)


def order(seed: int, block: int, num_pairs: int) -> np.ndarray:
    """The order in which a block goes through its pairs: int32 [num_pairs]."""
    return _permutation(Stream.ORDER, seed, block, num_pairs)


def _permutation(stream: Stream, seed: int, block: int, length: int) -> np.ndarray:
    with jax.default_device(host_device()):
        key = jax.random.fold_in(stream_key(stream, seed), block)
        return np.asarray(jax.random.permutation(key, length), np.int32)


def mix_off_view(off: int, *, epochs: float, repeats: int, num_views: int) -> int:
    """The first view without MixUp and CutMix, so that a view says whether it is mixed.

    Without cached views it is `off`, as a view is an epoch. Of cached ones the epochs
    from `off` on have the last to themselves.

    Args:
      off: The first epoch without them, `augment.mix_off_epoch`; 0 for none.
      epochs, repeats, num_views: Of the run, see `BatchPlan`.

    Raises:
      InputError: `off` is no epoch of the run, or there are too few views.
    """
    if not off:
        return 0
    given, last = f"augment.mix_off_epoch={off}", math.ceil(epochs) - off
    if last <= 0:
        raise InputError(
            f"{given} is no epoch of this run, whose {epochs:g} epochs begin at 0. "
            "Lower it, or set it to 0, which mixes in all."
        )
    if off % repeats:
        raise InputError(
            f"{given} must be a multiple of augment.repeats={repeats}, as so many "
            "epochs share their views."
        )
    if not num_views:
        return off
    view = num_views - -(-last // repeats) * repeats
    if view <= 0:
        raise InputError(
            f"{given} leaves {last} epochs without mixing, which take a cached view "
            f"each, and distillation.num_views={num_views} leaves none for those "
            "before. Raise num_views, or take distillation.view=plain."
        )
    return view


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """The images of every step of a run.

    Attributes:
      length: Images in the source.
      batch_size: Images in a global batch; even, as a batch is whole pairs.
      seed: Of the order of the pairs.
      augment_seed: Of the matching (part of a teacher cache's identity).
      num_views: Views that the epochs cycle through; 0 for a new one each epoch.
      mix_off_epoch: The first epoch whose images are not mixed; 0 for none.
      mix_off_view: Of `num_views`, the first that belongs to those epochs: the ones
        before cycle through the views before it.
      repeats: Repeated augmentation (Hoffer et al. 2020, as DeiT uses it): a block of
        `repeats` epochs has one matching and one order, cut into `repeats` parts, and
        each epoch shows its part under all views of the block.

    Raises:
      InputError: The batch does not fit the source, or `num_views` is not a multiple
        of `repeats`.
    """

    length: int
    batch_size: int
    seed: int
    augment_seed: int
    num_views: int = 0
    mix_off_epoch: int = 0
    mix_off_view: int = 0
    repeats: int = 1

    def __post_init__(self):
        if self.num_views % self.repeats:
            raise InputError(
                f"augment.repeats={self.repeats} must divide the number of views "
                f"({self.num_views})."
            )
        if self.steps_per_epoch == 0:
            raise InputError(
                f"batch_size={self.batch_size} is larger than an epoch of the "
                f"{self.length} training images (augment.repeats={self.repeats}): "
                "lower --config.batch_size."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; what is left over sits the epoch out, as in DeiT."""
        pairs_per_part = self.length // 2 // self.repeats
        return pairs_per_part * self.repeats * 2 // self.batch_size

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The images of a step, partners side by side: rows 2i and 2i + 1.

        Returns:
          (index int32 [B], view int32 [B]).
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        index, view = _epoch(self, epoch)
        rows = slice(position * self.batch_size, (position + 1) * self.batch_size)
        return index[rows], view[rows]


@functools.lru_cache(maxsize=2)  # the current epoch, and the next for prefetching
def _epoch(plan: BatchPlan, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    block, part = divmod(epoch, plan.repeats)
    block_of_views = _block_of_views(plan, block)
    matching = pairs(plan.augment_seed, block_of_views, plan.length)
    size = len(matching) // plan.repeats
    chosen = order(plan.seed, block, len(matching))[part * size : (part + 1) * size]
    index = np.repeat(matching[chosen], plan.repeats, axis=0)
    first_view = block_of_views * plan.repeats
    view = np.tile(np.arange(plan.repeats, dtype=np.int32) + first_view, size)
    return index.reshape(-1), np.repeat(view, 2)


def _block_of_views(plan: BatchPlan, block: int) -> int:
    """Which of the blocks of views is shown in a block of epochs."""
    if not plan.num_views:
        return block
    views = plan.num_views // plan.repeats
    off, mixed = plan.mix_off_epoch // plan.repeats, plan.mix_off_view // plan.repeats
    if not off or block < off:
        return block % (mixed or views)
    return mixed + (block - off) % (views - mixed)
