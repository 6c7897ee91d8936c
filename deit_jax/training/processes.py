"""Several processes that train one model, each with its own devices.

Every process runs the same program on its part of each batch (`jax.distributed`). What
there is only one of, the run directory and the terminal, is the first process's: the
others are given its state when they start, and an `Absent` where it writes.

In a single process nothing is initialised, and everything here gives what it would
give without it.
"""

import collections
import contextlib
import json
import os
import shlex
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from deit_jax.errors import InputError

# After so many seconds without a sign of life a process counts as dead, and JAX ends
# the others. The signs come from a thread of C++, which no long step delays.
HEARTBEAT_SECONDS = 30
# Processes that a launcher has started, by the variables that it sets for each. Of
# Slurm those of the step: in an interactive shell SLURM_NTASKS counts tasks that
# nobody has started.
LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
TPU_HOSTS = "TPU_WORKER_HOSTNAMES"  # separated by commas; set by GKE
# Between the end of the first process, which ends all, and the others' own message.
GRACE_SECONDS = 2
TOLD = b"told\n"
LAST_WORDS = """\
error: this process, one of several of a run, has ended before the run was done: by \
its own failure, by that of another, or because they did not reach each other. The \
first message in time, here or in the logs of the others, says which. Start all of \
them again with the same command: the run goes on from its newest checkpoint."""


@contextlib.contextmanager
def joined(
    *,
    auto: bool | None = None,
    coordinator: str = "",
    num_processes: int = 0,
    process_id: int = -1,
) -> Iterator[None]:
    """Joins the processes of a run, for as long as the context lasts.

    It has to be entered before JAX touches a device. All but the first process print
    nothing on stdout inside. An exception that leaves the context ends the process at
    once, as the others wait for it in vain: `SystemExit` with its code, others with 1.
    The death of another process ends this one too, at once or after about
    `HEARTBEAT_SECONDS`.

    Args:
      auto: Whether JAX finds the others by itself (Slurm, Open MPI, TPU pods); None:
        where `launched` counts several.
      coordinator: host:port of the first process, which all can reach.
      num_processes: How many there are; 0 or 1: this one only.
      process_id: Which of them this is, from 0.

    Raises:
      InputError: The settings do not go together, or the others do not come.
    """
    settings = (coordinator, num_processes, process_id)
    explicit = settings != ("", 0, -1)
    _check(auto, *settings, explicit=explicit)
    if num_processes == 1 or not (explicit or auto or (auto is None and launched())):
        yield
        return
    arguments = {}
    if explicit:
        arguments = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
            "cluster_detection_method": "deactivate",
        }
    child = _last_words()
    try:
        _initialize(arguments)
    except InputError:
        child.communicate(TOLD)
        raise
    try:
        with contextlib.ExitStack() as stack:
            if not is_first():
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            yield
        jax.distributed.shutdown()  # waits for the others
    except BaseException as error:
        # Without a shutdown: it would wait for the others, and they for this one.
        os._exit(_exit_code(error, child))
    child.communicate(TOLD)


def launched() -> int:
    """The processes that a launcher says it has started; 0 where there is none."""
    counts = [int(os.environ.get(name) or 0) for name in LAUNCHERS]
    counts.append(len(os.environ.get(TPU_HOSTS, "").split(",")))
    several = [number for number in counts if number > 1]
    return several[0] if several else 0


def refuse(command: str) -> None:
    """Of a command that works in one process only.

    Raises:
      InputError: A launcher has started several.
    """
    if number := launched():
        raise InputError(
            f"{command} works in one process, and {number} were started: start it "
            "once (with Slurm, srun --ntasks=1)."
        )


def count() -> int:
    return jax.process_count()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def devices() -> list[jax.Device]:
    """Of all processes: those of the first, those of the second, ...

    Raises:
      InputError: They do not have as many each, or do not know of each other.
    """
    if count() > 1 and not jax.distributed.is_initialized():
        raise InputError(
            f"this is one of {count()} processes, which are not joined yet: give all "
            "of them --config.distributed.auto=True"
        )
    found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    numbers = collections.Counter(device.process_index for device in found)
    if len(set(numbers.values())) > 1:
        raise InputError(
            f"the processes have {', '.join(map(str, numbers.values()))} devices: "
            "expected as many in each. JAX_LOCAL_DEVICE_IDS leaves some out."
        )
    return found


def own(devices: Sequence[jax.Device]) -> range:
    """Where this process's devices stand among those of `devices()`."""
    places = [
        place
        for place, device in enumerate(devices)
        if device.process_index == jax.process_index()
    ]
    return range(places[0], places[-1] + 1)


def from_first(tree):
    """The first process's `tree` of arrays, in all of them, as NumPy arrays.

    Args:
      tree: Has the same shapes in every process.
    """
    if count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(tree)


def gather(tree):
    """[...] of every process to [processes, ...], in all of them, as NumPy arrays."""
    return multihost_utils.process_allgather(tree)


def meet() -> None:
    """Returns when all processes have called it."""
    gather(np.zeros(()))


def gather_json(value) -> list:
    """A JSON value of every process, in all of them: that of the first comes first."""
    if count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = gather(np.asarray(len(text)))
    padded = gather(np.pad(text, (0, lengths.max() - len(text))))
    return [
        json.loads(row[:length].tobytes())
        for row, length in zip(padded, lengths, strict=True)
    ]


def check_same(facts: Mapping[str, object]) -> None:
    """Refuses to train one model with processes that have different ideas of it.

    Args:
      facts: By name what must be the same in every process, for JSON.

    Raises:
      InputError: In every process; it names what differs.
    """
    first, *others = gather_json(facts)
    differences = [
        f"  {name}: {first.get(name, 'absent')!r} in process 0, "
        f"{other.get(name, 'absent')!r} in process {number}"
        for number, other in enumerate(others, start=1)
        for name in sorted(first.keys() | other.keys())
        if first.get(name) != other.get(name)
    ]
    if differences:
        raise InputError(
            "the processes do not train the same:\n"
            + "\n".join(differences)
            + "\nStart all of them with the same flags, data and versions; with "
            "--config.distributed.auto=False each trains a model of its own."
        )


def on_first(make: Callable, *args, **kwargs):
    """What `make` gives in the first process; in the others an `Absent`."""
    return make(*args, **kwargs) if is_first() else Absent()


class Absent:
    """In place of what only the first process has: takes any call and does nothing.

    Whatever is asked of it is an `Absent` again, which is false, empty, and a context
    manager. What all processes have to decide alike must not be asked of it.
    """

    def __getattr__(self, _):
        return self

    def __call__(self, *_, **__):
        return self

    def __bool__(self) -> bool:
        return False

    def __iter__(self):
        return iter(())

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass


def _check(auto, coordinator, num_processes, process_id, *, explicit: bool) -> None:
    given = (
        f"distributed.coordinator={coordinator!r}, num_processes={num_processes}, "
        f"process_id={process_id}"
    )
    if auto and explicit:
        raise InputError(
            f"{given}: with distributed.auto these are found. Leave them or it out."
        )
    if not explicit or (num_processes == 1 and process_id in (-1, 0)):
        return
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdigit() and 0 <= process_id < num_processes):
        raise InputError(
            f"{given}: expected all three, the coordinator as HOST:PORT of the first "
            "process, and process_id from 0 to num_processes - 1."
        )


def _initialize(arguments: Mapping) -> None:
    try:
        jax.distributed.initialize(
            **arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except Exception as error:  # each kind of cluster raises its own
        raise InputError(
            f"the processes of the run do not find each other: {error} Give each of "
            "them --config.distributed.coordinator=HOST:PORT (of the first, reachable "
            "from all), .num_processes and .process_id."
        ) from error


def _last_words() -> subprocess.Popen:
    """A child that prints `LAST_WORDS` when this process ends, unless it is told.

    When another process dies, JAX ends this one from C++, where Python has no say and
    a stack trace is all that is printed; a kill leaves nobody to say anything.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", f"read told || echo {shlex.quote(LAST_WORDS)} >&2"],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is not for it
    )


def _exit_code(error: BaseException, child: subprocess.Popen) -> int:
    """Says what has to be said of `error`."""
    code = 1
    if isinstance(error, SystemExit):  # what the user can mend has been printed
        code = error.code if isinstance(error.code, int) else 1
        child.communicate(TOLD)
        if is_first():
            time.sleep(GRACE_SECONDS)
    elif isinstance(error, jax.errors.JaxRuntimeError):
        # Most often what a collective operation says of a process that has died.
        print(textwrap.shorten(str(error), 300, placeholder=" ..."), file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    return code
