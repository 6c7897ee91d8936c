"""The parameters in a checkpoint, without the optimizer's state."""

import os
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from deit_jax import files
from deit_jax.distillation.features import without_projector
from deit_jax.errors import InputError
from deit_jax.models.params import abstract_params
from deit_jax.training import checkpoint, digests

# What users call the parameters of a checkpoint.
WEIGHTS = {"raw": "params", "ema": "ema_params"}


def load_params(
    workdir: str | os.PathLike, model, *, weights: str = "raw", step: int | None = None
) -> tuple[dict, int]:
    """Parameters of a run directory, without the optimizer's state.

    Args:
      model: The `VisionTransformer` whose parameters they are to be.
      weights: `raw`, or `ema` for their moving average.
      step: Of the checkpoint; None is the newest.

    Returns:
      The parameters as NumPy arrays, and their step.

    Raises:
      InputError: There is no such checkpoint, it has no moving average, its parameters
        are not those of `model`, or it is damaged.
    """
    if weights not in WEIGHTS:
        raise InputError(f"weights={weights!r}: expected {' or '.join(WEIGHTS)}.")
    where = checkpoint.find(workdir, step)
    key = WEIGHTS[weights]
    abstract = abstract_params(model)
    try:
        tree = _metadata(where)
        _check_params(tree[key], abstract, model, str(where))
        # NumPy arrays as targets: nothing is put on a device here.
        target = {key: jax.tree.map(lambda x: np.empty(x.shape, x.dtype), abstract)}
        # Not a manager or a checkpointer: they would tell of all that is not restored.
        restored = ocp.PyTreeCheckpointHandler().restore(
            where / "state",
            args=ocp.args.PyTreeRestore(
                target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=True,
            ),
        )
        written = checkpoint.read_plain(where)["digests"]
        found = digests.of_arrays(restored)
        digests.check({name: written.get(name) for name in found}, found)
    except InputError:
        raise
    except Exception as error:  # tensorstore and orbax raise anything
        raise checkpoint.damaged_error(where, error) from error
    return restored[key], int(where.name)


def weights_in(
    workdir: str | os.PathLike, *, step: int | None = None
) -> tuple[str, ...]:
    """The `WEIGHTS` that a checkpoint holds; raises InputError as `load_params`."""
    where = checkpoint.find(workdir, step)
    try:
        tree = _metadata(where)
        return tuple(name for name, key in WEIGHTS.items() if tree[key] is not None)
    except Exception as error:
        raise checkpoint.damaged_error(where, error) from error


def _metadata(where: Path) -> dict:
    """Shape and type of all that a checkpoint holds, as a tree; raises anything."""
    state = where / "state"
    for path in state.rglob("*"):
        if not path.is_dir():
            files.check_regular(path)
    return ocp.PyTreeCheckpointHandler().metadata(state).tree


def _check_params(found, expected, model, where: str) -> None:
    if found is None:
        raise InputError(
            f"{where} has no moving average of the parameters (the run's ema.decay was "
            "0, or they are converted): take the raw ones, --weights=raw."
        )
    found, expected = (
        {name: tuple(x.shape) for name, x in flatten_dict(tree, sep=".").items()}
        for tree in (without_projector(found), expected)
    )
    if not (differing := dict(found.items() ^ expected.items())):
        return
    name = min(differing)
    raise InputError(
        f"{where} holds the parameters of another model than the one its model.json "
        f"describes ({model.num_classes} classes, {model.image_size} px). {name}: "
        f"{found.get(name, 'absent')}, expected "
        f"{expected.get(name, 'no such parameter')}; {len(differing)} differ."
    )
