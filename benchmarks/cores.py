"""Commands side by side, each on a core of its own."""

import concurrent.futures
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path


class Cores:
    """Runs commands of this project, as many at once as there are cores.

    As fast as one after the other on all of them, and the rounding of a run does not
    depend on how many cores there are.

    Args:
      count: Commands at the same time.
      gpu: Leave the device to JAX and torch, and do not bind to cores.
    """

    def __init__(self, count: int, *, gpu: bool = False):
        self._free = list(range(count))
        self._pool = concurrent.futures.ThreadPoolExecutor(count)
        self._gpu = gpu
        self._failed = threading.Event()
        self._environment = dict(os.environ)
        if not gpu:
            self._environment |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}

    def output(self, command: list[str]) -> str:
        """What one command prints, run on the first core while the others rest.

        Raises:
          SystemExit: It failed; says why.
        """
        done = subprocess.run(
            [*self._bound(0), *command],
            text=True,
            capture_output=True,
            env=self._environment,
        )
        if done.returncode:
            sys.exit(f"{done.stderr}error: failed: {shlex.join(command)}")
        return done.stdout

    def run(self, jobs: dict[str, list[str]], logs: Path) -> None:
        """Each of {name: command}; what it prints goes to `logs/<name>.log`.

        Raises:
          SystemExit: A command failed; says which, and where it said why.
        """
        waiting = {
            self._pool.submit(self._run, name, command, logs): name
            for name, command in jobs.items()
        }
        for done in concurrent.futures.as_completed(waiting):
            if done.exception() is not None:
                name = waiting[done]
                sys.exit(
                    f"error: failed: {shlex.join(jobs[name])}\n"
                    f"See {logs / name}.log ({done.exception()})."
                )

    def _run(self, name: str, command: list[str], logs: Path) -> None:
        if self._failed.is_set():
            return
        core = self._free.pop()
        try:
            with open(logs / f"{name}.log", "w") as log:
                log.write(shlex.join(command) + "\n")
                log.flush()
                subprocess.run(
                    [*self._bound(core), *command],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    check=True,
                )
        except BaseException:
            self._failed.set()  # nothing else begins
            raise
        finally:
            self._free.append(core)
        print(f"done: {name}", flush=True)

    def _bound(self, core: int) -> list[str]:
        return [] if self._gpu else ["taskset", "-c", str(core)]
