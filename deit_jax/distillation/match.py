"""Checks that a teacher has seen the images that a student sees.

A cache says in its manifest what its images followed from, and keeps eight of them, its
examples: `image` uint8 [8, S, S, 3], `view`, `index` and `partner` int32 [8],
`share` int32 [8] and `box` int32 [8, 4] as in `deit_jax.data.augment.mix`. A start of
training makes the eight again and compares.
"""

import reprlib
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict

from deit_jax.data.plan import view_pairs
from deit_jax.data.student_views import StudentViews
from deit_jax.distillation.cache_format import MIXINGS, VIEWS
from deit_jax.distillation.teacher_cache import TeacherCache
from deit_jax.errors import InputError

EXAMPLE_VIEWS = 4  # of two partners each
UNUSED = dict.fromkeys(("augment_seed", "repeats", "size", "augmentation"))


def resolve_mixing(view: str, mixing: str, student: StudentViews) -> str:
    """How the teacher's answers become those for mixed images.

    Args:
      view: `distillation.view`: `same` or `plain`.
      mixing: `distillation.mixing`: `exact` (the teacher saw the mixed images),
        `linear` (its probabilities of the two images are mixed) or `none`.

    Returns:
      `mixing`, and `none` where the student's images are not mixed.

    Raises:
      InputError: The student's images are mixed in a way that this does not cover.
    """
    for field, value, known in (("view", view, VIEWS), ("mixing", mixing, MIXINGS)):
        if value not in known:
            raise InputError(
                f"unknown distillation.{field}={value!r}. Known: {', '.join(known)}."
            )
    if not student.settings.mixes:
        return "none"
    if mixing == "none" or (view, mixing) == ("plain", "exact"):
        can = "exact (of view=same) or linear" if view == "same" else "linear"
        raise InputError(
            f"distillation.mixing={mixing!r} with distillation.view={view!r}: the "
            "student's images are mixed (augment.mixup="
            f"{student.settings.mixup:g}, augment.cutmix={student.settings.cutmix:g}), "
            f"and the teacher has to answer for both halves. Set mixing to {can}, or "
            "--config.augment.mix_probability=0."
        )
    return mixing


def seen_by_teacher(student: StudentViews, mixing: str) -> StudentViews:
    """What a teacher is asked about: the mixed images only for `exact`."""
    return student if mixing == "exact" else student.unmixed()


def describe(view: str, count: int, seen: StudentViews | None) -> dict:
    """The manifest's `views` section; `seen` is None for `plain`."""
    if view == "plain":
        return {"count": 1, "view": "plain", "mixing": "none"} | UNUSED
    return {
        "count": count,
        "view": "same",
        "mixing": "exact" if seen.settings.mixes else "none",
        "augment_seed": seen.augment_seed,
        "repeats": seen.repeats,
        "size": seen.size,
        "augmentation": seen.settings.describe(),
    }


def examples(seen: StudentViews, source, count: int) -> dict:
    """The examples of a cache: two partners in each of four views, first to last.

    Args:
      source: The training source.
      count: Views in the cache.
    """
    chosen = np.linspace(0, count - 1, EXAMPLE_VIEWS).round().astype(np.int32)
    partners = [
        view_pairs(seen.augment_seed, int(view), len(source), seen.repeats)[0]
        for view in chosen
    ]
    index, view = np.concatenate(partners), np.repeat(chosen, 2)
    with seen.read_few(source) as opened:
        [(image, mixes)] = seen.replay(opened, [(index, view)])
    return {
        "image": image,
        "view": view,
        "index": index,
        "partner": index.reshape(-1, 2)[:, ::-1].reshape(-1),
        "share": np.repeat(mixes.share, 2),
        "box": np.repeat(mixes.box, 2, axis=0),
    }


def check(
    cache: TeacherCache,
    source,
    student: StudentViews,
    *,
    view: str,
    mixing: str,
    num_views: int,
    config: str = "...",
) -> None:
    """Refuses a cache whose teacher saw other images, or images of another source.

    Only what the manifest says is compared; `check_examples` looks at the pixels.

    Args:
      cache: The opened cache.
      source: The training source (`deit_jax.data.sources`).
      view, mixing: What the run expects; `mixing` as of `resolve_mixing`.
      num_views: Views that the run goes through, of `same`.
      config: The `--config` of the run, for messages.

    Raises:
      InputError: Names what differs, both sides, and the fix.
    """
    cache.check_source(source, config=config)
    stated = cache.manifest["views"]
    if stated["view"] != view:
        raise InputError(
            f"the teacher of {cache.directory} saw {stated['view']!r} images, and "
            f"distillation.view={view!r} is asked for. Set "
            f"--config.distillation.view={stated['view']}, or make another cache."
            + cache.how_to_fix(source.name, config)
        )
    if view == "plain":
        return
    expected = describe(view, num_views, seen_by_teacher(student, mixing))
    if stated["mixing"] != expected["mixing"]:
        seen = {"exact": "mixed", "none": "unmixed"}
        raise InputError(
            f"the teacher of {cache.directory} saw {seen[stated['mixing']]} images, "
            f"and distillation.mixing={mixing!r} wants {seen[expected['mixing']]} "
            "ones. " + _fix_mixing(stated["mixing"], student) + " or make another "
            "cache." + cache.how_to_fix(source.name, config)
        )
    _check_fields(cache, expected, source.name, config)
    if stated["count"] < num_views:
        raise InputError(
            f"the teacher cache {cache.directory} holds {stated['count']} views, and "
            f"distillation.num_views={num_views} are asked for. Set "
            f"--config.distillation.num_views={stated['count']}, or export more."
            + cache.how_to_fix(source.name, config)
        )


def _check_fields(cache: TeacherCache, expected: dict, name: str, config: str) -> None:
    """Refuses a cache whose images follow from other fields than this run's."""
    ours, theirs = _fields(expected), _fields(cache.manifest["views"])
    differing = [
        f"  {field}: {theirs.get(field)!r} in the cache, {ours.get(field)!r} in this "
        "run"
        for field in sorted(ours.keys() | theirs.keys())
        if ours.get(field) != theirs.get(field)
    ]
    if differing:
        raise InputError(
            f"the teacher of {cache.directory} saw other images than this run's:\n"
            + "\n".join(differing)
            + "\nSet the config's fields as they are in the cache, or make a cache for "
            "this run." + cache.how_to_fix(name, config)
        )


def _fix_mixing(stated: str, student: StudentViews) -> str:
    if stated == "exact":
        return "Set --config.distillation.mixing=exact" + (
            "" if student.settings.mixes else " and switch the mixing on,"
        )
    return "Set --config.distillation.mixing=linear,"


def _fields(described: Mapping) -> dict:
    """The config's fields that the images follow from, by their names there."""
    about = {
        "augment.seed": described["augment_seed"],
        "augment.repeats": described["repeats"],
        "image size": described["size"],
    }
    augmentation = flatten_dict(described["augmentation"], sep=".")
    for name, value in augmentation.items():
        if name == "mix_off_view":  # follows from three of the config's fields
            about["augment.mix_off_epoch, epochs, num_views: unmixed from view"] = value
            continue
        section = "dataset" if name in ("mean", "std") else "augment"
        about[f"{section}.{name}"] = value
    return about


def check_examples(
    cache: TeacherCache, source, student: StudentViews, *, mixing: str
) -> None:
    """Makes the stored examples again and refuses a cache where they differ.

    Args:
      mixing: As of `resolve_mixing`.

    Raises:
      InputError: Says in how many images and pixels, and by how much.
    """
    if cache.manifest["views"]["view"] == "plain":
        return
    stored = cache.examples()
    seen = seen_by_teacher(student, mixing)
    ours = examples(seen, source, cache.num_views)
    export = "Export the cache anew with python -m teacher.export_logits."
    for name in ("view", "index", "partner", "share", "box"):
        theirs = stored.get(name)
        if not np.array_equal(theirs, ours[name]):
            shown = reprlib.repr(None if theirs is None else theirs.tolist())
            raise InputError(
                f"the teacher of {cache.directory} saw other pairs than this program "
                f"draws: {name} {shown} in the cache, "
                f"{ours[name].tolist()} here. {export}"
            )
    theirs = stored.get("image")
    if theirs is None or theirs.shape != ours["image"].shape:
        raise InputError(
            f"{cache.directory} keeps images of {getattr(theirs, 'shape', None)}, "
            f"this run has {ours['image'].shape}. {export}"
        )
    difference = np.abs(theirs.astype(np.int32) - ours["image"])
    if difference.any():
        images = difference.any(axis=(1, 2, 3)).sum()
        raise InputError(
            f"the teacher of {cache.directory} saw other pixels than this program "
            f"makes: {images} of {len(theirs)} images differ, in "
            f"{int(difference.any(axis=-1).sum()):,} pixels, by up to "
            f"{difference.max()} levels. The images are decoded or augmented "
            f"otherwise here than where the cache was made. {export}"
        )
