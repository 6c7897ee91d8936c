"""What distillation and augmentation are worth, where configs differ in just that."""

import statistics

from deit_jax.errors import joined
from deit_jax.reporting.comparison import METRICS, PERCENT, difference
from deit_jax.reporting.runs import Group, config_differences

# Fields of a config that change no figure: what is written, and how fast.
IMMATERIAL = (
    "checkpoint.",
    "dataset.data_dir",
    "dataset.on_device",
    "dataset.workers",
    "distillation.logits_dir",
    "distributed.",
    "eval.",
    "log.",
    "steps_per_dispatch",
)
# How a teacher sees what the student sees; it goes with the augmentation.
TEACHING = ("distillation.view", "distillation.num_views", "distillation.mixing")


def effect(a: Group, b: Group) -> list[tuple[str, str]]:
    """What changes from `a` to `b`, which alone of the two distils, or augments."""
    kind = changed(a, b)
    if kind is None:
        return []
    said, unsure = [], []
    for name, title, *_ in METRICS:
        title = title.removesuffix(" %")
        found = difference(b, a, name)
        if found is None or found.value == 0:
            continue
        change, interval = found.shown(name, sign="+")
        if name in PERCENT:
            change += " points"
        if found.could_be_chance:
            unsure.append(f"{title} ({change})")
        else:
            said.append(f"{title} {change} ({interval})")
    how = f"({b.setting('distillation', 'kind')})"
    if kind == "augmentation":
        how = f"(recipe {b.setting('augment', 'recipe')})"
    text = f"{b.name} differs from {a.name} in {kind} {how} alone."
    if said:
        text += f" With it: {joined(said)}."
    if unsure:
        text += f" What could be chance: {joined(unsure)}."
    return [(kind.capitalize(), text + (_teacher(b) if kind == "distillation" else ""))]


def changed(a: Group, b: Group) -> str | None:
    """`distillation` or `augmentation`, where `b` has it, `a` has not, and no more."""
    fields = {
        field: values
        for field, values in config_differences([a, b]).items()
        if not field.startswith(IMMATERIAL)
    }
    bodies = map(str, fields.get("model.variant", ()))
    if len({v.replace("_distilled", "").replace("deit_", "vit_") for v in bodies}) == 1:
        del fields["model.variant"]  # the same but for the token
    taught, augmented = (
        [g.setting(*field) for g in (a, b)]
        for field in (("distillation", "kind"), ("augment", "recipe"))
    )
    if taught[0] == "none" != taught[1]:
        alone = all(field.startswith("distillation.") for field in fields)
        return "distillation" if alone else None
    if augmented[0] == "none" != augmented[1] and taught[0] == taught[1]:
        alone = all(field.startswith(("augment.", *TEACHING)) for field in fields)
        return "augmentation" if alone else None
    return None


def _teacher(b: Group) -> str:
    """How far the student is from its teacher, where both saw the same split."""
    facts = b.finished[0].summary
    teacher = facts.get("teacher") or {}
    top1, split = teacher.get("top1"), teacher.get("top1_split")
    if top1 is None or split is None or split != facts.get("eval_split"):
        return ""
    student = statistics.fmean(run.heads()[run.head]["top1"] for run in b.finished)
    points = 100 * (student - top1)
    where = "above" if points > 0 else "below"
    return (
        f" Its teacher, {teacher.get('arch')}, has a top-1 of {100 * top1:.2f} % "
        f"there: {b.name} is {abs(points):.2f} points {where}."
    )
