"""A GPU's benchmark in one call of some minutes, without a network.

    python -m benchmarks.gpu --json=gpu.json
    python -m benchmarks.gpu --json=gpu.json --data_dir=$DATA_DIR --minutes=20

Train steps of DeiT-Ti, S and B at 224 px and DeiT-Ti at 32 px in bfloat16, beside timm
with torch.compile under autocast on the same card, each side in a process of its own;
then this project with cuDNN's attention (`_cudnn`) and with ten steps a dispatch
(`_dispatch`). With --data_dir, where TFDS has CIFAR-10, 20 epochs of
configs/study.py:vit too. What does not fit into --minutes is named and left out;
--cases asks for it by itself, and for the `_plain` cases without augmentation. On a
machine without a GPU the same runs on its CPU, with --batch_size, but for `_cudnn`.
"""

import argparse
import dataclasses
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
    """Says whether there is time for one more, as long as the longest so far.

    Args:
      minutes: From now.
    """

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


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    table = cases.GPU | cases.GPU_WAYS
    parser.add_argument(
        "--cases",
        default=",".join(name for name in table if not name.endswith("_plain")),
        help=f"of {', '.join(table)}; empty for none",
    )
    parser.add_argument("--batch_size", type=int, help="of every case")
    parser.add_argument("--modes", default="compile", help="of timm, in commas")
    parser.add_argument("--pairs", type=int, default=1, help="runs of each side")
    parser.add_argument("--rounds", type=int, default=5, help="timed, in each run")
    parser.add_argument("--steps", type=int, default=20, help="in a round")
    parser.add_argument("--parts", action="store_true", help="of a step; some minutes")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all")
    parser.add_argument("--data_dir", help="where TFDS has cifar10")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="of that run")
    parser.add_argument("--json", type=Path, help="where the figures go")
    flags = parser.parse_args(argv)
    names = compare.chosen(parser, "--cases", flags.cases, table)
    modes = compare.chosen(parser, "--modes", flags.modes, compare.MODES)

    deadline = Deadline(flags.minutes)
    result = {"machine": compare.machine(), "cases": {}, "left_out": []}
    with tempfile.TemporaryDirectory() as caches:

        def run(side, case, parts):
            return compare.child(
                side,
                case,
                peer="timm",
                caches=caches,
                rounds=flags.rounds,
                steps=flags.steps,
                parts=parts and flags.parts,
            )

        # The run first: it is the shortest where it fits at all.
        for name in ([STUDY] if flags.data_dir else []) + names:
            if not deadline.allows():
                result["left_out"].append(name)
                print(f"{name}: left out, no time", flush=True)
                continue
            if name == STUDY:
                result[STUDY] = study(flags.data_dir, epochs=flags.epochs)
                print(f"configs/study.py:vit: {json.dumps(result[STUDY])}", flush=True)
            else:
                case, way = table[name], name in cases.GPU_WAYS
                if flags.batch_size:
                    case = dataclasses.replace(case, batch_size=flags.batch_size)
                found = compare.compare(
                    case, [] if way else modes, pairs=flags.pairs, run=run
                )
                result["cases"][name] = found
                print("\n" + compare.show(name, found), flush=True)
                ratio = found["ratio"]
                beside = result["cases"].get(name.rpartition("_")[0])
                if way and beside:
                    ratio = ratio_beside(found, beside)
                if ratio:
                    result[f"ratio_{name}"] = ratio
                    print(f"ours / theirs: {ratio:.3f}", flush=True)
            deadline.ended()
            if flags.json:  # after each: a stopped call has measured something
                flags.json.write_text(json.dumps(result, indent=1) + "\n")
    if flags.json:
        flags.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
