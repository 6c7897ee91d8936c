"""What a teacher costs a student: none at all, its cache, or itself in each step.

    python -m benchmarks.live_teacher --variant=deit_tiny_distilled_patch4_32
    python -m benchmarks.live_teacher --targets=h100,v5e --dtype=bfloat16

The three are timed in turns, on the first device. With --targets their train steps are
compiled for machines that are not there (see benchmarks.programs): FLOPs, bytes moved,
and the least time that follows from both by the data sheet. Images, cached logits and
the teacher's weights are random.
"""

import argparse
import dataclasses

import jax
import numpy as np

from benchmarks import cases, ours, programs, timing
from benchmarks.cases import Case
from configs import vit
from deit_jax import targets, teaching
from deit_jax.distillation.live_teacher import LiveTeacher
from deit_jax.distillation.teacher import Teacher
from deit_jax.experiment import Experiment
from deit_jax.models import convnets, cost
from deit_jax.models.params import abstract_params

WAYS = ("without", "cached", "live")


def random_teacher(arch: str, size: int, num_classes: int, dtype: str) -> LiveTeacher:
    """A network of `convnets` that sees `size` pixels."""
    module = convnets.create(arch, num_classes=num_classes, dtype=dtype)
    rng = np.random.default_rng(0)

    def draw(leaf) -> np.ndarray:
        if len(leaf.shape) == 1:  # a bias
            return np.zeros(leaf.shape, np.float32)
        noise = rng.standard_normal(leaf.shape, np.float32)
        return noise / np.sqrt(np.prod(leaf.shape[:-1]), dtype=np.float32)

    member = Teacher(
        spec="random",
        module=module,
        params=jax.tree.map(draw, abstract_params(module, size)),
        arch=arch,
        stem="standard",
        image_size=size,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        crop_ratio=1.0,
        num_classes=num_classes,
        class_names=None,
        sha256="",
        dtype=dtype,
    )
    return LiveTeacher((member,), tau=3.0)


def build(way: str, case: Case, live: LiveTeacher, devices) -> Experiment:
    """The experiment of one of `WAYS`."""
    config = case.config()
    if way == "without":
        config = vit.without_teacher(config)
    built = ours.build_random(config, case.num_classes, devices)
    return teaching.with_teachers(built, None, live) if way == "live" else built


def measure(case: Case, live: LiveTeacher, *, rounds: int, steps: int) -> dict:
    """Images a second of each way: the median of rounds that take turns."""
    devices = jax.local_devices()[:1]
    runs = {way: ours.training(build(way, case, live, devices)) for way in WAYS}
    seconds = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way, run in runs.items():
            found = timing.rounds(run, wait=jax.block_until_ready, count=1, steps=steps)
            seconds[way] += found if number else []  # the first compiles
    return {way: case.batch_size / np.median(found) for way, found in seconds.items()}


def compiled(way: str, case: Case, live: LiveTeacher, target: str) -> str:
    """What the step of a way comes to on a machine that is not there, as a row."""
    name, chips = targets.parse(target)
    devices = targets.devices(name, chips)
    built = build(way, case, live, devices)
    batch = programs.shapes(next(ours.host_batches(built, resident=False)))
    state = jax.eval_shape(built.initial_state)
    held = programs.shapes({"teacher": live.params} if way == "live" else {})
    program = targets.compile_program(built.train_step().lower(state, batch, held))
    flops = 3 * cost.forward_flops(built.model) * case.batch_size
    if way == "live":
        flops += teaching.flops(live, built.student.size) * case.batch_size
    seconds = program.roofline(targets.TARGETS[name], flops)
    return (
        f"{target:<7}{way:<9}{flops / 1e12:7.2f} TFLOP{program.bytes / 1e9:8.1f} GB"
        f"{program.memory / 1e9:7.2f} GB kept{1e3 * seconds:9.1f} ms at least"
        f"{case.batch_size / seconds:11,.0f} images/s at most"
    )


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cases.add_flags(parser)
    parser.add_argument("--arch", choices=convnets.ARCHITECTURES, default="resnet50")
    parser.add_argument("--teacher_size", type=int, default=64, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="in a round")
    parser.add_argument(
        "--targets",
        type=cases.target_names,
        default=[],
        help="h100, v5e, ... in place of a timing",
    )
    flags = parser.parse_args(argv)
    case = dataclasses.replace(cases.from_flags(flags), training=True)
    live = random_teacher(flags.arch, flags.teacher_size, case.num_classes, case.dtype)
    print(
        f"{case.variant}, batch {case.batch_size}, {case.dtype}; {flags.arch} at "
        f"{flags.teacher_size} px; jax {jax.__version__}",
        flush=True,
    )
    for target in flags.targets:
        for way in WAYS:
            print(compiled(way, case, live, target), flush=True)
    if not flags.targets:
        rates = measure(case, live, rounds=flags.rounds, steps=flags.steps)
        for way, rate in rates.items():
            print(f"{way:<9}{rate:9,.1f} images/s")


if __name__ == "__main__":
    main()
