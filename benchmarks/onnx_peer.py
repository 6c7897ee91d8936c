"""One process that times ONNX Runtime on the file that `deit_jax.export` makes.

    python -m benchmarks.onnx_peer --no-training --variant=deit_tiny_distilled_patch4_32

The logits of both heads, their mean and its probabilities, of random parameters. Prints
one JSON object, as `benchmarks.ours`.
"""

import argparse
import json
import time

import jax
import numpy as np
import onnxruntime

from benchmarks import cases, ours, timing
from benchmarks.cases import Case
from deit_jax import export
from deit_jax.trained_model import TrainedModel


def session(case: Case) -> onnxruntime.InferenceSession:
    """The exported model of a case, on the processor's cores."""
    built = ours.experiment(case, jax.local_devices()[:1])
    params = built.initial_state().params
    trained = TrainedModel(built.card, params, step=0, weights="raw")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = timing.cores()
    return onnxruntime.InferenceSession(
        export.onnx(trained), options, providers=["CPUExecutionProvider"]
    )


def measure(case: Case, *, rounds: int, steps: int) -> dict:
    """Times `case`; arguments and result as in `benchmarks.ours.measure`."""
    running = session(case)
    side = running.get_inputs()[0].shape[1]
    images = np.random.default_rng(0).integers(
        0, 256, (case.batch_size, side, side, 3), np.uint8
    )

    def run():
        return running.run(None, {export.INPUT: images})

    began = time.perf_counter()
    run()
    first = time.perf_counter() - began
    timing.rounds(run, lambda _: None, count=1, steps=steps)
    seconds = timing.rounds(run, lambda _: None, count=rounds, steps=steps)
    median = float(np.median(seconds))
    return {
        "images_per_sec": case.batch_size / median,
        "seconds": seconds,
        "compile_seconds": first - median,
        "peak_memory_bytes": timing.peak_resident_bytes(),
        "loss": None,
        "parts": None,
        "device": "cpu",
        "threads": timing.cores(),
        "versions": {"onnxruntime": onnxruntime.__version__},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cases.add_flags(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="in a round")
    flags = parser.parse_args()
    case = cases.from_flags(flags)
    print(json.dumps(measure(case, rounds=flags.rounds, steps=flags.steps)))


if __name__ == "__main__":
    main()
