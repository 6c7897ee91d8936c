r"""What tests/test_processes.py runs in each of several processes.

python tests/one_process.py NUMBER PORT CACHE WORKDIR \
    [--images=FILE] [--die_at=STEP] [--seed=SEED] [--teacher=DIR]

Without a port (0) the environment says who is who.
"""

import argparse
import signal
from pathlib import Path

import jax
import numpy as np
import small_models
import steps

from deit_jax import command, experiment, train
from deit_jax.data import batches, sources
from deit_jax.training import processes

STEPS = 10


def make_config(cache, teacher=None):
    """`STEPS` steps with masks and mixing, and batches that do not fit the split.

    With a teacher it is live, and sees the images before they are mixed.
    """
    from configs import deit

    config = deit.get_config("digits")
    config.dataset.update(train_split="train[:128]", eval_split="test[:50]")
    config.epochs = STEPS / 4
    config.model.drop_path = 0.1
    config.augment.update(crop_padding=2, erase_probability=0.25)
    config.augment.update(mixup=0.8, cutmix=1.0)
    config.distillation.update(view="plain", mixing="linear", logits_dir=str(cache))
    if teacher:
        config.distillation.update(source="live", view="same", teacher=str(teacher))
        config.distillation.allow_weak_teacher = True
    config.optimizer.update(name="sgd", learning_rate=0.05)
    config.schedule.warmup_epochs = 0.0
    config.log.every_steps = 1
    config.checkpoint.every_steps = 5
    # The last batch has two images.
    config.eval.update(every_epochs=1.0, batch_size=16)
    return config


def train_images(config, steps: int) -> np.ndarray:
    """What the student sees in the first `steps`: float32 [steps, B, H, W, 3]."""
    run = experiment.create(config, devices=processes.devices())
    inputs = run.settings["inputs"]
    mapped = jax.pmap(lambda batch: inputs(batch).images, devices=run.devices)
    stream = batches.train_batches(
        sources.load("digits", config.dataset.train_split),
        run.plan,
        start=0,
        stop=steps,
        devices=len(run.devices),
        local=processes.local(run.devices),
        teacher=run.teacher,
    )
    local = np.stack([np.concatenate(np.asarray(mapped(batch))) for batch in stream])
    return np.concatenate(processes.gather(local), axis=1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("number", type=int)
    parser.add_argument("port", type=int)
    parser.add_argument("cache", type=Path)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--die_at", type=int, default=-1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--on_device", action="store_true")
    parser.add_argument("--teacher", type=Path)
    flags = parser.parse_args()
    config = make_config(flags.cache, flags.teacher)
    if flags.on_device:
        config.dataset.on_device = True
        config.steps_per_dispatch = 2
        config.log.every_steps = 5
    config.seed = flags.seed
    if flags.port:
        first = f"127.0.0.1:{flags.port}"
        config.distributed.update(coordinator=first, num_processes=2)
        config.distributed.process_id = flags.number
    with processes.joined(**config.distributed), command.reported():
        if flags.images:
            np.save(flags.images, train_images(config, 3))
        with (
            steps.stopped_after(flags.die_at, signal.SIGKILL),
            small_models.small_nano(),
        ):
            train.train_and_evaluate(config, flags.workdir)


if __name__ == "__main__":
    main()
