"""Checkpoints: `<workdir>/checkpoints/<step>/` with state and config (orbax).

A step's folder appears under its name when all of it is on disk. Orbax does not notice
bytes of an array that have changed since; `digests` does.
"""

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from orbax.checkpoint import checkpoint_managers

from deit_jax import files
from deit_jax.errors import InputError
from deit_jax.training import data_identity, digests, processes
from deit_jax.training.run_directory import ADDED_FIELDS
from deit_jax.training.state import TrainState

# Fields that may change between two starts: they touch neither the order of the data
# nor, but for how sums are rounded, the parameters.
FREE_FIELDS = (
    "augment.place",
    "checkpoint.",
    "eval.",
    "log.",
    "dataset.data_dir",
    "dataset.eval_crop_ratio",
    "dataset.on_device",
    "dataset.workers",
    "distillation.allow_weak_teacher",
    "distillation.logits_dir",
    "distillation.verify_every",
    "distributed.",
    "model.attention",
    "model.remat",
    "optimizer.max_consecutive_skips",
    "steps_per_dispatch",
)
# What a checkpoint holds as JSON, beside its digests.
PLAIN = ("config", "data", "progress")
# The config of a checkpoint of converted weights has this field only.
CONVERTED_FROM = "converted_from"


def open_checkpoints(workdir: str | os.PathLike, keep: int):
    """`Checkpoints` in the first process, `AbsentCheckpoints` in the others."""
    return Checkpoints(workdir, keep) if processes.is_first() else AbsentCheckpoints()


class AbsentCheckpoints:
    """What processes other than the first have: nothing to restore, nothing to save."""

    latest_step = None
    save = check = wait = close = processes.nothing


class Checkpoints:
    """The newest `keep` checkpoints of a run directory; saving does not block."""

    def __init__(self, workdir, keep: int):
        self.directory = Path(workdir).absolute() / "checkpoints"
        self.directory.mkdir(parents=True, exist_ok=True)
        _hush_closed_event_loop()  # of a save that fails
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_names=("state", *PLAIN, "digests"),
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
        self,
        state: TrainState,
        config: Mapping,
        *,
        data: Mapping | None = None,
        progress: Mapping | None = None,
    ) -> None:
        """Saves `state` under its step; a step that is there already is left alone.

        `data` is that of `data_identity.describe`, `progress` `Progress.resume_state`.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        # On the host: the next step donates the device's buffers.
        state = jax.device_get(state)
        plain = {"config": config, "data": data or {}, "progress": progress or {}}
        sums = {name: digests.of_json(value) for name, value in plain.items()}
        plain["digests"] = digests.of_arrays(state) | sums
        items = {name: ocp.args.JsonSave(value) for name, value in plain.items()}
        items["state"] = ocp.args.StandardSave(state)
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(
        self, state: TrainState, config: Mapping, data: Mapping | None = None
    ) -> tuple[TrainState, dict]:
        """Restores the newest checkpoint that is whole.

        Newer ones, which are damaged, are renamed to `<step>.damaged`, with a message.

        Returns:
          A host state shaped like `state`, and the `progress` saved with it.

        Raises:
          InputError: The config or the data are those of another run, or all
            checkpoints are damaged; they stay as they are.
        """
        state = jax.device_get(state)
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._read(step, state, config, data)
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
            f"no checkpoint in {self.directory} can be read:{lines}\nTake the version "
            "of this program that wrote them. To train from the start, delete "
            f"{self.directory.parent} or give another --workdir."
        )

    def _read(self, step: int, state: TrainState, config: Mapping, data):
        plain = read_plain(self.directory / str(step))
        where = str(self.directory.parent)
        check_resumable(plain["config"], config, plain["data"], data, where=where)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(state))
        )["state"]
        digests.check(plain["digests"], digests.of_arrays(restored))
        return restored, plain["progress"]

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


def read_plain(folder: Path) -> dict:
    """`PLAIN`, compared with their digests, and those of arrays; raises anything."""
    plain = {
        name: files.read_json(folder / name / "metadata")
        for name in (*PLAIN, "digests")
    }
    files.check(plain["digests"], {...: str}, "digests")
    sums = {name: digests.of_json(plain[name]) for name in PLAIN}
    digests.check({name: plain["digests"].pop(name, None) for name in PLAIN}, sums)
    return plain


def resumable_step(
    workdir: str | os.PathLike, config: Mapping, data: Mapping | None = None
) -> int | None:
    """The newest checkpoint's step, None without one; refuses as a restore would."""
    if not steps(workdir):
        return None
    where = find(workdir, None)
    try:
        plain = read_plain(where)
    except Exception as error:
        raise damaged_error(where, error) from error
    check_resumable(plain["config"], config, plain["data"], data, where=str(workdir))
    return int(where.name)


def check_resumable(
    saved: Mapping,
    config: Mapping,
    saved_data: Mapping | None = None,
    data: Mapping | None = None,
    *,
    where: str,
) -> None:
    """Refuses, in words, to resume a run with another config or on other data."""
    if CONVERTED_FROM in saved:
        raise InputError(
            f"{where} holds converted weights, not a training run. To train from them: "
            f"--config.init_from={where}, and another --workdir."
        )
    # Through JSON, where a tuple is a list, as in the saved one.
    config = json.loads(json.dumps(config))
    old, new = (ADDED_FIELDS | flatten_dict(c, sep=".") for c in (saved, config))
    free = FREE_FIELDS
    if saved_data and data:
        for note in data_identity.check(saved_data, data, where=where):
            print(note, flush=True)
        free += data_identity.PLACES
    changed = [
        f"  {field}: {old.get(field, 'absent')!r} -> {new.get(field, 'absent')!r}"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field) and not field.startswith(free)
    ]
    if changed:
        raise InputError(
            f"{where} holds a run with another config:\n" + "\n".join(changed) + "\n"
            "Revert these changes to resume it, or give another --workdir."
        )


def steps(workdir: str | os.PathLike) -> list[int]:
    """The steps of a run directory's checkpoints, ascending; it may not exist."""
    # What orbax names so: others, such as a copy of one, are none of a run's.
    return sorted(
        int(path.name)
        for path in Path(workdir).absolute().glob("checkpoints/*/")
        if re.fullmatch(r"0|[1-9][0-9]{0,17}", path.name)
    )


def find(workdir, step: int | None) -> Path:
    """The folder of a checkpoint, of the newest for None."""
    directory, found = Path(workdir).absolute() / "checkpoints", steps(workdir)
    if not found or step not in (None, *found):
        which = f"of step {step}" if found else "yet"
        raise InputError(
            f"{directory} has no checkpoint {which}. Steps there: "
            f"{', '.join(map(str, found)) or 'none'}."
        )
    return directory / str(found[-1] if step is None else step)


def damaged_error(where: Path, error: Exception) -> InputError:
    others = [str(n) for n in steps(where.parent.parent) if n != int(where.name)]
    more = f"There are others: {', '.join(others)}" if others else "No other"
    return InputError(f"the checkpoint {where} is damaged: {_reason(error)} {more}.")


def _reason(error: Exception) -> str:
    _hush_closed_event_loop()
    # Tensorstore adds its whole configuration.
    text = str(error).partition(" [tensorstore_spec")[0].strip()
    return textwrap.shorten(text or type(error).__name__, 300, placeholder=" ...")


def _hush_closed_event_loop() -> None:
    """Hides that orbax's abandoned reads find the event loop closed after an error."""
    previous = sys.unraisablehook
    if getattr(previous, "hushes", False):
        return

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            previous(unraisable)

    hook.hushes = True
    sys.unraisablehook = hook
