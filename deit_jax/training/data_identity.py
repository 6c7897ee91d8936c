"""What a run was trained on, by content: a checkpoint belongs to its data."""

import textwrap
from collections.abc import Mapping, Sequence

from deit_jax.errors import InputError

SPLITS = {"train": "training", "eval": "evaluation"}
# Fields of a config that only say where the data lie: their contents decide.
PLACES = ("dataset.name", "dataset.data_dir", "distillation.logits_dir")


def describe(train_source, eval_source, teacher_digest: str | None) -> dict:
    """The record of a run's data, for JSON.

    Returns:
      `train` and `eval`, each {fingerprint, order, images, class_names}, and `teacher`,
      the digest of its cache or None.
    """
    record: dict = {"teacher": teacher_digest}
    for name, source in (("train", train_source), ("eval", eval_source)):
        record[name] = {
            "fingerprint": source.fingerprint,
            "order": getattr(source, "order", None),
            "images": len(source),
            "class_names": list(source.class_names),
        }
    return record


def check(saved: Mapping, ours: Mapping, *, where: str) -> list[str]:
    """Refuses to resume a run on other data.

    Files that were changed in their places, such as a damaged image that was replaced,
    shift no label: they are noted and not refused.

    Args:
      saved: `describe` of the run in `where`.
      ours: `describe` of what this start has opened.

    Returns:
      Notes for the user.

    Raises:
      InputError: Says in words what has changed, and what can be done.
    """
    repaired = [
        split
        for split in SPLITS
        if saved[split]["fingerprint"] != ours[split]["fingerprint"]
        and saved[split].get("order") == ours[split]["order"] is not None
    ]
    changes = [
        change
        for split in SPLITS
        if split not in repaired
        for change in _changes(split, saved[split], ours[split])
    ]
    if not changes and saved["teacher"] != ours["teacher"]:
        changes = ["the teacher's cache holds other logits"]
    if changes:
        raise InputError(
            f"{where} holds a run on other data:\n"
            + "\n".join(f"  {change}" for change in dict.fromkeys(changes))
            + "\nRestore the data to resume it. To train on these, give another "
            f"--workdir; with --config.init_from={where} it starts from this model."
        )
    return [
        f"{SPLITS[split]} images were changed in their places since the run was saved; "
        "it goes on with them as they are"
        for split in repaired
    ]


def _changes(split: str, theirs: Mapping, ours: Mapping) -> list[str]:
    if theirs["fingerprint"] == ours["fingerprint"]:
        return []
    before, now = theirs["class_names"], ours["class_names"]
    removed = [name for name in before if name not in now]
    added = [name for name in now if name not in before]
    changes = []
    if removed and len(removed) == len(added) and theirs["images"] == ours["images"]:
        changes.append(f"classes renamed: {_names(removed)} -> {_names(added)}")
    else:
        changes += [f"classes removed: {_names(removed)}"] if removed else []
        changes += [f"classes added: {_names(added)}"] if added else []
    if not changes and before != now:
        changes.append("the classes are in another order")
    if difference := ours["images"] - theirs["images"]:
        what = "added" if difference > 0 else "removed"
        changes.append(
            f"{SPLITS[split]} images: {theirs['images']:,} -> {ours['images']:,} "
            f"({abs(difference):,} {what})"
        )
    return changes or [
        f"{SPLITS[split]} images: as many as before, but other files, names or labels"
    ]


def _names(names: Sequence[str]) -> str:
    return textwrap.shorten(", ".join(names), 200, placeholder=" ...")
