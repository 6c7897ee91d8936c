"""An experiment: what a config describes, opened and built, but for its state."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from deit_jax import optimisation, pretrained, recipe, teaching
from deit_jax.data import batches, sources
from deit_jax.data.pipeline import fit_in_memory, open_images
from deit_jax.data.plan import BatchPlan
from deit_jax.data.student_views import StudentViews
from deit_jax.distillation.features import without_projector
from deit_jax.distillation.live_teacher import LiveTeacher
from deit_jax.distillation.teacher_cache import TeacherCache
from deit_jax.errors import InputError, listed
from deit_jax.models.model_card import ModelCard
from deit_jax.models.vit import VisionTransformer
from deit_jax.training import (
    data_identity,
    processes,
    run_directory,
    state,
    step,
)
from deit_jax.training.cadence import Cadence

# Fields that may differ between the processes of a run.
LOCAL_FIELDS = (
    "checkpoint.",
    "dataset.data_dir",
    "dataset.workers",
    "distillation.logits_dir",
    "distillation.teacher",
    "distributed.",
)

# Training images of up to this size lie on the GPU or TPU that augments them for the
# whole run: those of CIFAR-10 take 154 MB.
RESIDENT_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Built by `create`; nothing in it changes while the model is trained."""

    saved_config: Mapping  # nested, for config.json and checkpoints
    config_file: str  # what followed `--config=` (`main.config_arguments`)
    devices: Sequence[jax.Device]  # of all processes
    train_source: object
    eval_source: object
    student: StudentViews
    plan: BatchPlan
    cadence: Cadence
    card: ModelCard
    model: VisionTransformer
    teacher: TeacherCache | None
    live: LiveTeacher | None  # asked in each step, or compared with the cache
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    settings: Mapping  # the keyword arguments of `step.train_step`
    start: pretrained.Start | None  # None: from the seed alone
    augments_on_host: bool
    resident: bool  # whether the devices hold all training images, and batches none
    workers: int  # processes that read images
    eval_batch_size: int  # over all devices
    keep: int  # checkpoints that stay
    max_consecutive_skips: int
    notes: tuple[str, ...]  # on the config, for the user

    @property
    def total_steps(self) -> int:
        return self.cadence.total_steps

    @property
    def keeps_ema(self) -> bool:
        return self.settings["ema_decay"] > 0

    @functools.cached_property
    def data(self) -> dict:
        """What the run is trained on, by content (`data_identity.describe`)."""
        digest = self.teacher and self.teacher.digest
        if self.live and not self.teacher:
            digest = data_identity.LIVE + self.live.identity
        return data_identity.describe(self.train_source, self.eval_source, digest)

    @property
    def streams_eval(self) -> bool:
        """Whether evaluation images are decoded when needed, not at the start."""
        return not fit_in_memory(self.eval_source, self.student.size)

    def identity(self) -> dict:
        """What all processes of a run must have in common, for JSON."""
        fields = flatten_dict(self.saved_config, sep=".")
        facts = {k: v for k, v in fields.items() if not k.startswith(LOCAL_FIELDS)}
        return facts | {
            "training images": self.train_source.fingerprint,
            "evaluation images": self.eval_source.fingerprint,
            "teacher": self.data["teacher"],
            "jax": jax.__version__,
        }

    @property
    def teacher_width(self) -> int:
        """The number of the teacher's features that the student learns; 0: none."""
        teacher = self.teacher or self.live
        return teacher.num_features if teacher else 0

    def initial_state(self) -> state.TrainState:
        """The state at step 0, from the seed alone."""
        return state.create(
            self.model,
            self.optimizer,
            seed=self.plan.seed,
            ema=self.keeps_ema,
            trainable=self.settings["trainable"],
            teacher_width=self.teacher_width,
        )

    def starting_state(self) -> tuple[state.TrainState, list[str]]:
        """The state at step 0, from `init_from` where that is set; and words on it.

        Raises:
          InputError: See `pretrained.initial_params`.
        """
        fresh = self.initial_state()
        if self.start is None:
            return fresh, []
        own = jax.device_get(fresh.params)
        params, sentences = pretrained.initial_params(
            self.start, self.model, without_projector(own), self.card
        )
        params = own | params  # no other run has this run's projector
        # The optimizer's state is that of step 0, whatever the parameters are.
        ema = jax.tree.map(np.copy, params) if self.keeps_ema else None
        return fresh.replace(params=params, ema_params=ema), sentences

    def open_train_images(self):
        """A context manager: an `ArraySource`, or a `HostPipeline` that it closes."""
        return self.student.open_images(self.train_source, workers=self.workers)

    def open_eval_images(self):
        """As `open_train_images`: the centre view of the other split."""
        return open_images(
            self.eval_source,
            size=self.student.size,
            workers=self.workers,
            crop_ratio=self.card.crop_ratio,
        )

    def train_batches(self, images, start: int, stop: int) -> Iterator[dict]:
        """The batches of steps `start` .. `stop` - 1 for this process's devices."""
        unmixed = self.settings["inputs"].keywords.get("unmixed", False)
        augment = functools.partial(self.student.augment, mixed=not unmixed)
        return batches.train_batches(
            images,
            self.plan,
            start=start,
            stop=stop,
            devices=len(self.devices),
            local=processes.local(self.devices),
            teacher=self.teacher,
            images=not self.resident,
            augment=augment if self.augments_on_host else None,
        )

    def resident_arrays(self, images) -> dict:
        """What the devices hold for the whole run (`step.pmap_train_step`)."""
        held = {"images": images} if self.resident else {}
        return held | ({"teacher": self.live.params} if self.live else {})

    def train_step(self) -> Callable:
        return step.pmap_train_step(self.devices, **self.settings)

    def eval_step(self) -> Callable:
        return step.pmap_eval_step(
            self.devices,
            model=self.model,
            mean=self.card.mean,
            std=self.card.std,
            token_cosine=True,
        )

    def describe(self) -> str:
        """Data, devices, augmentation and teacher, in a few lines for the terminal."""
        train, evaluation = self.train_source, self.eval_source
        count = processes.count()
        lines = [
            f"{train.name}: {len(train):,} training images ({train.split}), "
            f"{len(evaluation):,} for evaluation ({evaluation.split}), "
            f"{train.num_classes} classes: {listed(train.class_names)}",
            f"{len(self.devices)} x {self.devices[0].device_kind}"
            + (f" in {count} processes" if count > 1 else "")
            + f", jax {jax.__version__}, {self.card.dtype}",
            f"augmentation {self.saved_config['augment']['recipe']}: "
            f"{self.student.settings}"
            + ("; by the host" if self.augments_on_host else ""),
        ]
        lines += dict.fromkeys((*train.notes, *evaluation.notes))
        for source in (train, evaluation):
            # Without the HEIC files of a phone a class could be half of itself.
            if passed_over := getattr(source, "passed_over", None):
                counted = ", ".join(f"{n:,} {end}" for end, n in passed_over.items())
                lines.append(f"{source.split}: files passed over, no images: {counted}")
        if self.teacher or self.live:
            lines += teaching.describe(self)
        lines.append(
            f"{self.total_steps:,} steps of {self.plan.batch_size} images "
            f"({self.plan.steps_per_epoch} an epoch), peak learning rate "
            f"{optimisation.peak_learning_rate(self.saved_config):g}"
        )
        return "\n".join([*lines, *self.notes])


def open_run(
    config,
    workdir: str | os.PathLike,
    config_file: str = "<config>",
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Experiment:
    """`create` for a run in `workdir`, on the `devices` of all processes for None.

    Raises:
      InputError: `workdir` cannot be a run directory, the processes of the run differ,
        or see `create`.
    """
    pretrained.check(config.init_from, workdir)
    if processes.is_first():
        run_directory.check(workdir)
    devices = processes.devices() if devices is None else devices
    run = create(config, devices=devices, config_file=config_file)
    processes.check_same(run.identity())
    return run


def create(
    config, *, devices: Sequence[jax.Device], config_file: str = "<config>"
) -> Experiment:
    """Opens the data and the teacher, and builds what `config` describes.

    Raises:
      InputError: The config, the data and the teacher do not go together.
    """
    recipe.check(config)
    teaching.check(config.distillation)
    dataset = config.dataset
    opened = [
        sources.load(dataset.name, split, data_dir=dataset.data_dir or None)
        for split in (dataset.train_split, dataset.eval_split)
    ]
    run = build(config, *opened, devices=devices, config_file=config_file)
    if config.distillation.kind == "none":
        return run
    return teaching.open_teachers(config, run)


def build(
    config,
    train_source,
    eval_source,
    *,
    devices: Sequence[jax.Device],
    config_file: str = "<config>",
) -> Experiment:
    """Builds what `config` describes around sources that are open already."""
    student = recipe.student_views(config, train_source)
    size = student.size
    plan = recipe.batch_plan(config, train_source, devices, student.settings)
    cadence = recipe.cadence(config, plan)
    model = recipe.model(config, train_source.num_classes, devices)
    on_host = recipe.augments_on_host(config, devices)
    schedule, notes = optimisation.create_schedule(config, plan, cadence.total_steps)
    optimizer = optimisation.create_optimizer(config, schedule, model)
    return Experiment(
        saved_config=json.loads(config.to_json_best_effort()),
        config_file=config_file,
        devices=devices,
        train_source=train_source,
        eval_source=eval_source,
        student=student,
        plan=plan,
        cadence=cadence,
        card=recipe.model_card(config, train_source, eval_source, size),
        model=model,
        teacher=None,
        live=None,
        schedule=schedule,
        optimizer=optimizer,
        settings=recipe.step_settings(
            config, student, train_source, model=model, optimizer=optimizer
        ),
        start=recipe.start(config),
        augments_on_host=on_host,
        resident=not on_host and _resident(config.dataset, train_source, devices, size),
        workers=config.dataset.workers,
        eval_batch_size=config.eval.batch_size,
        keep=config.checkpoint.keep,
        max_consecutive_skips=config.optimizer.max_consecutive_skips,
        notes=tuple(notes),
    )


def _resident(dataset, source, devices: Sequence[jax.Device], size: int) -> bool:
    """Whether the devices hold all images of `source`: `dataset.on_device`."""
    if dataset.on_device is None:  # a CPU would hold them twice
        small = fit_in_memory(source, size, limit=RESIDENT_BYTES)
        return small and devices[0].platform != "cpu"
    if dataset.on_device and not fit_in_memory(source, size):
        raise InputError(
            f"dataset.on_device=True: the images of {dataset.name} are streamed, since "
            "they have other sizes than the model's or do not fit into memory. Leave "
            "it out."
        )
    return dataset.on_device
