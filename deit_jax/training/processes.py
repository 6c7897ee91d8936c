"""Multi-process training of one model (`jax.distributed`).

Every process runs the same program on its part of each batch, on its local devices.
Only the first one writes the run directory and prints; the others receive its state
when they start.
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
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from deit_jax.errors import InputError

# After so many seconds without a sign of life a process counts as dead, and JAX ends
# the others.
HEARTBEAT_SECONDS = 30
# Processes that a launcher has started. Of Slurm those of the step: in an interactive
# shell SLURM_NTASKS counts tasks that nobody has started.
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
    """Joins the processes of a run; enter it before JAX touches a device.

    Inside, only the first process prints on stdout. An exception that leaves the
    context ends the process at once, since the others would wait for it for ever. When
    another process dies, this one ends too, at once or after `HEARTBEAT_SECONDS`.

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
    if explicit:
        _check(*settings)
    if num_processes == 1 or not (explicit or auto or (auto is None and launched())):
        yield
        return
    child = _last_words()
    try:
        _initialize(*settings if explicit else ())
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
    return next((number for number in counts if number > 1), 0)


def refuse(command: str) -> None:
    """Refuses several processes for a command that works in one only."""
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


def nothing(*args, **kwargs) -> None:
    """A method of what only the first process has, in the others."""


def devices() -> list[jax.Device]:
    """The devices of all processes, as many in each, in the order of the processes."""
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


def local(devices: Sequence[jax.Device]) -> range:
    """The places of this process's devices among those of `devices()`."""
    ours = [device.process_index == jax.process_index() for device in devices]
    return range(ours.index(True), ours.index(True) + sum(ours))


def broadcast(tree):
    """The first process's `tree`, in every process; their shapes are the same."""
    return tree if count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def gather(tree):
    """Stacks [...] of every process to [processes, ...], as NumPy arrays in each."""
    return multihost_utils.process_allgather(tree)


def broadcast_json(value):
    """The first process's JSON value, in every process."""
    return gather_json(value)[0]


def gather_json(value) -> list:
    """The JSON values of all processes in their order, in every process."""
    if count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = gather(np.asarray(len(text))).max()
    padded = np.pad(text, (0, longest - len(text)), constant_values=ord(" "))
    return [json.loads(row.tobytes()) for row in gather(padded)]


def check_same(facts: Mapping[str, object]) -> None:
    """Refuses, in all of them, processes whose `facts`, for JSON, differ."""
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


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    several = host and port.isdigit() and 0 <= process_id < num_processes
    if not (several or (num_processes == 1 and process_id in (-1, 0))):
        raise InputError(
            f"distributed.coordinator={coordinator!r}, num_processes={num_processes}, "
            f"process_id={process_id}: expected all three, the coordinator as "
            "HOST:PORT of the first process, and process_id from 0 to num_processes - "
            "1; or none of them."
        )


def _initialize(*settings) -> None:
    try:
        jax.distributed.initialize(
            *settings,
            cluster_detection_method="deactivate" if settings else None,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:  # each kind of cluster raises its own
        raise InputError(
            f"the processes of the run do not find each other: {error} Give each of "
            "them --config.distributed.coordinator=HOST:PORT (of the first, reachable "
            "from all), .num_processes and .process_id."
        ) from error


def _last_words() -> subprocess.Popen:
    """Starts a child that prints `LAST_WORDS` when this process ends, unless told.

    When another process dies, JAX ends this one from C++ with a stack trace only.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", f"read told || echo {shlex.quote(LAST_WORDS)} >&2"],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is not for it
    )


def _exit_code(error: BaseException, child: subprocess.Popen) -> int:
    """Prints `error`, and returns the exit code for it."""
    code = 1
    if isinstance(error, SystemExit):  # a message has been printed
        code = error.code
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
