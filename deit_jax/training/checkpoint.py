"""Checkpoints: `<workdir>/checkpoints/<step>/` with state and config (orbax)."""

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from orbax.checkpoint import checkpoint_managers

from deit_jax.errors import InputError
from deit_jax.training.state import TrainState

# Fields that may change between two starts: they touch neither the parameters nor the
# order of the data. A moved cache is checked by its manifest, not by its path.
FREE_FIELDS = (
    "checkpoint.",
    "eval.",
    "log.",
    "dataset.data_dir",
    "dataset.workers",
    "distillation.logits_dir",
)


class Checkpoints:
    """The checkpoints of one run directory; saving does not block the training.

    Args:
      workdir: The run directory.
      keep: How many of the newest checkpoints stay.
    """

    def __init__(self, workdir, keep: int):
        if keep < 1:
            raise InputError(f"checkpoint.keep={keep}: at least 1 is needed to resume.")
        self.directory = Path(workdir).absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_names=("state", "config"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(keep),
                cleanup_tmp_directories=True,  # of a killed save
            ),
        )

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState, config: Mapping) -> None:
        """Saves `state` under its step; a step that is there already is left alone."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                # On the host: the next step donates the device's buffers, and a host
                # state can be restored to any number of devices.
                state=ocp.args.StandardSave(jax.device_get(state)),
                config=ocp.args.JsonSave(config),
            ),
        )

    def restore(self, state: TrainState, config: Mapping) -> TrainState:
        """The newest checkpoint, as a host state shaped like `state`.

        Raises:
          InputError: `config` differs from the checkpoint's in a field that would make
            this another run.
        """
        step = self.latest_step
        saved = self._manager.restore(
            step, args=ocp.args.Composite(config=ocp.args.JsonRestore())
        )["config"]
        check_resumable(saved, config, where=str(self.directory.parent))
        return self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(jax.device_get(state))
            ),
        )["state"]

    def wait(self) -> None:
        """Returns when all saves are on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def check_resumable(saved: Mapping, config: Mapping, *, where: str) -> None:
    """Refuses to go on with a run whose config has become another one's.

    Raises:
      InputError: Names every field that differs, with both values.
    """
    # Through JSON, where a tuple is a list, as in the saved one.
    config = json.loads(json.dumps(config))
    old, new = flatten_dict(saved, sep="."), flatten_dict(config, sep=".")
    changed = [
        f"  {field}: {old.get(field, 'absent')!r} -> {new.get(field, 'absent')!r}"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field) and not field.startswith(FREE_FIELDS)
    ]
    if changed:
        raise InputError(
            f"{where} holds a run with another config:\n" + "\n".join(changed) + "\n"
            "Take these changes back to resume it, or give another --workdir."
        )
