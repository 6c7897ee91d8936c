"""One process that times this project: the train step, or the logits of a batch.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.ours \\
        --variant=deit_tiny_distilled_patch4_32 --batch_size=64

The step is the pmapped one that `deit_jax.train` runs, on one device, fed by the same
batches and the same look-up of teacher logits; images and logits are random. Prints
one JSON object.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import cases, timing
from benchmarks.cases import Case
from deit_jax.data import batches, sources
from deit_jax.distillation.teacher import Answers
from deit_jax.experiment import Experiment, build
from deit_jax.models import cost, variants
from deit_jax.training import step

IMAGES = 512  # of the random data set, or as many as four batches
STEPS = 1_000_000  # more than any measurement takes


def experiment(case: Case, devices, *, images: int = IMAGES) -> Experiment:
    """`build_random` for a case."""
    return build_random(case.config(), case.num_classes, devices, images=images)


def build_random(config, num_classes: int, devices, *, images: int = IMAGES):
    """What `deit_jax.train` builds from a config, of random images and logits.

    Args:
      images: In the data set, at least; with more, whether a step grows with it.
    """
    side = variants.resolve_image_size(config.model.variant)
    rng = np.random.default_rng(0)
    count = max(images, 4 * config.batch_size)
    source = sources.ArraySource(
        name="random",
        split="train",
        images=rng.integers(0, 256, (count, side, side, 3), np.uint8),
        labels=rng.integers(0, num_classes, count, np.int32),
        class_names=tuple(map(str, range(num_classes))),
        fingerprint="",
    )
    logits = rng.normal(0, 3, (count, num_classes)).astype(np.float16)
    teacher = None if config.distillation.kind == "none" else RandomTeacher(logits)
    config.epochs = STEPS * config.batch_size / count
    built = build(config, source, source, devices=devices)
    return dataclasses.replace(built, teacher=teacher)


@dataclasses.dataclass(frozen=True, eq=False)
class RandomTeacher:
    """In place of a `TeacherCache`: logits [N, C] that serve every view."""

    logits: np.ndarray

    num_features = 0

    def batch(self, views: np.ndarray, indices: np.ndarray) -> Answers:
        return Answers(self.logits[indices])


def host_batches(built: Experiment, **changes):
    """The batches of its steps; `changes` of its fields."""
    changed = dataclasses.replace(built, **changes)
    return changed.train_batches(built.train_source, 0, STEPS)


def measure(
    case: Case, *, rounds: int, steps: int, parts: bool, images: int = IMAGES
) -> dict:
    """Times `case` on the first device.

    Args:
      rounds: Times that are taken, after the first call and one round of warm-up.
      steps: In each of them; at least those of one dispatch.
      parts: Whether to time the parts of a train step too.
      images: Of the data set, see `experiment`.

    Returns:
      What is printed: `seconds` of a step in each round, `images_per_sec` of their
      median, and what else there is to know.
    """
    devices = jax.local_devices()[:1]
    limit = matmul_limit(case.dtype, devices[0])
    built = experiment(case, devices, images=images)
    run = training(built) if case.training else _inference(built)
    together = case.steps_per_dispatch if case.training else 1
    timed = functools.partial(
        timing.rounds, wait=jax.block_until_ready, steps=max(1, steps // together)
    )

    began = time.perf_counter()
    result = jax.block_until_ready(run())
    first = time.perf_counter() - began
    timed(run, count=1)
    seconds = [call / together for call in timed(run, count=rounds)]
    median = float(np.median(seconds))
    rate = case.batch_size / median
    flops = cost.forward_flops(built.model) * (3 if case.training else 1)
    return {
        "images_per_sec": rate,
        "seconds": seconds,
        "compile_seconds": first - together * median,
        "peak_memory_bytes": _peak_memory(devices[0]),
        "flops_per_image": flops,
        "matmul_flops_per_sec": limit,
        "utilisation": flops * rate / limit,
        "loss": float(np.ravel(result["loss"])[-1]) if case.training else None,
        "parts": _parts(built, timed, rounds) if parts and case.training else None,
        "device": devices[0].device_kind,
        "threads": timing.cores() if devices[0].platform == "cpu" else None,
        "versions": {"jax": jax.__version__, "flax": flax.__version__},
    }


def matmul_limit(dtype: str, device) -> float:
    """Floating-point operations a second of a large product of square matrices.

    The best of several calls: the limit that model FLOPs are a share of. Products of
    float32 on a GPU are as precise as the model's, which is JAX's default (TF32).
    """
    side = 2048 if device.platform == "cpu" else 8192
    matrix = jax.device_put(jnp.ones((side, side), variants.DTYPES[dtype]), device)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))
    seconds = timing.rounds(
        lambda: product(matrix, matrix), jax.block_until_ready, count=8, steps=1
    )
    return 2 * side**3 / min(seconds)


def training(built: Experiment):
    """A function that trains the steps of a dispatch, and returns their metrics."""
    train_step = built.train_step()
    current = step.replicate(built.initial_state(), built.devices)
    resident = step.place_whole(
        built.resident_arrays(built.train_source.images), built.devices
    )
    # As the train loop has it.
    dispatches = batches.together(
        host_batches(built),
        itertools.repeat(built.cadence.dispatch),
    )
    stream = batches.prefetch(step.on_devices(dispatches, built.devices))

    def run():
        nonlocal current
        current, metrics = train_step(current, next(stream), resident)
        return metrics

    return run


def _inference(built: Experiment):
    """A function that gives the logits of all heads for a batch of uint8 images."""
    eval_step = step.pmap_eval_step(
        built.devices, model=built.model, mean=built.card.mean, std=built.card.std
    )
    params = step.replicate(built.initial_state(), built.devices).params
    images = next(host_batches(built, resident=False))["image"]
    return lambda: eval_step(params, images)


def _parts(built: Experiment, timed, rounds: int) -> dict[str, float]:
    """Seconds of the pieces of a step, each as a program of its own.

    `backward` is the gradient's time less that of the loss alone. Together they are
    not the step: as one program it saves, or loses, between them.
    """
    settings, batch_size = built.settings, built.plan.batch_size
    batch = {
        k: jnp.asarray(v[0])
        for k, v in next(host_batches(built, resident=False)).items()
    }
    prepare = jax.jit(settings["inputs"])
    prepared = jax.block_until_ready(prepare(batch))
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), batch_size)
    current = built.initial_state()

    def mean_loss(params, prepared, keys):
        logits = built.model.apply({"params": params}, prepared.images, drop_keys=keys)
        losses = settings["loss"](logits, prepared.targets, prepared.teacher)
        return losses["loss"].mean()

    forward, gradient = jax.jit(mean_loss), jax.jit(jax.grad(mean_loss))
    grads = gradient(current.params, prepared, keys)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(old, grads):
        updates, opt_state = built.optimizer.update(grads, old.opt_state, old.params)
        params = optax.apply_updates(old.params, updates)
        ema_params = optax.incremental_update(
            params, old.ema_params, 1 - settings["ema_decay"]
        )
        return old.replace(params=params, opt_state=opt_state, ema_params=ema_params)

    def optimize():
        nonlocal current
        current = update(current, grads)
        return current

    host = host_batches(built, teacher=None, resident=False)
    steps = iter(range(STEPS))

    def look_up():
        index, view = built.plan.batch(next(steps))
        return built.teacher.batch(view, index)

    params = jax.tree.map(jnp.copy, current.params)  # the state is donated
    programs = {
        "augmentation": lambda: prepare(batch),
        "forward": lambda: forward(params, prepared, keys),
        "gradient": lambda: gradient(params, prepared, keys),
        "optimizer and EMA": optimize,
        "input": lambda: next(host),
        "teacher look-up": look_up,
    }
    seconds = {}
    for name, program in programs.items():
        jax.block_until_ready(program())
        seconds[name] = float(np.median(timed(program, count=rounds)))
    seconds["backward"] = seconds.pop("gradient") - seconds["forward"]
    return seconds


def _peak_memory(device) -> int:
    if device.platform == "cpu":
        return timing.peak_resident_bytes()
    return device.memory_stats()["peak_bytes_in_use"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cases.add_flags(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="in a round")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--images", type=int, default=IMAGES, help="in the data set")
    flags = parser.parse_args()
    case = cases.from_flags(flags)
    names = ("rounds", "steps", "parts", "images")
    settings = {name: getattr(flags, name) for name in names}
    print(json.dumps(measure(case, **settings)))


if __name__ == "__main__":
    main()
