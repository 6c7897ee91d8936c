"""Kills runs and exports at random moments, and shows that nothing is lost.

    python -m tests.faults --count=30 --exports=6 --seed=0

A distilled run on digits is trained once undisturbed. Then it is started again and
again, and killed at random moments, often while it writes a checkpoint; between two
starts the newest checkpoint is damaged now and then. A run that has come to its end has
the same bits as the undisturbed one (`same_run`). Exports of a teacher's logits are
killed likewise. It exits with 1 where anything differs; docs/reliability.md has counts.
"""

import argparse
import collections
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from deit_jax.command import STOPPED
from deit_jax.training import checkpoint

# Before what loads TensorFlow: the LLVM of torchvision's Triton, loaded after that of
# TensorFlow, ends the process.
from teacher import classifier
from tests import same_run
from tests.commands import FAST_COMPILATION, ROOT

EPOCH = 90  # steps: 1,440 digits in batches of 16
LOG = 3  # steps between lines of the log
STUDENT = (
    "--config=configs/deit.py:digits",
    "--config.batch_size=16",
    "--config.dataset.eval_split=test[:64]",
    "--config.eval.batch_size=32",
    "--config.schedule.warmup_epochs=0.05",
    "--config.augment.mixup=0.8",
    "--config.augment.cutmix=1.0",
    "--config.distillation.mixing=linear",
    "--config.model.dropout=0.1",
    "--config.model.drop_path=0.1",
    # No multiples of each other, nor of the steps between evaluations, 7.
    "--config.checkpoint.every_steps=4",
    f"--config.log.every_steps={LOG}",
    f"--config.eval.every_epochs={7 / EPOCH}",
)
# How a process may end that got a signal. One that has not begun to train, or gets a
# second signal, dies of it.
ENDS = {
    "SIGKILL": {-signal.SIGKILL},
    "SIGTERM": {STOPPED, -signal.SIGTERM},
    "SIGINT": {STOPPED, -signal.SIGINT, 130},
    "SIGTERM twice": {STOPPED, -signal.SIGTERM},
}
# What the interpreter says when SIGINT comes before it runs any of this project.
BEFORE_PYTHON = "Failed to import the site module"
PATIENCE = 900  # seconds; no start takes so long


class Faults:
    """Starts commands, kills them at moments that `seed` decides, and counts."""

    def __init__(self, directory: Path, seed: int):
        self.random = random.Random(seed)
        self.counts = collections.Counter()
        self.failures = []
        self._log = directory / "log.txt"
        self._env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": FAST_COMPILATION,
            # Starts are many and alike.
            "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    @property
    def kills(self) -> int:
        return sum(self.counts[kind] for kind in ENDS)

    def failed(self, words: str) -> None:
        """Something was not as it should be; said at once, whatever comes after."""
        print(f"FAILED: {words}", flush=True)
        self.failures.append(words)

    def start(self, command: list[str]) -> subprocess.Popen:
        with open(self._log, "w") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=self._env, stdout=log, stderr=subprocess.STDOUT
            )

    def said(self) -> str:
        """What the last start has printed."""
        return self._log.read_text()

    def undisturbed(self, command: list[str], ready: str) -> tuple[float, float]:
        """Seconds until it prints `ready`, and until its end."""
        began, prepared = time.monotonic(), None
        process = self.start(command)
        while process.poll() is None:
            if prepared is None and ready in self.said():
                prepared = time.monotonic() - began
            time.sleep(0.02)
        if process.returncode or prepared is None:
            raise RuntimeError(f"exit code {process.returncode}:\n{self.said()}")
        return prepared, time.monotonic() - began

    def wait_for_line(
        self, process: subprocess.Popen, lines: list[str], pause: float
    ) -> bool:
        """Waits for one of `lines`, or none, and up to `pause` seconds; is it alive?"""
        line = self.random.choice(lines) if self.random.random() < 0.8 else ""
        wait(process, lambda: line in self.said())
        return wait(process, lambda: False, self.random.uniform(0, pause))

    def kill(self, process: subprocess.Popen, moment: str) -> None:
        """Sends a signal, and checks how the process ends; `moment` is counted."""
        kind = self.random.choice(list(ENDS))
        number = getattr(signal, kind.split()[0])
        process.send_signal(number)
        if kind.endswith("twice"):
            time.sleep(self.random.uniform(0, 0.3))
            process.send_signal(number)
        code = process.wait(PATIENCE)
        if code == 0:
            self.counts["too late: done before the signal was looked for"] += 1
        else:
            self.counts[kind] += 1
            self.counts[moment] += 1
            self.counts["saved and stopped (75)"] += code == STOPPED
            if code not in ENDS[kind] and BEFORE_PYTHON not in self.said():
                self.failed(f"{kind}: exit code {code}:\n{self.said()}")


def wait(process: subprocess.Popen, until, seconds: float = PATIENCE) -> bool:
    """Waits for `until()` or so long; whether the process is alive then."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end and not until():
        time.sleep(0.002)
    return process.poll() is None


def trainings(directory: Path, faults: Faults, *, count: int, steps: int) -> None:
    """Runs of `steps` that are killed `count` times in all, each brought to its end."""

    def command(workdir: Path) -> list[str]:
        main = [sys.executable, "-m", "deit_jax.main", *STUDENT]
        epochs = (steps - 0.5) / EPOCH  # rounded up
        return [*main, f"--config.epochs={epochs}", f"--workdir={workdir}"]

    whole, run = directory / "whole", directory / "run"

    def saving() -> bool:
        return any(run.joinpath("checkpoints").glob("*.orbax-checkpoint-tmp*"))

    prepared, total = faults.undisturbed(command(whole), "run directory")
    print(f"an undisturbed run takes {total:.1f} s, {prepared:.1f} s to begin")
    while True:
        done = (checkpoint.steps(run) or [0])[-1]
        if faults.kills < count and faults.random.random() < 0.4:
            damage(run, faults)
        process, alive = faults.start(command(run)), False
        if faults.kills < count:
            if faults.random.random() < 0.4:
                moment = "while a checkpoint was written"
                alive = wait(process, saving)
                time.sleep(faults.random.uniform(0, 0.05))
            else:
                moment = "at any time"
                logged = range(done // LOG * LOG + LOG, steps, LOG)
                lines = [f"step {n}/{steps} " for n in logged]
                alive = faults.wait_for_line(
                    process, ["run directory", *lines], (total - prepared) / steps * LOG
                )
            if alive:
                faults.kill(process, moment)
        code = process.wait(PATIENCE)
        said = faults.said()
        print(f"start from step {done}: exit code {code}, {faults.kills} killed")
        faults.counts["resumed"] += "resumed at step" in said
        faults.counts["damaged checkpoints set aside"] += "is damaged" in said
        if code == 0:
            faults.counts["runs compared"] += 1
            for words in same_run.differences(whole, run):
                faults.failed(f"a run differs: {words}")
            if faults.kills >= count:
                return
            shutil.rmtree(run)
        elif not alive:
            faults.failed(f"exit code {code}:\n{said}")
            return


def damage(run: Path, faults: Faults) -> None:
    """Flips a byte of a file of the newest checkpoint, cuts it short or deletes it."""
    steps = checkpoint.steps(run)
    if len(steps) < 2:  # nothing would be left
        return
    newest = run / "checkpoints" / str(steps[-1])
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    files = [path for path in files if path.stat().st_size]
    if faults.random.random() < 0.5:  # most bytes are in a file or two
        files = [max(files, key=lambda path: path.stat().st_size)]
    path = faults.random.choice(files)
    size = path.stat().st_size
    kind = faults.random.choice(["flipped byte", "truncated file", "missing file"])
    if kind == "flipped byte":
        data = bytearray(path.read_bytes())
        data[faults.random.randrange(size)] ^= 1 << faults.random.randrange(8)
        path.write_bytes(data)
    elif kind == "truncated file":
        os.truncate(path, faults.random.randrange(size))
    else:
        path.unlink()
    faults.counts[kind] += 1


def exports(directory: Path, faults: Faults, *, count: int) -> None:
    """Exports that are killed `count` times in all, each brought to its end."""
    torch.manual_seed(0)
    model = classifier.build("resnet18", 10, image_size=32)
    torch.save(model.state_dict(), directory / "teacher.pt")

    def command(out: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "teacher.export_logits", STUDENT[0]),
            "--config.augment.mixup=0.8",
            f"--teacher={directory / 'teacher.pt'}",
            *("--arch=resnet18", "--image_size=32", "--allow_weak_teacher"),
            *("--views=2", "--batch_size=32", f"--out={out}"),
        ]

    def digests(out: Path) -> dict[str, str]:
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in out.iterdir()
        }

    whole, out = directory / "whole-cache", directory / "cache"
    prepared, total = faults.undisturbed(command(whole), "images/s")
    print(f"an undisturbed export takes {total:.1f} s, {prepared:.1f} s to begin")
    while True:
        process, alive = faults.start(command(out)), False
        if faults.kills < count:
            pause = total - prepared
            alive = faults.wait_for_line(process, ["images/s"], pause)
            if alive:
                faults.kill(process, "at any time")
        code = process.wait(PATIENCE)
        said = faults.said()
        faults.counts["resumed"] += "going on after" in said
        if code == 0:
            faults.counts["caches compared"] += 1
            if digests(whole) != digests(out):
                faults.failed(f"a cache differs: {digests(out)}")
            if faults.kills >= count:
                return
            shutil.rmtree(out)
        elif not alive:
            faults.failed(f"exit code {code}:\n{said}")
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=30, help="kills of trainings")
    parser.add_argument("--exports", type=int, default=0, help="kills of exports")
    parser.add_argument("--steps", type=int, default=40, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    values = parser.parse_args()
    # A shell that starts this in the background lets it, and the runs, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    failures = []
    for part, arguments in (
        (trainings, {"count": values.count, "steps": values.steps}),
        (exports, {"count": values.exports}),
    ):
        if not arguments["count"]:
            continue
        with tempfile.TemporaryDirectory() as directory:
            faults = Faults(Path(directory), values.seed)
            part(Path(directory), faults, **arguments)
        failures += faults.failures
        print(f"{part.__name__}: {faults.kills} killed")
        for name, number in faults.counts.items():
            print(f"  {number:4}  {name}")
    print(f"{len(failures)} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
