"""Whether two finished runs are the same, bit for bit, but for what is a clock's."""

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator,
)

from deit_jax.training import checkpoint, writers

# What differs between two undisturbed runs too.
CLOCKS = ("seconds", "images_per_sec", "resumed_at_step")
RATE = "train/images_per_sec"


def final_state(run: Path) -> dict:
    """Parameters, optimizer's state and moving average of the newest checkpoint."""
    with ocp.CheckpointManager(run.absolute() / "checkpoints") as manager:
        return manager.restore(
            checkpoint.steps(run)[-1],
            args=ocp.args.Composite(state=ocp.args.StandardRestore()),
        )["state"]


def differences(one: Path, other: Path) -> list[str]:
    """Where the two run directories differ, in words; empty: nowhere."""
    found = []
    states = [final_state(run) for run in (one, other)]
    if jax.tree.structure(states[0]) != jax.tree.structure(states[1]):
        found.append("the states have other parts")
    else:
        leaves = [jax.tree_util.tree_leaves_with_path(state) for state in states]
        for (path, a), (_, b) in zip(*leaves, strict=True):
            a, b = np.asarray(a), np.asarray(b)
            if (a.dtype, a.shape, a.tobytes()) != (b.dtype, b.shape, b.tobytes()):
                found.append(f"state{jax.tree_util.keystr(path)}")
    for name, read in (
        ("metrics.jsonl", _rows),
        ("summary.json", _summary),
        ("TensorBoard", _curves),
    ):
        a, b = read(one), read(other)
        if a != b:
            keys = a.keys() | b.keys()
            where = sorted(str(key) for key in keys if a.get(key) != b.get(key))
            found.append(f"{name}: {', '.join(where)}")
    return found


def _rows(run: Path) -> dict:
    """By their place in the file: a row twice, or missing, moves all later ones."""
    rows = writers.read(run)
    return {n: {k: v for k, v in r.items() if k != RATE} for n, r in enumerate(rows)}


def _summary(run: Path) -> dict:
    summary = json.loads((run / "summary.json").read_text())
    return {k: v for k, v in summary.items() if k not in CLOCKS}


def _curves(run: Path) -> dict:
    """What TensorBoard draws: the steps and values of every tag."""
    events = EventAccumulator(str(run), size_guidance={"tensors": 0}).Reload()
    return {
        tag: [
            (event.step, None if tag == RATE else event.tensor_proto)
            for event in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
    }
