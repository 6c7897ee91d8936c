"""A GPU's benchmark in one call of some minutes, without a network.

    python -m benchmarks.gpu --json=gpu.json
    python -m benchmarks.gpu --json=gpu.json --data_dir=$DATA_DIR --minutes=20

Train steps of DeiT-Ti, S and B at 224 px and DeiT-Ti at 32 px in bfloat16, beside timm
with torch.compile under autocast on the same card, each side in a process of its own;
then this project with XLA's attention (`_xla`) and with ten steps a dispatch
(`_dispatch`). With --data_dir, where TFDS has CIFAR-10, 20 epochs of
configs/study.py:vit too. What does not fit into --minutes is named and left out;
--cases asks for it by itself, and for the `_plain` cases without augmentation. On a
machine without a GPU the same runs on its CPU, with --batch_size.
"""

import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import cases, compare

STUDY = "study"  # the run, beside the cases
EPOCHS = 20.0


class Deadline:
    """Says whether `minutes` have room for one more, as long as the longest so far."""

    def __init__(self, minutes: float):
        self._last = time.monotonic() + 60 * minutes
        self._longest = 0.0

    def allows(self) -> bool:
        """Whether to begin another; starts its clock."""
        self._began = time.monotonic()
        return self._began + self._longest <= self._last

    def ended(self) -> None:
        """The seconds of the call that `allows` has begun."""
        self._longest = max(self._longest, time.monotonic() - self._began)


def study_command(data_dir: str, *, epochs: float, workdir: str) -> list[str]:
    """Trains configs/study.py:vit, and evaluates it at the end."""
    return [
        sys.executable,
        "-m",
        "deit_jax.main",
        "--config=configs/study.py:vit",
        f"--config.dataset.data_dir={data_dir}",
        f"--config.epochs={epochs}",
        # As in the study, where it is 5 epochs of 20.
        f"--config.schedule.warmup_epochs={epochs / 4}",
        "--config.model.dtype=bfloat16",
        "--config.steps_per_dispatch=10",
        "--config.eval.every_epochs=0",
        "--config.checkpoint.every_steps=0",
        f"--workdir={workdir}",
    ]


def study(data_dir: str, *, epochs: float) -> dict:
    """What a run of `study_command` took, and how good its model is.

    Raises:
      SystemExit: It failed; says why.
    """
    with tempfile.TemporaryDirectory() as workdir:
        command = study_command(data_dir, epochs=epochs, workdir=workdir)
        began = time.monotonic()
        done = subprocess.run(command, text=True, capture_output=True)
        seconds = time.monotonic() - began
        if done.returncode:
            sys.exit(f"{done.stderr}error: failed: {shlex.join(command)}")
        summary = json.loads((Path(workdir) / "summary.json").read_text())
    return {
        "epochs": epochs,
        "seconds": seconds,  # with the start, the compilation and the evaluation
        "images_per_sec": summary["images_per_sec"],
        "top1": summary["eval"]["class"]["top1"],
        "devices": summary["devices"],
    }


def ratio_beside(found: dict, beside: dict) -> float | None:
    """Ours of one case over what the peer did in another; None where it did not run."""
    if beside["against"] is None:
        return None
    return found["rates"][compare.OURS] / beside["rates"][beside["against"]]


FLAGS = {
    "minutes": {"type": float, "default": 9.0, "help": "for all"},
    "data_dir": {"help": "where TFDS has cifar10"},
    "epochs": {"type": float, "default": EPOCHS, "help": "of that run"},
}


def main(argv=None) -> dict:
    flags = compare.parse_flags(
        __doc__.partition("\n")[0],
        cases.GPU | cases.GPU_WAYS,
        argv,
        modes="compile",
        more=FLAGS,
        pairs=1,
        steps=20,
        parts=False,  # they take some minutes
    )
    deadline = Deadline(flags.minutes)
    result = {"machine": compare.machine(), "cases": {}, "left_out": []}
    with tempfile.TemporaryDirectory() as caches:
        # The run first: it is the shortest where it fits at all.
        for name in ([STUDY] if flags.data_dir else []) + list(flags.cases):
            if not deadline.allows():
                result["left_out"].append(name)
                print(f"{name}: left out, no time", flush=True)
                continue
            if name == STUDY:
                result[STUDY] = study(flags.data_dir, epochs=flags.epochs)
                print(f"configs/study.py:vit: {json.dumps(result[STUDY])}", flush=True)
            else:
                _measure_case(name, flags, caches, result)
            deadline.ended()
            compare.write(flags.json, result)
    compare.write(flags.json, result)
    return result


def _measure_case(name: str, flags, caches: str, result: dict) -> None:
    """Puts a case, and its ratio where there is one, into `result`."""
    way = name in cases.GPU_WAYS
    found = compare.compare_case(name, flags, [] if way else flags.modes, caches)
    result["cases"][name] = found
    ratio, beside = found["ratio"], result["cases"].get(name.rpartition("_")[0])
    if way and beside:
        ratio = ratio_beside(found, beside)
    if ratio:
        result[f"ratio_{name}"] = ratio
        print(f"ours / theirs: {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
