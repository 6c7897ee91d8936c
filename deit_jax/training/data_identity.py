"""What a run was trained on, by content: a checkpoint belongs to its data."""

import hashlib
import os
from collections.abc import Mapping

from deit_jax.errors import InputError, listed

SPLITS = {"train": "training", "eval": "evaluation"}
# Fields of a config that only say where the data lie: their contents decide.
PLACES = (
    "dataset.name",
    "dataset.data_dir",
    "distillation.logits_dir",
    "distillation.teacher",
)
LIVE = "live: "  # before what a teacher is that is asked in the train step


def describe(train_source, eval_source, teacher_digest: str | None) -> dict:
    """The record of a run's data, for JSON: of `train` and `eval`, and the `teacher`.

    `order` and `firsts` (a digest of each class's first file) are empty where no order
    is known without the contents.
    """
    splits = {
        name: {
            "fingerprint": source.fingerprint,
            "order": getattr(source, "order", None),
            "images": len(source),
            "class_names": list(source.class_names),
            "firsts": _firsts(source),
        }
        for name, source in (("train", train_source), ("eval", eval_source))
    }
    return {"teacher": teacher_digest, **splits}


def _firsts(source) -> list[str]:
    """The start of the SHA-256 (hex) of each class's first file by name."""
    if getattr(source, "order", None) is None:
        return []
    files: dict[int, tuple[str, int]] = {}
    for index, label in enumerate(source.labels.tolist()):
        named = os.path.basename(source.where(index)), index
        files[label] = min(named, files.get(label, named))
    indices = [index for _, (_, index) in sorted(files.items())]
    read = source.records.read(indices)
    return [hashlib.sha256(encoded).hexdigest()[:16] for encoded, _ in read]


def check(saved: Mapping, ours: Mapping, *, where: str) -> list[str]:
    """Refuses to resume a run on other data; `saved` and `ours` as of `describe`.

    Files that were changed in their places, such as a damaged image that was replaced,
    shift no label: they are noted and not refused.

    Returns:
      Notes for the user.
    """
    changes, notes = [], []
    for split, word in SPLITS.items():
        theirs, mine = saved[split], ours[split]
        if theirs["fingerprint"] == mine["fingerprint"]:
            continue
        exchanged = _exchanged(theirs, mine)
        if theirs["order"] == mine["order"] is not None and not exchanged:
            notes.append(
                f"{word} images were changed in their places since the run was saved; "
                "it goes on with them as they are"
            )
            continue
        changes += [*_changes(word, theirs, mine), *exchanged] or [
            f"{word} images: as many as before, but other files, names or labels"
        ]
    changes = changes or _of_teacher(saved["teacher"], ours["teacher"])
    if changes:
        raise InputError(
            f"{where} holds a run on other data:\n"
            + "\n".join(f"  {change}" for change in dict.fromkeys(changes))
            + "\nRestore the data to resume it. To train on these, give another "
            f"--workdir; with --config.init_from={where} it starts from this model."
        )
    return notes


def _exchanged(theirs: Mapping, ours: Mapping) -> list[str]:
    """What is wrong where files have the names that they had, and other contents."""
    before, now = theirs["firsts"], ours["firsts"]
    if len(before) != len(now) or theirs["class_names"] != ours["class_names"]:
        return []
    changed = [c for c, (a, b) in enumerate(zip(before, now, strict=True)) if a != b]
    names = [ours["class_names"][c] for c in changed]
    if any(now[c] in before for c in changed):
        return [f"images are in the folders of other classes: {listed(names)}"]
    if 2 * len(changed) > len(now):
        return [f"files of the same names hold other images: {listed(names)}"]
    return []


def _of_teacher(theirs: str | None, ours: str | None) -> list[str]:
    """What is wrong with the teacher; another kind of one is another config."""
    live = [bool(digest) and digest.startswith(LIVE) for digest in (theirs, ours)]
    if theirs == ours or live[0] != live[1]:
        return []
    if live[0]:
        return [f"another live teacher: {theirs} -> {ours}".replace(LIVE, "")]
    return ["the teacher's cache holds other logits"]


def _changes(word: str, theirs: Mapping, ours: Mapping) -> list[str]:
    """What has changed in classes and numbers of a split."""
    before, now = theirs["class_names"], ours["class_names"]
    removed = [name for name in before if name not in now]
    added = [name for name in now if name not in before]
    changes = []
    if removed and len(removed) == len(added) and theirs["images"] == ours["images"]:
        changes.append(f"classes renamed: {listed(removed)} -> {listed(added)}")
    else:
        changes += [f"classes removed: {listed(removed)}"] if removed else []
        changes += [f"classes added: {listed(added)}"] if added else []
    if not changes and before != now:
        changes.append("the classes are in another order")
    if difference := ours["images"] - theirs["images"]:
        what = "added" if difference > 0 else "removed"
        changes.append(
            f"{word} images: {theirs['images']:,} -> {ours['images']:,} "
            f"({abs(difference):,} {what})"
        )
    return changes
