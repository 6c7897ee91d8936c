"""Caches the teacher's logits of the images that a student will see.

    python -m teacher.export_logits --config=configs/deit.py:digits \\
        --teacher=runs/teacher-digits

The config is that of the student: it names the data set, its splits, the augmentation,
the number of views and the place of the cache, so that the two belong together. With
distillation.view=same the teacher sees each image as the student will see it, in each
of the views, mixed pairs included (mixing=exact); with view=plain it sees the image
without augmentation, once. The same command resumes after a kill; with more --views it
adds views to a finished cache.

A bare state dict of a torchvision network is a teacher too, and so is a run directory
of this package, or timm:NAME, or hf:ID:

    python -m teacher.export_logits --config=configs/deit.py:digits \\
        --teacher=resnet50.pt --arch=resnet50 --image_size=64

Several --teacher are averaged. --backend=jax computes their logits on all devices that
JAX has, for ResNets, RegNets and the models of this package; without it that is so
where these are accelerators.

What is in a finished cache can be checked:

    ... --verify=100                  # computes 100 entries again and compares
    python -m teacher.export_logits --config=... --check=DIR    # the images, no teacher

Several processes, on one machine or on many, can share the views between them. Files
view-* of other machines are moved into one directory; the same command without
--only_views then finishes the cache. For many classes --top_k keeps the largest logits.

    for i in 0 1 2 3 4; do
        CUDA_VISIBLE_DEVICES=$i python -m teacher.export_logits \\
            --config=configs/deit.py:imagenet --teacher=DIR --top_k=10 \\
            --only_views=$((6 * i)):$((6 * i + 6)) &
    done; wait
"""

import importlib.util
import json
import os
import re
import sys
from collections.abc import Sequence

import jax
from absl import flags

from deit_jax import command, config_flag, recipe, teachers
from deit_jax.data import sources
from deit_jax.distillation import losses, match, teacher_cache
from deit_jax.distillation.encoding import TOLERANCE
from deit_jax.distillation.teacher import Teacher
from deit_jax.errors import InputError
from deit_jax.main import config_arguments
from deit_jax.models import convnets
from deit_jax.weights import torchvision
from teacher.export import Export, estimate, export
from teacher.verify import verify


def define_flags() -> None:
    """Defines the command's flags; an import defines none."""
    config_flag.define()
    flags.DEFINE_multi_string(
        "teacher",
        [],
        "Run of teacher.finetune or of this package, file of weights, timm:NAME or "
        "hf:ID; several are averaged.",
    )
    flags.DEFINE_enum(
        "backend",
        None,
        ["torch", "jax"],
        "What computes the logits; if not given, jax where it has an accelerator and "
        "the network, or where torch has not.",
    )
    flags.DEFINE_string(
        "out", None, "The config's distillation.logits_dir if not given."
    )
    flags.DEFINE_integer(
        "views",
        None,
        "Views of each image; the config's distillation.num_views if not given.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "top_k", None, "Keep the K largest logits, for many classes.", lower_bound=1
    )
    flags.DEFINE_integer(
        "verify",
        None,
        "Compute this many random entries of a finished cache again and compare.",
        lower_bound=1,
    )
    flags.DEFINE_float(
        "tolerance",
        TOLERANCE,
        "Of --verify, on |cached - live| beyond float16's rounding; above it the exit "
        "code is 1.",
    )
    flags.DEFINE_string(
        "check", None, "A cache: only check that it belongs to the config."
    )
    flags.DEFINE_bool("estimate", False, "Only print time and size, as JSON.")
    flags.DEFINE_string(
        "only_views",
        None,
        "first:end, only these of the views: several processes share an export.",
    )
    flags.DEFINE_string("arch", None, "Of a bare state dict: torchvision's name.")
    flags.DEFINE_string("stem", None, "Of a bare state dict: standard or cifar.")
    flags.DEFINE_integer("image_size", None, "Of a bare state dict, in pixels.", 1)
    flags.DEFINE_integer("batch_size", 64, "Images a forward pass.", lower_bound=1)
    flags.DEFINE_enum(
        "precision",
        "float32",
        ["auto", "float32", "bfloat16", "float16"],
        "Half precision is faster on a GPU and rounds the logits more coarsely.",
    )
    flags.DEFINE_string("device", None, "Of torch: cpu, cuda, cuda:1.")
    flags.DEFINE_bool("allow_weak_teacher", False, "Take a teacher near chance.")


def main(_) -> None:
    command.require(config="configs/deit.py:digits")
    values = flags.FLAGS
    dataset = values.config.dataset
    data_dir = dataset.get("data_dir") or None
    out = values.out or values.config.distillation.logits_dir
    if not out:
        raise InputError(
            "the config has no distillation.logits_dir: say with --out=DIR where the "
            "cache goes."
        )
    # JAX makes the images and torch looks at them: JAX must not take all of a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if not (values.check or (values.teacher and all(values.teacher))):
        raise InputError(
            f"say with --teacher whose logits to cache: {teachers.EXPECTED}."
        )
    # Before the data: torchvision cannot be imported after TensorFlow, which may
    # prepare them.
    opened, backend = (None, None) if values.check else open_teachers()
    train = sources.load(dataset.name, dataset.train_split, data_dir=data_dir)
    distillation = values.config.distillation
    student = recipe.student_views(values.config, train)
    mixing = match.resolve_mixing(distillation.view, distillation.mixing, student)
    if values.check:
        check(values.check, train, student, values.config, mixing)
        return
    plain = distillation.view == "plain"
    job = Export(
        opened,
        train,
        sources.load(dataset.name, dataset.eval_split, data_dir=data_dir),
        backend,
        seen=None if plain else match.seen_by_teacher(student, mixing),
        num_views=values.views or (1 if plain else distillation.num_views),
        top_k=values.top_k,
        tau=losses.teacher_temperature(distillation.kind, distillation.tau)
        if len(opened) > 1
        else distillation.tau,
        features=distillation.kind == "features",
        batch_size=values.batch_size,
        workers=dataset.workers,
    )
    if values.estimate:
        print(json.dumps(estimate(job)))
        return
    if values.verify:
        sys.exit(verified(job, out, values.verify, values.tolerance))
    views = parse_views(values.only_views, job.num_views)
    done = export(job, out, views=views, allow_weak_teacher=values.allow_weak_teacher)
    if done:
        print(f"cached in {out}")
    else:
        print(
            f"these views are in {out}. When the others are there too, repeat the "
            "command without --only_views: it finishes the cache."
        )


def open_teachers() -> tuple[list, object]:
    """The teachers that the flags name, and what computes their logits."""
    values = flags.FLAGS
    given = command.values("arch", "stem", "image_size")
    found = [teachers.find(spec, **given) for spec in values.teacher]
    backend = values.backend or choose_backend(found)
    if backend == "jax":
        from teacher import jax_backend

        if values.device is not None:
            raise InputError(
                f"--device={values.device} is of --backend=torch. JAX takes all of its "
                "devices: JAX_PLATFORMS=cpu chooses their kind."
            )
        precision = jax_backend.choose_precision(values.precision)
        opened = [teachers.in_jax(teacher, precision) for teacher in found]
        return opened, jax_backend.JaxBackend(precision, values.batch_size)
    for teacher in found:
        if isinstance(teacher, Teacher):
            raise InputError(
                f"{teacher.spec} ({teacher.arch}) runs in JAX only: --backend=jax, for "
                "all teachers of an export."
            )
    # Not where JAX computes: torch need not be there.
    from teacher import classifier as classifiers

    classifiers.deterministic()
    return [*map(classifiers.build, found)], classifiers.TorchBackend(
        values.precision, values.device
    )


def choose_backend(found: Sequence[Teacher | torchvision.Described]) -> str:
    """`jax` where it has all the networks and an accelerator, or torch lacks one."""
    if any(isinstance(teacher, Teacher) for teacher in found):
        return "jax"
    if any(teacher.arch not in convnets.ARCHITECTURES for teacher in found):
        return "torch"
    has_torch = importlib.util.find_spec("torchvision") is not None
    return "torch" if has_torch and jax.default_backend() == "cpu" else "jax"


def verified(job: Export, out: str, count: int, tolerance: float) -> int:
    """Prints what `verify` finds; returns the exit code."""
    largest, beyond = verify(job, teacher_cache.open_cache(out, tau=job.tau), count)
    good = beyond <= tolerance  # not a number is not
    print(
        f"max |cached - live| = {largest:.3g}, {beyond:.3g} more than float16 rounds, "
        f"{'within' if good else 'ABOVE'} the tolerance of {tolerance:g}"
    )
    return int(not good)


def parse_views(text: str | None, num_views: int) -> range | None:
    """`0:5` is the first five views; None is all of them."""
    if text is None:
        return None
    parts = re.fullmatch(r"(\d{1,6}):(\d{1,6})", text)
    if not parts or not int(parts[1]) < int(parts[2]) <= num_views:
        raise InputError(
            f"--only_views={text}: expected first:end within 0:{num_views}, e.g. 0:"
            f"{-(-num_views // 2)} and {-(-num_views // 2)}:{num_views} for two "
            "processes."
        )
    return range(int(parts[1]), int(parts[2]))


def check(directory: str, train, student, config, mixing: str) -> None:
    """What a start of training checks of its cache, by hand."""
    distillation = config.distillation
    tau = losses.teacher_temperature(distillation.kind, distillation.tau)
    cache = teacher_cache.open_cache(
        directory, tau=tau, features=distillation.kind == "features"
    )
    match.check(
        cache,
        train,
        student,
        view=distillation.view,
        mixing=mixing,
        num_views=distillation.num_views,
        config=config_arguments(flags.FLAGS["config"]),
    )
    match.check_examples(cache, train, student, mixing=mixing)
    about = cache.manifest["views"]
    print(
        f"{directory} belongs to this config: {about['count']} {about['view']} view(s)"
        + (
            ""
            if about["view"] == "plain"
            else ", and its stored images are those of this program, pixel by pixel"
        )
    )


if __name__ == "__main__":
    define_flags()
    command.run(main)
