"""What a config describes, checked and built: all that a run needs but its state."""

import dataclasses
import functools
import math
import operator
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from deit_jax import pretrained
from deit_jax.data import batches, sources
from deit_jax.data.pipeline import fit_in_memory, open_pictures
from deit_jax.data.plan import BatchPlan
from deit_jax.data.student_views import StudentViews
from deit_jax.distillation import losses, teacher_logits, teacher_views
from deit_jax.distillation.teacher_logits import TeacherLogits
from deit_jax.errors import InputError
from deit_jax.models import model_card, variants
from deit_jax.models.vit import VisionTransformer
from deit_jax.student import student_views
from deit_jax.training import optimizer, processes, state, step

# Fields that may differ between the processes of a run.
OWN_FIELDS = (
    "checkpoint.",
    "dataset.data_dir",
    "dataset.workers",
    "distillation.logits_dir",
    "distributed.",
)

# Training images of up to so many bytes lie on a GPU or TPU for the whole run: those of
# CIFAR-10 are 154 MB.
RESIDENT_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Built by `create`; nothing in it changes while the model is trained.

    Attributes:
      config: A `ConfigDict` as in configs/deit.py.
      config_file: Where it came from, for messages and the summary.
      devices: Those of all processes (`processes.devices`).
      train_source, eval_source: The two splits.
      student: What the student sees of an image.
      plan: Which images make a step.
      total_steps: Of the whole run.
      model: The student.
      teacher: The cache of its teacher's logits, or None.
      mixing: What the teacher saw of the mixed pairs: exact, linear or none.
      schedule: Step (from 0) -> learning rate.
      optimizer: Follows the schedule.
    """

    config: object
    config_file: str
    devices: Sequence[jax.Device]
    train_source: object
    eval_source: object
    student: StudentViews
    plan: BatchPlan
    total_steps: int
    model: VisionTransformer
    teacher: TeacherLogits | None
    mixing: str
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation

    @property
    def model_card(self) -> model_card.ModelCard:
        """What the checkpoints' parameters need to be used."""
        dataset, size = self.config.dataset, self.student.size
        whole = self.eval_source.image_shape == (size, size, 3)
        return model_card.ModelCard(
            variant=self.config.model.variant,
            image_size=size,
            class_names=tuple(self.train_source.class_names),
            mean=tuple(dataset.mean),
            std=tuple(dataset.std),
            crop_ratio=1.0 if whole else dataset.eval_crop_ratio,
            dtype=self.config.model.dtype,
        )

    def identity(self, config: Mapping) -> dict:
        """What several processes must have in common, for JSON.

        Args:
          config: As a mapping. Paths and numbers of workers may differ.
        """
        fields = flatten_dict(config, sep=".")
        facts = {k: v for k, v in fields.items() if not k.startswith(OWN_FIELDS)}
        return facts | {
            "training images": self.train_source.fingerprint,
            "evaluation images": self.eval_source.fingerprint,
            "teacher": self.teacher and self.teacher.manifest["arrays"],
            "jax": jax.__version__,
        }

    def initial_state(self) -> state.TrainState:
        """At step 0, from the seed alone."""
        return state.create(
            self.model,
            self.optimizer,
            seed=self.config.seed,
            ema=self.config.ema.decay > 0,
        )

    def starting_state(self) -> tuple[state.TrainState, list[str]]:
        """At step 0, with the parameters of `init_from` where that is set.

        Returns:
          The state, and in sentences what its parameters are.

        Raises:
          InputError: See `pretrained.initial_params`.
        """
        config, fresh = self.config, self.initial_state()
        if not config.init_from:
            return fresh, []
        params, sentences = pretrained.initial_params(
            config.init_from,
            self.model,
            jax.device_get(fresh.params),
            class_names=self.train_source.class_names,
            mean=config.dataset.mean,
            std=config.dataset.std,
            position_resize=config.model.position_resize,
            keep_heads=config.model.keep_heads,
        )
        # The optimizer's state is that of step 0, whatever the parameters are.
        ema = jax.tree.map(np.copy, params) if config.ema.decay > 0 else None
        return fresh.replace(params=params, ema_params=ema), sentences

    @property
    def resident(self) -> bool:
        """Whether the devices have all training images, and batches none."""
        wanted = self.config.dataset.on_device
        if wanted is not None:
            return wanted
        # A CPU would have them twice.
        return self.devices[0].platform != "cpu" and fit_in_memory(
            self.train_source, self.student.size, limit=RESIDENT_BYTES
        )

    def open_train_pictures(self):
        """A context manager: an `ArraySource`, or a `HostPipeline` that it closes."""
        return self.student.open_pictures(
            self.train_source, workers=self.config.dataset.workers
        )

    def open_eval_pictures(self):
        """As `open_train_pictures`, the centre view of the other split."""
        return open_pictures(
            self.eval_source,
            size=self.student.size,
            workers=self.config.dataset.workers,
            crop_ratio=self.config.dataset.eval_crop_ratio,
        )

    def step_settings(self) -> dict:
        """What `step.train_step` asks for beside a state and a batch."""
        config = self.config
        mix_teacher = None
        if self.mixing == "linear":
            tau = losses.teacher_temperature(
                config.distillation.kind, config.distillation.tau
            )
            mix_teacher = functools.partial(losses.mix_teacher_logits, tau=tau)
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "inputs": functools.partial(
                step.inputs,
                num_classes=self.train_source.num_classes,
                label_smoothing=config.loss.label_smoothing,
                augment_seed=self.student.augment_seed,
                augmentation=self.student.settings,
                mix_teacher=mix_teacher,
            ),
            "loss": functools.partial(losses.training_loss, **_loss_settings(config)),
            "seed": config.seed,
            "ema_decay": config.ema.decay,
            "accumulation": config.optimizer.accumulation,
        }

    def train_step(self) -> Callable:
        """`step.pmap_train_step` of this experiment."""
        return step.pmap_train_step(self.devices, **self.step_settings())

    def eval_step(self) -> Callable:
        """`step.pmap_eval_step` of this experiment."""
        return step.pmap_eval_step(
            self.devices,
            model=self.model,
            mean=self.config.dataset.mean,
            std=self.config.dataset.std,
            token_cosine=True,
        )

    def describe(self) -> str:
        """In a few lines for the terminal: data, devices, augmentation, teacher."""
        config, train, evaluation = self.config, self.train_source, self.eval_source
        several = processes.count() > 1
        in_processes = f" in {processes.count()} processes" if several else ""
        names = textwrap.shorten(", ".join(train.class_names), 200, placeholder=" ...")
        lines = [
            f"{config.dataset.name}: {len(train):,} training images ({train.split}), "
            f"{len(evaluation):,} for evaluation ({evaluation.split}), "
            f"{train.num_classes} classes: {names}",
            f"{len(self.devices)} x {self.devices[0].device_kind}{in_processes}, "
            f"jax {jax.__version__}, {config.model.dtype}",
            f"augmentation {config.augment.recipe}: {self.student.settings}",
        ]
        for source in (train, evaluation):
            # Silently without the HEIC files of a phone, a class could be half of
            # itself.
            if passed_over := getattr(source, "passed_over", None):
                counted = ", ".join(
                    f"{n:,} {ending}" for ending, n in passed_over.items()
                )
                lines.append(
                    f"{source.split}: files passed over, not pictures: {counted}"
                )
        if self.teacher is not None:
            about = self.teacher.manifest["teacher"]
            lines.append(
                f"teacher {about['arch']}, top-1 {about['top1']:.4f} on "
                f"{about['top1_split']}; {self._views_in_words()}, "
                f"{config.distillation.kind} distillation of the "
                f"{config.distillation.head} head, alpha {config.distillation.alpha}, "
                f"tau {config.distillation.tau}"
            )
        lines.append(
            f"{self.total_steps:,} steps of {config.batch_size} images "
            f"({self.plan.steps_per_epoch} an epoch), peak learning rate "
            f"{peak_learning_rate(config):g}"
        )
        return "\n".join(lines)

    def _views_in_words(self) -> str:
        distillation = self.config.distillation
        if distillation.view == "plain":
            seen = "it saw the plain images"
        else:
            seen = f"it saw the same images, {distillation.num_views} cached views"
        mixed = {"exact": ", mixed", "linear": ", mixed linearly", "none": ""}
        return seen + mixed[self.mixing]


def create(
    config, *, devices: Sequence[jax.Device], config_file: str = "<config>"
) -> Experiment:
    """Opens the data and the teacher's cache, and builds what `config` describes.

    Raises:
      InputError: A field of the config is out of range, or the config, the data and
        the teacher's cache do not go together.
    """
    _check_ranges(config)
    batches.check_batch_size(
        config.batch_size,
        devices=len(devices),
        accumulation=config.optimizer.accumulation,
    )
    train_source, eval_source = (
        sources.load(
            config.dataset.name, split, data_dir=config.dataset.data_dir or None
        )
        for split in (config.dataset.train_split, config.dataset.eval_split)
    )
    student = student_views(config, train_source)
    taught = config.distillation.kind != "none"
    cached_views = taught and config.distillation.view == "same"
    plan = BatchPlan(
        length=len(train_source),
        batch_size=config.batch_size,
        seed=config.seed,
        augment_seed=student.augment_seed,
        # Without a cache of views each epoch has a new one.
        num_views=config.distillation.num_views if cached_views else 0,
        repeats=student.repeats,
    )
    total_steps = math.ceil(config.epochs * plan.steps_per_epoch)
    if total_steps < 1:
        raise InputError(f"epochs={config.epochs} leaves nothing to train.")
    model = variants.create(
        config.model.variant,
        num_classes=train_source.num_classes,
        image_size=config.dataset.image_size or None,
        drop_path=config.model.drop_path,
        dropout=config.model.dropout,
        position_std=config.model.position_std,
        dtype=config.model.dtype,
        remat=config.model.remat,
        attention=config.model.attention,
    )
    _check_attention(config.model, devices)
    if config.dataset.on_device and not fit_in_memory(train_source, student.size):
        raise InputError(
            f"dataset.on_device=True: the pictures of {config.dataset.name} are "
            "streamed, as they are of other sizes than the model's or do not fit into "
            "memory. Leave it out."
        )
    teacher, mixing = _open_teacher(config, train_source, model, student, config_file)
    schedule = optimizer.warmup_cosine(
        peak_learning_rate(config),
        total_steps=total_steps,
        warmup_steps=round(config.schedule.warmup_epochs * plan.steps_per_epoch),
        warmup_learning_rate=config.schedule.warmup_learning_rate,
        min_learning_rate=config.schedule.min_learning_rate,
    )
    return Experiment(
        config=config,
        config_file=config_file,
        devices=devices,
        train_source=train_source,
        eval_source=eval_source,
        student=student,
        plan=plan,
        total_steps=total_steps,
        model=model,
        teacher=teacher,
        mixing=mixing,
        schedule=schedule,
        optimizer=create_optimizer(config, schedule),
    )


def create_optimizer(config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """`optimizer.create` with the fields of `config.optimizer`."""
    return optimizer.create(
        config.optimizer.name,
        schedule,
        weight_decay=config.optimizer.weight_decay,
        b1=config.optimizer.b1,
        b2=config.optimizer.b2,
        momentum=config.optimizer.momentum,
        clip_norm=config.optimizer.clip_norm,
        layer_decay=config.optimizer.layer_decay,
    )


def peak_learning_rate(config) -> float:
    """After the warm-up, for the batch size of `config`."""
    return optimizer.resolve_learning_rate(
        config.optimizer.learning_rate,
        batch_size=config.batch_size,
        reference_batch_size=config.optimizer.reference_batch_size,
    )


def _check_ranges(config) -> None:
    """Refuses numbers that nothing further down would explain."""
    for field, low, high in (
        ("steps_per_dispatch", 1, math.inf),
        ("optimizer.accumulation", 1, math.inf),
        ("optimizer.reference_batch_size", 0, math.inf),
        ("optimizer.clip_norm", 0, math.inf),
        ("optimizer.max_consecutive_skips", 1, math.inf),
        ("loss.label_smoothing", 0, 1),
        ("distillation.num_views", 1, math.inf),
        ("ema.decay", 0, 1),
        ("eval.batch_size", 1, math.inf),
        ("eval.every_epochs", 0, math.inf),
        ("log.every_steps", 1, math.inf),
        ("checkpoint.every_steps", 0, math.inf),
        ("checkpoint.keep", 1, math.inf),
    ):
        value = operator.attrgetter(field)(config)
        if not low <= value <= high:
            expected = f"{low} .. {high}" if high < math.inf else f"at least {low}"
            raise InputError(f"{field}={value}: expected {expected}.")


def _check_attention(model, devices: Sequence[jax.Device]) -> None:
    """Refuses cuDNN where there is none, before the first step does."""
    if model.attention != "cudnn":
        return
    if model.dtype != "bfloat16":
        raise InputError(
            f"model.attention='cudnn' with model.dtype={model.dtype!r}: cuDNN's is for "
            "16 bits. Set --config.model.dtype=bfloat16."
        )
    kind = devices[0].device_kind
    if "cuda" not in devices[0].client.platform_version:
        raise InputError(
            f"model.attention='cudnn' on {kind}: it is for NVIDIA GPUs. Leave it out."
        )


def _loss_settings(config) -> dict:
    names = ("kind", "head", "alpha", "tau", "reduction")
    return {name: config.distillation[name] for name in names}


def _open_teacher(config, source, model, student, config_file: str):
    """The teacher cache of the run and how it mixes; refuses what cannot be distilled.

    Returns:
      (`TeacherLogits`, `teacher_views.resolve_mixing`), or (None, "none").
    """
    losses.check(
        **_loss_settings(config),
        student_heads=model.heads,
        variant=config.model.variant,
    )
    distillation = config.distillation
    if distillation.kind == "none":
        return None, "none"
    mixing = teacher_views.resolve_mixing(
        distillation.view, distillation.mixing, student
    )
    directory = distillation.logits_dir
    try:
        tau = losses.teacher_temperature(distillation.kind, distillation.tau)
        teacher = teacher_logits.open_cache(directory, tau=tau)
    except InputError as error:
        if directory and (Path(directory) / teacher_logits.MANIFEST).exists():
            raise  # it is there and damaged: the message says how
        commands = teacher_logits.export_commands(
            source.name, directory or "runs/logits", config_file
        )
        raise InputError(
            f"distillation.kind={distillation.kind!r} needs the logits of a "
            f"teacher: {error} Make them with\n{commands}\n"
            "or train without a teacher: --config=configs/vit.py"
        ) from error
    teacher_views.check(
        teacher,
        source,
        student,
        view=distillation.view,
        mixing=mixing,
        num_views=distillation.num_views,
        config=config_file,
    )
    teacher_views.check_examples(teacher, source, student, mixing=mixing)
    return teacher, mixing
