"""How fast images of ImageNet's shape reach the training, and in how much memory.

    python -m benchmarks.input_pipeline --images=10000 --workers=0,1,2
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \\
        python -m benchmarks.input_pipeline --augment=deit --size=224

Makes a folder of synthetic JPEGs where there is none (10,000 take about 0.9 GB), then
reads two epochs of random crops and one pass of centre views without any model. With
--augment it reads nothing, and augments such images on the host's CPU.
"""

import argparse
import contextlib
import functools
import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import timing
from deit_jax.data import batches, sources
from deit_jax.data.augment import recipes
from deit_jax.data.pipeline import HostPipeline
from deit_jax.data.plan import BatchPlan, pairs
from deit_jax.data.student_views import StudentViews

SIDES = (300, 800)  # pixels, of both sides
QUALITY = 90
FIELD = 2048  # pixels a side of the noise that the images are cut from
SAMPLE_SECONDS = 0.2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_folder(
    root: Path, *, images: int, classes: int, sides: tuple[int, int] = SIDES
) -> None:
    """Writes `root/{train,val}/<class>/*.jpg`: one image a class in val.

    Image number n follows from n alone. What is there already stays, so that a
    stopped call is taken up again.
    """
    for number in range(images):
        split = "val" if number < classes else "train"
        path = root / split / f"class-{number % classes:04}" / f"{number:06}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        make_image(number, sides).save(partial, "JPEG", quality=QUALITY)
        partial.rename(path)


def make_image(number: int, sides: tuple[int, int] = SIDES) -> Image.Image:
    """A part of one large field of noise, in its own colours."""
    random = np.random.RandomState(number)
    width, height = random.randint(sides[0], sides[1] + 1, 2).tolist()
    top, left = random.randint(0, FIELD - np.array([height, width]) + 1).tolist()
    part = _field()[top : top + height, left : left + width, random.permutation(3)]
    return Image.fromarray(part ^ random.choice([0, 255], 3).astype(np.uint8))


@functools.cache
def _field() -> np.ndarray:
    """Noise with about the spectrum of photographs: 0.3 bytes a pixel as JPEG."""
    random = np.random.RandomState(0)
    levels = np.full((FIELD, FIELD, 3), 128, np.float32)
    for octave in range(8):
        side = FIELD >> octave
        noise = Image.fromarray(random.randint(0, 256, (side, side, 3), np.uint8))
        noise = noise.resize((FIELD, FIELD), Image.Resampling.BICUBIC)
        levels += (np.asarray(noise, np.float32) - 128) * 0.65 ** (7 - octave)
    return levels.clip(0, 255).astype(np.uint8)


class PeakMemory:
    """Samples the resident memory of this process and its children, in MiB."""

    def __init__(self):
        self.main = self.workers = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join()

    def _sample(self):
        while not self._stopped.wait(SAMPLE_SECONDS):
            children = [child.pid for child in multiprocessing.active_children()]
            self.main = max(self.main, _resident(os.getpid()))
            self.workers = max(self.workers, sum(map(_resident, children)))


def _resident(pid: int) -> float:
    with contextlib.suppress(OSError):  # it has just ended
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return 0.0


def measure(root: Path, *, workers: int, size: int, batch_size: int) -> None:
    """Prints a line for each of two epochs and one for the evaluation split."""
    train, val = (sources.load(f"folder:{root}", split) for split in ("train", "val"))
    plan = BatchPlan(len(train), batch_size, seed=0, augment_seed=0)
    per_epoch = plan.steps_per_epoch

    def report(what: str, read) -> None:
        count, began = 0, time.monotonic()
        with PeakMemory() as memory:
            for batch, *_ in read:
                count += batch["image"].shape[0] * batch["image"].shape[1]
        print(
            f"{workers} workers, {what}: {count / (time.monotonic() - began):6.1f} "
            f"images/s, peak {memory.main:,.0f} MiB in the main process and "
            f"{memory.workers:,.0f} MiB in the workers",
            flush=True,
        )

    with HostPipeline(train, size=size, workers=workers) as pipeline:
        for epoch in range(2):
            start, stop = epoch * per_epoch, (epoch + 1) * per_epoch
            steps = batches.train_batches(
                pipeline, plan, start=start, stop=stop, devices=1
            )
            report(f"epoch {epoch + 1}", ((batch,) for batch in steps))
    with HostPipeline(val, size=size, workers=workers) as pipeline:
        evaluated = batches.eval_batches(pipeline, batch_size=batch_size, devices=1)
        report("evaluation", evaluated)


def measure_augmentation(
    recipe: str, *, size: int, batch_size: int, rounds: int
) -> None:
    """Prints a line for each round of as many images as eight batches have.

    What a core does in a second of its time is also true where others use the machine.
    """
    settings = recipes.resolve(recipe, {}, mean=MEAN, std=STD)
    student = StudentViews(augment_seed=0, repeats=1, size=size, settings=settings)
    images = np.stack([make_image(n, (size, size)) for n in range(batch_size)])
    index = pairs(0, 0, batch_size).reshape(-1)
    student.augment(images, index, np.full_like(index, -1))  # compiles
    for number in range(rounds):
        wall, processor = time.perf_counter(), time.process_time()
        for view in range(8 * number, 8 * number + 8):
            student.augment(images, index, np.full_like(index, view))
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        print(
            f"{recipe}, {size} px: {8 * batch_size / wall:,.0f} images/s on "
            f"{timing.cores()} cores, {8 * batch_size / processor:,.0f} a second of a "
            f"core; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, default=Path("runs/imagenet-like"))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--workers", default="0,1,2", help="numbers of processes")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--augment", help="a recipe of deit_jax/data/augment")
    parser.add_argument("--rounds", type=int, default=5, help="with --augment")
    flags = parser.parse_args()
    if flags.augment:
        measure_augmentation(
            flags.augment,
            size=flags.size,
            batch_size=flags.batch_size,
            rounds=flags.rounds,
        )
        return
    make_folder(flags.directory, images=flags.images, classes=flags.classes)
    for workers in map(int, flags.workers.split(",")):
        measure(
            flags.directory,
            workers=workers,
            size=flags.size,
            batch_size=flags.batch_size,
        )


if __name__ == "__main__":
    main()
