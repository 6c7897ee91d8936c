"""What the augmentation costs beside the train step it is a part of.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.augmentation

Times whole train steps of DeiT-Ti with a recipe and without any augmentation, in turns,
and the augmentation of one batch by itself. The share is that of the augmentation in
the step that has it.
"""

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import ours
from configs import vit
from deit_jax.data.augment import augment_batch

CLASSES = 10
# (variant, images a step, recipe): the two settings of the project's bar.
CASES = (
    ("deit_tiny_patch4_32", 64, "seed_study"),
    ("deit_tiny_patch16_224", 16, "deit"),
)


def measure(variant: str, batch_size: int, recipe: str, rounds: int) -> dict:
    """Seconds of each round of the augmentation, and of steps with and without.

    Each round looks at other images, as the draws decide what is computed.
    """
    config = vit.get_config("cifar10")
    config.model.variant, config.batch_size = variant, batch_size
    timed = {}
    for name, chosen in (("step without", "none"), ("step with", recipe)):
        config.augment.recipe = chosen
        built = ours.build_random(config, CLASSES, jax.local_devices()[:1])
        timed[name] = ours.training(built)
    alone = jax.jit(
        functools.partial(
            augment_batch,
            augment_seed=built.student.augment_seed,
            settings=built.student.settings,
        )
    )
    stream = ours.host_batches(built)

    def augmentation():
        batch = next(stream)
        return alone(*(batch[name][0] for name in ("image", "index", "view")))

    timed["augmentation"] = augmentation
    seconds = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name, function in timed.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            if number:  # the first compiles
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path, help="where the figures go")
    flags = parser.parse_args()
    result = {"jax": jax.__version__, "device": jax.local_devices()[0].device_kind}
    print("jax {jax}, {device}".format(**result))
    result["results"] = []
    for variant, batch_size, recipe in CASES:
        seconds = measure(variant, batch_size, recipe, flags.rounds)
        medians = {name: float(np.median(values)) for name, values in seconds.items()}
        share = medians["augmentation"] / medians["step with"]
        print(
            f"{variant}, batch {batch_size}, {recipe}: augmentation "
            f"{100 * share:.1f} % of the step"
        )
        for name, values in seconds.items():
            print(
                f"  {name:<13} {1e3 * medians[name]:8.1f} ms a batch "
                f"({1e3 * min(values):.1f} .. {1e3 * max(values):.1f})",
                flush=True,
            )
        case = {"variant": variant, "batch_size": batch_size, "recipe": recipe}
        result["results"].append(case | {"share": share, "seconds": seconds})
    if flags.json:
        flags.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
