"""One process that times timm on torch with the model, batch and loss of `ours`.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.timm_peer \\
        --variant=deit_tiny_distilled_patch4_32 --batch_size=64 --mode=compile

The step is what timm's train.py does with a batch: normalisation, random erasing and
MixUp or CutMix of the batch, both heads under autocast where the precision asks for it,
cross-entropy and soft distillation from given logits, clipping, AdamW and ModelEmaV3.
Crops, flips and RandAugment happen in the loader's workers there and are left out,
which favours timm: here they are in the step. Prints one JSON object.
"""

import argparse
import json
import time

import numpy as np
import timm
import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch.nn import functional as F

from benchmarks import cases, compare, timing
from benchmarks.cases import Case
from deit_jax.data.augment import recipes
from deit_jax.models.variants import VARIANTS


def create_model(case: Case, *, drop_path: float = 0.0) -> torch.nn.Module:
    """timm's model of a distilled variant, giving both heads in training.

    timm has no distilled DeiT III whose positions are those of the patches alone.
    """
    shape = VARIANTS[case.variant]
    # Its tiny, small and base models differ in these numbers only.
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        img_size=shape["image_size"],
        patch_size=shape["patch_size"],
        embed_dim=shape["width"],
        depth=shape["depth"],
        num_heads=shape["num_heads"],
        init_values=shape["init_values"],
        num_classes=case.num_classes,
        drop_path_rate=drop_path,
    )
    model.set_distilled_training(True)
    return model


class Loss(torch.nn.Module):
    """The mean loss of a batch, in one module so that it compiles as one.

    Args:
      alpha, tau: As in configs/deit.py: (1 - alpha) cross-entropy + alpha soft
        distillation at temperature tau.
    """

    def __init__(self, model, *, alpha: float, tau: float):
        super().__init__()
        self.model, self.alpha, self.tau = model, alpha, tau
        self.cross_entropy = SoftTargetCrossEntropy()

    def forward(self, images, targets, teacher):
        logits, distilled = self.model(images)
        distillation = F.kl_div(
            F.log_softmax(distilled.float() / self.tau, dim=-1),
            F.log_softmax(teacher.float() / self.tau, dim=-1),
            reduction="batchmean",
            log_target=True,
        )
        cross_entropy = self.cross_entropy(logits.float(), targets)
        weight = self.alpha * self.tau**2
        return (1 - self.alpha) * cross_entropy + weight * distillation


class Training:
    """A train step of timm, in pieces that can be timed."""

    def __init__(self, case: Case, device: torch.device, mode: str):
        config = case.config()
        self.config, self.case, self.device = config, case, device
        self.model = create_model(case, drop_path=config.model.drop_path).to(device)
        self.model.train()
        loss = Loss(
            self.model, alpha=config.distillation.alpha, tau=config.distillation.tau
        )
        self.loss = compiled(loss, mode)
        self.optimizer = create_optimizer_v2(
            self.model,
            opt="adamw",
            lr=config.optimizer.learning_rate,
            weight_decay=config.optimizer.weight_decay,
            betas=(config.optimizer.b1, config.optimizer.b2),
            fused=True,
        )
        self.ema = ModelEmaV3(self.model, decay=config.ema.decay)
        settings = recipes.resolve(
            config.augment.recipe, {}, mean=config.dataset.mean, std=config.dataset.std
        )
        self.erase = RandomErasing(
            settings.erase_probability, mode=settings.erase_mode, device=device.type
        )
        # Without mixing it still smooths the labels.
        self.mix = Mixup(
            mixup_alpha=settings.mixup or 1.0,
            cutmix_alpha=settings.cutmix,
            prob=settings.mix_probability if settings.mixes else 0.0,
            switch_prob=settings.mix_switch_probability,
            label_smoothing=config.loss.label_smoothing,
            num_classes=case.num_classes,
        )
        self.batch = random_batch(case, device)

    def prepare(self):
        """Normalised images, label distributions and the teacher's logits."""
        pixels, labels, teacher = (
            x.to(self.device, non_blocking=True) for x in self.batch
        )
        images = normalise(pixels, self.config.dataset)
        if self.case.augmented:
            images = self.erase(images)
        images, targets = self.mix(images, labels)
        return images, targets, teacher

    def forward(self, images, targets, teacher):
        with autocast(self.case, self.device):
            return self.loss(images, targets, teacher)

    def optimize(self):
        torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.optimizer.clip_norm
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model)

    def step(self):
        loss = self.forward(*self.prepare())
        loss.backward()
        self.optimize()
        return loss.detach()

    def parts(self, wait, count: int) -> dict[str, float]:
        """Medians of the seconds that the pieces of a step take, one after another."""
        rows = []
        for _ in range(count):
            clock = [time.perf_counter()]

            def lap(result=None, clock=clock):
                wait(result)
                clock.append(time.perf_counter())
                return result

            prepared = lap(self.prepare())
            loss = lap(self.forward(*prepared))
            lap(loss.backward())
            lap(self.optimize())
            rows.append(np.diff(clock))
        names = ("augmentation", "forward", "backward", "optimizer and EMA")
        return dict(zip(names, np.median(rows, axis=0).tolist(), strict=True))


def random_batch(case: Case, device: torch.device):
    """uint8 images [B, 3, H, W], labels [B] and teacher logits [B, C], on the host.

    Where `device` is a GPU they are pinned, as timm's loader has them.
    """
    rng = np.random.default_rng(0)
    side = VARIANTS[case.variant]["image_size"]
    size = (case.batch_size, 3, side, side)
    batch = (
        rng.integers(0, 256, size, np.uint8),
        rng.integers(0, case.num_classes, case.batch_size),
        rng.normal(0, 3, (case.batch_size, case.num_classes)).astype(np.float16),
    )
    batch = tuple(map(torch.from_numpy, batch))
    return batch if device.type == "cpu" else tuple(x.pin_memory() for x in batch)


def normalise(pixels, dataset):
    """uint8 to float32, as in timm's PrefetchLoader."""
    mean, std = (
        torch.tensor([255 * value for value in values], device=pixels.device)
        for values in (dataset.mean, dataset.std)
    )
    return pixels.float().sub_(mean.view(1, 3, 1, 1)).div_(std.view(1, 3, 1, 1))


def autocast(case: Case, device: torch.device):
    return torch.autocast(device.type, torch.bfloat16, enabled=case.dtype == "bfloat16")


def compiled(module, mode: str):
    if mode == "eager":
        return module
    if mode == "compile":
        return torch.compile(module)
    return torch.compile(module, mode=mode)


def inference(case: Case, device: torch.device, mode: str):
    """A function that gives the mean of both heads' logits for uint8 images."""
    dataset = case.config().dataset
    model = create_model(case).to(device).eval()
    if mode == "max-autotune" and device.type == "cpu":
        # Its faster products want weights that are constants.
        torch._inductor.config.freezing = True
    run = compiled(model, mode)
    pixels, *_ = random_batch(case, device)

    def logits():
        with torch.inference_mode(), autocast(case, device):
            return run(normalise(pixels.to(device, non_blocking=True), dataset))

    return logits


def measure(case: Case, *, mode: str, rounds: int, steps: int, parts: bool) -> dict:
    """Times `case`; arguments and result as in `benchmarks.ours.measure`.

    Args:
      mode: One of `compare.MODES`.
    """
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cpu = device.type == "cpu"
    if cpu:
        torch.set_num_threads(timing.cores())
    torch.backends.cudnn.benchmark = True  # as timm's train.py
    # As JAX's default on a GPU.
    torch.set_float32_matmul_precision("high")

    def wait(_):
        if not cpu:
            torch.cuda.synchronize()

    if case.training:
        training = Training(case, device, mode)
        run = training.step
    else:
        run = inference(case, device, mode)
    began = time.perf_counter()
    wait(result := run())
    first = time.perf_counter() - began
    timing.rounds(run, wait, count=1, steps=steps)
    seconds = timing.rounds(run, wait, count=rounds, steps=steps)
    median = float(np.median(seconds))
    peak = timing.peak_resident_bytes() if cpu else torch.cuda.max_memory_allocated()
    return {
        "images_per_sec": case.batch_size / median,
        "seconds": seconds,
        "compile_seconds": first - median,
        "peak_memory_bytes": peak,
        "loss": float(result) if case.training else None,
        "parts": training.parts(wait, rounds) if parts and case.training else None,
        "device": "cpu" if cpu else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads() if cpu else None,
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cases.add_flags(parser)
    parser.add_argument("--mode", choices=compare.MODES, default="eager")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="in a round")
    parser.add_argument("--parts", action="store_true")
    flags = parser.parse_args()
    names = ("mode", "rounds", "steps", "parts")
    settings = {name: getattr(flags, name) for name in names}
    print(json.dumps(measure(cases.from_flags(flags), **settings)))


if __name__ == "__main__":
    main()
