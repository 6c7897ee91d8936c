"""Checkpoints: `<workdir>/checkpoints/<step>/` with state and config (orbax).

A step's folder appears under its name when all of it is on disk. Orbax does not notice
bytes of an array that have changed since; `digests` does.
"""

import json
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from orbax.checkpoint import checkpoint_managers

from deit_jax import files
from deit_jax.errors import InputError
from deit_jax.models.params import abstract_params
from deit_jax.training import digests, processes
from deit_jax.training.state import TrainState

# Fields that may change between two starts: they touch neither the order of the data
# nor, but for how sums are rounded, the parameters. A moved cache is checked by its
# manifest, not by its path.
FREE_FIELDS = (
    "checkpoint.",
    "eval.",
    "log.",
    "dataset.data_dir",
    "dataset.on_device",
    "dataset.workers",
    "distillation.logits_dir",
    "distributed.",
    "model.attention",
    "model.remat",
    "optimizer.max_consecutive_skips",
    "steps_per_dispatch",
)

# The config of a checkpoint of converted weights has this field only.
CONVERTED_FROM = "converted_from"
# What a checkpoint holds beside the optimizer's state, under the names of users.
WEIGHTS = {"raw": "params", "ema": "ema_params"}


def open_checkpoints(workdir: str | os.PathLike, keep: int):
    """`Checkpoints` in the first process, `AbsentCheckpoints` in the others."""
    return Checkpoints(workdir, keep) if processes.is_first() else AbsentCheckpoints()


class AbsentCheckpoints:
    """What processes other than the first have: nothing to restore, nothing to save."""

    latest_step = None

    def save(self, state, config, progress=None):
        pass

    def check(self):
        pass

    def wait(self):
        pass

    def close(self):
        pass


class Checkpoints:
    """The checkpoints of one run directory; saving does not block the training.

    Args:
      workdir: The run directory.
      keep: How many of the newest checkpoints stay.
    """

    def __init__(self, workdir, keep: int):
        self.directory = Path(workdir).absolute() / "checkpoints"
        self.directory.mkdir(parents=True, exist_ok=True)
        _hush_closed_event_loop()  # of a save that fails
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_names=("state", "config", "progress", "digests"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(keep),
                cleanup_tmp_directories=True,  # of a killed save
                # Of several processes the first saves alone, and waits for none.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=0, active_processes={0}
                ),
                create=False,  # as orbax asks for with active_processes
            ),
        )

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(
        self, state: TrainState, config: Mapping, progress: Mapping | None = None
    ) -> None:
        """Saves `state` under its step; a step that is there already is left alone.

        Args:
          config: Of the run.
          progress: What else the run goes on from (`Progress.resume_state`), for JSON.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        # On the host: the next step donates the device's buffers, and a host state can
        # be restored to any number of devices.
        state = jax.device_get(state)
        progress = dict(progress or {})
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                config=ocp.args.JsonSave(config),
                progress=ocp.args.JsonSave(progress),
                digests=ocp.args.JsonSave(
                    digests.of_arrays(state)
                    | {
                        "config": digests.of_json(config),
                        "progress": digests.of_json(progress),
                    }
                ),
            ),
        )

    def restore(self, state: TrainState, config: Mapping) -> tuple[TrainState, dict]:
        """The newest checkpoint that is whole.

        Newer ones, which are damaged, are renamed to `<step>.damaged`, and this is
        said.

        Returns:
          A host state shaped like `state`, and the `progress` saved with it.

        Raises:
          InputError: `config` differs from the checkpoint's in a field that would make
            this another run, or all checkpoints are damaged; they stay as they are.
        """
        state = jax.device_get(state)
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._read(step, state, config)
            except (InputError, MemoryError):
                raise
            except Exception as error:  # tensorstore and orbax raise anything
                damaged[step] = _reason(error)
                continue
            if damaged:
                self._set_aside(damaged, step)
            return restored
        lines = "".join(f"\n  {step}: {why}" for step, why in damaged.items())
        raise InputError(
            f"no checkpoint in {self.directory} can be read:{lines}\nIf this program "
            "is another version than the one that wrote them, take that one. To train "
            f"from the start, delete {self.directory.parent} or give another "
            "--workdir."
        )

    def _read(self, step: int, state: TrainState, config: Mapping):
        folder = self.directory / str(step)
        # Those of older versions have the state and the config only.
        names = [n for n in ("config", "progress", "digests") if (folder / n).exists()]
        read = self._manager.restore(
            step,
            args=ocp.args.Composite(**{n: ocp.args.JsonRestore() for n in names}),
        )
        plain = {n: read[n] for n in ("config", "progress") if n in names}
        found = {name: digests.of_json(value) for name, value in plain.items()}
        if "digests" in names:
            written = read["digests"]
            digests.check({n: written.get(n) for n in ("config", "progress")}, found)
        check_resumable(plain["config"], config, where=str(self.directory.parent))
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(state))
        )["state"]
        if "digests" in names:
            digests.check(written, found | digests.of_arrays(restored))
        return restored, plain.get("progress", {})

    def _set_aside(self, damaged: Mapping[int, str], good: int) -> None:
        for step, why in damaged.items():
            folder = self.directory / str(step)
            aside = folder.with_name(f"{step}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            print(
                f"the checkpoint of step {step} is damaged: {why}\nIt is now {aside}; "
                f"the run goes on from step {good}.",
                flush=True,
            )
        self._manager.reload()

    def check(self) -> None:
        """Raises the error of a save that has failed since the last call."""
        self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when all saves are on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def resumable_step(workdir: str | os.PathLike, config: Mapping) -> int | None:
    """The newest checkpoint's step, None without one; nothing is written or moved.

    Raises:
      InputError: As `Checkpoints.restore`.
    """
    if not steps(workdir):
        return None
    where, others = _find(workdir, None)
    try:
        saved = ocp.JsonCheckpointHandler().restore(where / "config")
    except Exception as error:
        raise _damaged(where, others, error) from error
    check_resumable(saved, config, where=str(workdir))
    return int(where.name)


def check_resumable(saved: Mapping, config: Mapping, *, where: str) -> None:
    """Refuses to go on with a run whose config has become another one's.

    Raises:
      InputError: Names every field that differs, with both values; or `saved` is that
        of converted weights.
    """
    if CONVERTED_FROM in saved:
        raise InputError(
            f"{where} holds converted weights, not a training run. To train from them: "
            f"--config.init_from={where}, and another --workdir."
        )
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
    where, others = _find(workdir, step)
    key = WEIGHTS[weights]
    # Not a manager or a checkpointer: they would tell of all that is not restored.
    reader = ocp.PyTreeCheckpointHandler()
    abstract = abstract_params(model)
    try:
        tree = _metadata(where)
        _check_params(tree[key], abstract, model, str(where))
        # NumPy arrays as targets: nothing is put on a device here.
        target = {key: jax.tree.map(lambda x: np.empty(x.shape, x.dtype), abstract)}
        restored = reader.restore(
            where / "state",
            args=ocp.args.PyTreeRestore(
                target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=True,
            ),
        )
        _check_digests(where, restored)
    except InputError:
        raise
    except Exception as error:  # tensorstore and orbax raise anything
        raise _damaged(where, others, error) from error
    return restored[key], int(where.name)


def weights_in(
    workdir: str | os.PathLike, *, step: int | None = None
) -> tuple[str, ...]:
    """The `WEIGHTS` that a checkpoint holds: `raw`, and `ema` where the run has one.

    Raises:
      InputError: There is no such checkpoint, or it is damaged.
    """
    where, others = _find(workdir, step)
    try:
        tree = _metadata(where)
        return tuple(name for name, key in WEIGHTS.items() if tree[key] is not None)
    except Exception as error:
        raise _damaged(where, others, error) from error


def steps(workdir: str | os.PathLike) -> list[int]:
    """Those of the checkpoints of a run directory, ascending; it may not exist."""
    directory = Path(workdir).absolute() / "checkpoints"
    if not directory.is_dir():
        return []
    # What orbax names so: others, such as a copy of one, are none of a run's.
    return sorted(
        int(path.name)
        for path in directory.iterdir()
        if re.fullmatch(r"0|[1-9][0-9]{0,17}", path.name) and path.is_dir()
    )


def _find(workdir, step: int | None) -> tuple[Path, list[int]]:
    """The folder of a checkpoint, the newest for None, and the steps of the others."""
    directory = Path(workdir).absolute() / "checkpoints"
    if not directory.is_dir():
        raise InputError(
            f"{workdir} has no checkpoint yet: there is no folder {directory}."
        )
    found = steps(workdir)
    if not found or step not in (None, *found):
        raise InputError(
            f"{directory} has no checkpoint"
            + (f" of step {step}" if step is not None else "")
            + f". Steps there: {', '.join(map(str, found)) or 'none'}."
        )
    step = found[-1] if step is None else step
    return directory / str(step), [other for other in found if other != step]


def _check_digests(where: Path, restored: Mapping) -> None:
    """Raises ValueError where some of the state is not what was written."""
    folder = where / "digests"
    if not folder.exists():  # of an older version
        return
    written = files.read_json(folder / "metadata")
    files.check(written, {...: str}, "digests")
    found = digests.of_arrays(restored)
    digests.check({name: written.get(name) for name in found}, found)


def _metadata(where: Path) -> dict:
    """Shape and type of all that a checkpoint holds, as a tree; raises anything."""
    state = where / "state"
    return ocp.PyTreeCheckpointHandler().metadata(state).tree


def _damaged(where: Path, others: list[int], error: Exception) -> InputError:
    more = f"There are others: {', '.join(map(str, others))}" if others else "No other"
    return InputError(f"the checkpoint {where} is damaged: {_reason(error)} {more}.")


def _reason(error: Exception) -> str:
    _hush_closed_event_loop()
    # Tensorstore adds its whole configuration.
    text = str(error).partition(" [tensorstore_spec")[0].strip()
    return textwrap.shorten(text or type(error).__name__, 300, placeholder=" ...")


def _hush_closed_event_loop() -> None:
    """Keeps what orbax gives up after a first error from the terminal.

    They end in tensorstore's threads, where each of them would print that the event
    loop, which is closed by then, is closed.
    """
    previous = sys.unraisablehook
    if getattr(previous, "hushes", False):
        return

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            previous(unraisable)

    hook.hushes = True
    sys.unraisablehook = hook


def _check_params(found, expected, model, where: str) -> None:
    if found is None:
        raise InputError(
            f"{where} has no moving average of the parameters (the run's ema.decay was "
            "0, or they are converted): take the raw ones, --weights=raw."
        )
    found = flatten_dict(found, sep=".")
    for name, array in found.items():
        # Unpacked, one chunk of a file of a few bytes can be of any size.
        if math.prod(array.storage.chunk_shape) > max(math.prod(array.shape), 1):
            raise ValueError(f"{name} has chunks that are larger than itself")
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{name} is {array.dtype}")
    found = {name: tuple(array.shape) for name, array in found.items()}
    expected = {k: tuple(v.shape) for k, v in flatten_dict(expected, sep=".").items()}
    if found == expected:
        return
    lines = [
        f"  {name}: {found.get(name, 'absent')}, expected "
        f"{expected.get(name, 'no such parameter')}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    more = f"\n  ... and {len(lines) - 10} more" if len(lines) > 10 else ""
    raise InputError(
        f"{where} holds the parameters of another model than the one its model.json "
        f"describes ({model.num_classes} classes, {model.image_size} px):\n"
        + "\n".join(lines[:10])
        + more
    )
