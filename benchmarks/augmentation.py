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

from deit_jax.data import plan
from deit_jax.data.augment import augment_batch, recipes
from deit_jax.distillation import losses
from deit_jax.models import variants
from deit_jax.training import optimizer, state, step

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 10
# (variant, images a step, recipe): the two settings of the project's bar.
CASES = (
    ("deit_tiny_patch4_32", 64, "seed_study"),
    ("deit_tiny_patch16_224", 16, "deit"),
)


def measure(variant: str, batch_size: int, recipe: str, rounds: int) -> dict:
    """Seconds (median, least, most) of the augmentation, and of steps with and without.

    Each round looks at other images, as the draws decide what is computed.
    """
    model = variants.create(variant, num_classes=CLASSES)
    tx = optimizer.create("adamw", 1e-3, weight_decay=0.05)
    size = model.image_size
    pixels = np.random.default_rng(0).integers(
        0, 256, (batch_size, size, size, 3), np.uint8
    )
    order = plan.pairs(0, 0, batch_size).reshape(-1)

    def batch_of(number: int) -> dict:
        return {
            "image": pixels,
            "label": order % CLASSES,
            "index": order,
            "view": np.full_like(order, number),
        }

    def settings(name: str):
        return recipes.resolve(name, {}, mean=MEAN, std=STD)

    def train_step(name: str):
        inputs = functools.partial(
            step.inputs,
            num_classes=CLASSES,
            label_smoothing=0.1,
            augment_seed=0,
            augmentation=settings(name),
        )
        loss = functools.partial(
            losses.training_loss,
            kind="none",
            head="class",
            alpha=0.0,
            tau=1.0,
            reduction="batchmean",
        )
        mapped = step.pmap_train_step(
            jax.local_devices()[:1],
            model=model,
            optimizer=tx,
            inputs=inputs,
            loss=loss,
            seed=0,
            ema_decay=0.9999,
        )
        current = state.create(model, tx, seed=0, ema=True)
        current = step.replicate(current, jax.local_devices()[:1])

        def run(number: int):
            nonlocal current
            batch = {k: v[None] for k, v in batch_of(number).items()}
            current, metrics = mapped(current, batch, None)
            return metrics

        return run

    alone = jax.jit(
        functools.partial(augment_batch, augment_seed=0, settings=settings(recipe))
    )

    def augmentation(number: int):
        batch = batch_of(number)
        return alone(batch["image"], batch["index"], batch["view"])

    timed = {
        "augmentation": augmentation,
        "step with": train_step(recipe),
        "step without": train_step("none"),
    }
    seconds = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name, function in timed.items():
            began = time.perf_counter()
            jax.block_until_ready(function(number))
            if number:  # the first compiles
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path, help="where the figures go")
    flags = parser.parse_args()
    device = jax.local_devices()[0].device_kind
    print(f"jax {jax.__version__}, {device}")
    results = []
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
        results.append(
            {
                "variant": variant,
                "batch_size": batch_size,
                "recipe": recipe,
                "share": share,
                "seconds": seconds,
            }
        )
    if flags.json:
        content = {"jax": jax.__version__, "device": device, "results": results}
        flags.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
