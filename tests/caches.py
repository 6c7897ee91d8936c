"""Teacher caches without a teacher: random logits, or those of one who knows all."""

import json
import os

import numpy as np

from deit_jax.data.augment.recipes import Augmentation
from deit_jax.data.plan import view_pairs
from deit_jax.data.student_views import StudentViews
from deit_jax.distillation import cache_format, cache_writer, match
from deit_jax.distillation.teacher import Answers

LENGTH, CLASSES = 30, 10
TEACHER = {
    "arch": "resnet50",
    "weights_sha256": "0",
    "top1": None,
    "top1_split": "test",
}
SEEN = StudentViews(augment_seed=0, repeats=1, size=32, settings=Augmentation())
EXAMPLES = {"image": np.arange(24).reshape(2, 2, 2, 3), "view": np.array([0, 1])}
TOP_K = {"top_k": 3, "tau": 3.0}


def manifest_for(source, views=None, logits=None, **teacher):
    """The manifest of a plain cache, or of one with `views` views."""
    return {
        "source": cache_format.describe_source(source),
        "views": match.describe(
            "same" if views else "plain", views or 1, SEEN if views else None
        ),
        "logits": logits or {"top_k": None, "tau": None},
        "teacher": TEACHER | teacher,
    }


def example_logits(views=1):
    rng = np.random.default_rng(0)
    return rng.normal(size=(views, LENGTH, CLASSES)).astype(np.float16)


def write(directory, source, views=None, logits=None, chunk=7, only=None, **teacher):
    """Writes what is missing of a cache, as one start of an export does."""
    manifest = manifest_for(source, views, logits, **teacher)
    done = cache_writer.checksums(directory, manifest)
    for view in range(views or 1) if only is None else only:
        if done[view] is not None:
            continue
        writer = cache_writer.ViewWriter(
            directory, view, manifest, top1=None if view else [0.9]
        )
        for start in range(writer.entries_done, LENGTH, chunk):
            index = np.arange(start, min(start + chunk, LENGTH))
            logits = example_logits(20)[view, index].astype(np.float32)
            writer.append(Answers(logits), index)
        writer.finish()
    if None not in cache_writer.checksums(directory, manifest):
        cache_writer.set_top1(manifest, cache_writer.measured_top1(directory, manifest))
        cache_writer.finish(directory, manifest, EXAMPLES if views else None)
    return directory


def write_oracle(directory, source):
    """One plain view of `source`, with a logit of 5 for the right class, else 0."""
    manifest = manifest_for(source, arch="oracle")
    writer = cache_writer.ViewWriter(directory, 0, manifest)
    logits = 5 * np.eye(source.num_classes)[source.labels]
    writer.append(Answers(logits), np.arange(len(source)))
    writer.finish()
    manifest["teacher"]["top1"] = 1.0
    cache_writer.finish(directory, manifest, None)


def edit_manifest(directory, edit):
    path = directory / cache_format.MANIFEST
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def without_waiting_for_the_disk(monkeypatch):
    """A killed process loses nothing by it, and it would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(np.memmap, "flush", lambda array: None)


def write_views(directory, source, seen, count, answer, **teacher):
    """`count` views of `source`, with the `answer`(images) for each image."""
    manifest = manifest_for(source, **teacher)
    manifest["views"] = match.describe("same", count, seen)
    with seen.read_few(source) as opened:
        for view in range(count):
            index = view_pairs(seen.augment_seed, view, len(source), seen.repeats)
            index = index.reshape(-1)
            [(images, _)] = seen.replay(opened, [(index, np.full_like(index, view))])
            answers = Answers(*answer(images))
            if answers.features is not None:
                manifest["logits"]["features"] = answers.features.shape[1]
            writer = cache_writer.ViewWriter(directory, view, manifest, top1=[0.9])
            writer.append(answers, index)
            writer.finish()
    manifest["teacher"]["top1"] = 0.9
    cache_writer.finish(directory, manifest, match.examples(seen, source, count))
