"""The format of a teacher cache: a directory with a file a view, readable with NumPy.

    manifest.json      what the logits belong to; written last, so that a directory
                       without it is not a cache
    view-000.npy ...   float16 [N, C], the logits of all images in a view
    examples-020.npz   eight images that the teacher saw, of a cache of 20 views (`view`
                       is `same`)

For many classes the K largest logits of each row can stand for all of them. Then a view
has, in place of view-000.npy,

    view-000-indices.npy   uint16 or uint32 [N, K], their classes, the largest first
    view-000-values.npy    float16 [N, K]
    view-000-tails.npy     float32 [N, 2], the probability of all other classes at
                           temperature 1 and at that of the export (one does not follow
                           from the other); the classes are taken to share it evenly

and beside either, of a cache for `distillation.kind=features`,

    view-000-features.npy  float16 [N, F], what the teacher's last linear layer reads

The manifest:

    format_version  3
    sha256          [{file: SHA-256}], one object a view
    source          {name, split, length, num_classes, class_names, fingerprint}
    views           {count, view, mixing, augment_seed, repeats, size, augmentation}:
                    `view` is what the teacher saw, `plain` (one view, the image
                    without augmentation; the fields from augment_seed on are null) or
                    `same` (what the student sees); `mixing` is `exact` (MixUp and
                    CutMix too) or `none`
    logits          {top_k, tau}, null where all logits are there; and with features
                    their number, {features}
    examples_sha256 SHA-256 of the examples, or null
    teacher         {arch, stem, weights_sha256, image_size, mean, std, crop_ratio,
                    precision, backend, top1, top1_split}; `crop_ratio` is that of
                    `deit_jax.data.crops.centre_view`, null where images of one size
                    were seen whole; `backend` is `torch` (also where it is missing) or
                    `jax`. Of several teachers {arch, tau, teachers, precision, backend,
                    top1, top1_split}: their probabilities at the temperature `tau` are
                    averaged, and `teachers` says of each what is its own

`cache_writer` writes a cache, and `teacher_cache` reads it.
"""

from collections.abc import Mapping
from pathlib import Path

from deit_jax import files
from deit_jax.distillation.encoding import Encoding
from deit_jax.errors import InputError

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
VIEWS = ("same", "plain")
MIXINGS = ("exact", "linear", "none")
AGAIN = "Export it again with python -m teacher.export_logits."
# Of the manifest, for `files.check`.
MAYBE_INT = (int, files.NULL)
FIELDS = {
    "source": {
        "name": str,
        "split": str,
        "length": int,
        "num_classes": int,
        "class_names": [str],
        "fingerprint": str,
    },
    "views": {
        "count": int,
        "view": str,
        "mixing": str,
        "augment_seed": MAYBE_INT,
        "repeats": MAYBE_INT,
        "size": MAYBE_INT,
        "augmentation": (dict, files.NULL),
    },
    "logits": {"top_k": MAYBE_INT, "tau": (float, files.NULL)},
    "sha256": [{...: str}],
    "examples_sha256": (str, files.NULL),
    "teacher": {"arch": str, "top1": float, "top1_split": str},
}
SEVERAL = {"tau": float, "teachers": [{"arch": str, "top1": float}]}


def describe_source(source) -> dict:
    """The manifest's `source` section."""
    return {
        "name": source.name,
        "split": source.split,
        "length": len(source),
        "num_classes": source.num_classes,
        "class_names": list(source.class_names),
        "fingerprint": source.fingerprint,
    }


def view_file(view: int, array: str) -> str:
    """The file of an array of `Encoding.arrays` in a view."""
    return (
        f"view-{view:03d}.npy" if array == "logits" else f"view-{view:03d}-{array}.npy"
    )


def examples_file(count: int) -> str:
    """The file of the examples of a cache of `count` views."""
    return f"examples-{count:03d}.npz"


def encoding_of(manifest: Mapping) -> Encoding:
    """How a manifest says that its rows are stored."""
    about = manifest["logits"]
    return Encoding(
        manifest["source"]["num_classes"],
        about["top_k"],
        about["tau"],
        about.get("features", 0),
    )


def read_manifest(directory: Path) -> dict:
    """The manifest of a finished cache.

    Raises:
      InputError: It is damaged, contradicts itself, or is of another format.
    """
    path = directory / MANIFEST
    try:
        manifest = files.read_json(path)
        files.check(manifest, {"format_version": int})
        version = manifest["format_version"]
        if version == FORMAT_VERSION:
            _check_manifest(manifest)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a manifest of a teacher cache ({error}). {AGAIN}"
        ) from error
    if version != FORMAT_VERSION:
        raise InputError(
            f"{directory} has cache format {version}, this program reads "
            f"{FORMAT_VERSION}. {AGAIN}"
        )
    return manifest


def _check_manifest(manifest: Mapping) -> None:
    """Raises ValueError for a manifest that no export has written."""
    files.check(manifest, FIELDS)
    if "teachers" in manifest["teacher"]:
        files.check(manifest["teacher"], SEVERAL)
    source, views = manifest["source"], manifest["views"]
    least = [views["count"], source["length"], source["num_classes"]]
    if views["view"] == "same":
        if None in views.values():
            raise ValueError("what the teacher saw is null")
        least += [views["repeats"], views["size"]]
    if min(least) < 1:
        raise ValueError(f"one of views, images, classes {least} is less than 1")
    if len(source["class_names"]) != source["num_classes"]:
        raise ValueError(f"{len(source['class_names'])} names of classes")
    if views["view"] not in VIEWS or views["mixing"] not in ("exact", "none"):
        raise ValueError(f"views {views['view']!r}, mixing {views['mixing']!r}")
    expected = [
        {view_file(view, name) for name in encoding_of(manifest).arrays}
        for view in range(views["count"])
    ]
    if [set(checksums) for checksums in manifest["sha256"]] != expected:
        raise ValueError(f"its files are not those of {views['count']} views")
