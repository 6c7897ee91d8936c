"""What the report says of its runs: the sections, from the figures of the runs."""

import itertools
from collections.abc import Callable, Sequence

from deit_jax.reporting import (
    classes,
    comparison,
    conclusions,
    examples,
    learning,
    results,
)
from deit_jax.reporting.document import NONE, Section, Table, Text
from deit_jax.reporting.runs import Group, config_differences


def sections(
    groups: Sequence[Group], *, images: int = 0, attention: bool = False
) -> list[Section]:
    """The whole report, without sections that no run has figures for.

    Args:
      images: How many evaluation images to show what the runs say of.
      attention: Whether to show what they look at in some of these.
    """
    parts = _comparable(groups)
    samples = {g: comparison.sample(g) for _, members in parts for g in members}
    shown = [
        examples.shown(
            members,
            label,
            f"_{place}" * bool(label),
            images=images,
            attention=attention,
        )
        for place, (label, members) in enumerate(parts, 1)
        if images
    ]
    found = [
        Section("Conclusions", _each(parts, conclusions.sentences, samples)),
        Section("Runs", _overview(groups)),
        Section("Results", results.scores(groups)),
        Section("Confidence", _each(parts, results.intervals, samples)),
        Section("The same images", list(itertools.chain(*shown))),
        Section("Every head, raw and EMA", results.every_head(groups)),
        Section("Learning curves", learning.curves(groups)),
        Section("Generalisation gap", learning.gaps(groups)),
        Section("Per-class F1", classes.by_data(groups, classes.per_class)),
        Section("Confusion matrices", classes.by_data(groups, classes.confusions)),
        Section("Calibration", classes.by_data(groups, classes.calibration)),
        Section("Student and teacher", learning.agreement(groups)),
        Section("Cost", _cost(groups)),
        Section("Differences of the configs", _differences(groups)),
        Section("Seeds, versions and teachers", _versions(groups)),
    ]
    return [section for section in found if section.blocks]


def _comparable(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    """The finished groups of each data set, and what to call it among others."""
    found: dict[tuple, list[Group]] = {}
    for g in groups:
        if g.finished and all(run.heads() for run in g.finished):
            names = g.finished[0].summary.get("class_names", ())
            found.setdefault((g.data, *names), []).append(g)
    several = len(found) > 1
    return [(f"{key[0]}: " * several, members) for key, members in found.items()]


def _each(parts, say: Callable, samples) -> list:
    blocks = [say(members, samples, label) for label, members in parts]
    return list(itertools.chain(*blocks))


def _overview(groups: Sequence[Group]) -> list:
    rows = []
    for g in groups:
        for run in g.runs:
            state = f"unfinished, at step {run.last_step:,}"
            if run.finished:
                steps = run.summary.get("steps", run.last_step)
                state = f"finished, {steps:,} steps"
            variant = run.config.get("model", {}).get("variant", NONE)
            rows.append([run.name, str(variant), run.data, state, str(run.seed)])
    table = Table(["run", "model", "data and splits", "state", "seed"], rows, 4)
    return [table, *_warnings(groups, [run for g in groups for run in g.runs])]


def _warnings(groups: Sequence[Group], runs) -> list[Text]:
    said = []
    if unfinished := [run.name for run in runs if not run.finished]:
        said.append(
            f"Unfinished: {', '.join(unfinished)}. The figures of such a run are those "
            "of its newest evaluation; they are never marked as the best, and are left "
            "out of means over seeds."
        )
    data = list(dict.fromkeys(g.data for g in groups))
    if len(data) > 1:
        said.append(
            f"The runs are of different data: {'; '.join(data)}. Only runs on the same "
            "data are compared: the best and the differences are within each."
        )
    if lacking := [run.name for run in runs if run.finished and not run.tables()]:
        said.append(
            "Without tables by class and by confidence in summary.json: "
            f"{', '.join(lacking)}. They were trained before these were written, or "
            "gave a logit that is not finite."
        )
    for run in runs:
        if absent := (run.summary or {}).get("absent_classes"):
            said.append(
                f"{run.name}: no images of {', '.join(absent[:20])}"
                f"{', ...' * (len(absent) > 20)} in the evaluation split. Macro "
                "averages are over the other classes."
            )
    seeds = [
        f"{g.name} stands for {', '.join(run.name for run in g.runs)}: one config, "
        f"{len(g.runs)} seeds."
        for g in groups
        if len(g.runs) > 1
    ]
    return [Text(text, warning=True) for text in said] + list(map(Text, seeds))


def _cost(groups: Sequence[Group]) -> list:
    rows, resumed = [], []
    for run in (run for g in groups for run in g.finished):
        facts = run.summary
        hours, rate = facts.get("seconds", 0) / 3600, facts.get("images_per_sec")
        flops, steps = facts.get("flops_per_image"), facts.get("steps", 0)
        training = 3 * (flops or 0) * steps * facts.get("batch_size", 0)
        if facts.get("resumed_at_step"):
            resumed.append(run.name)
        rows.append(
            [
                run.name,
                f"{facts['parameters'] / 1e6:,.2f}" if "parameters" in facts else NONE,
                f"{flops / 1e9:,.3f}" if flops else NONE,
                f"{training / 1e15:.3g}" if training else NONE,
                f"{rate:,.0f}" if rate else NONE,
                f"{hours:,.3f}" + ("*" if facts.get("resumed_at_step") else ""),
                _devices(facts),
            ]
        )
    if not rows:
        return []
    header = ["run", "million parameters", "GFLOPs an image", "PFLOPs of training"]
    header += ["images/s", "hours", "devices"]
    text = (
        "FLOPs are those of the matrix products in the forward pass, two for each "
        "multiplication with its addition; training is taken as three times that for "
        "every image seen, without the teacher. Images/s is the median between log "
        "lines; hours include evaluation."
    )
    if resumed:
        text += (
            f" * Resumed ({', '.join(resumed)}): the hours are those of the last part."
        )
    return [Table(header, rows), Text(text)]


def _devices(facts: dict) -> str:
    devices = facts.get("devices") or []
    kinds = dict.fromkeys(devices)
    return ", ".join(f"{devices.count(kind)} x {kind}" for kind in kinds) or NONE


def _differences(groups: Sequence[Group]) -> list:
    if len(groups) == 1:
        return []
    found = config_differences(groups)
    if not found:
        return [Text("None but the seed.")]
    rows = [[field, *map(_show, values)] for field, values in found.items()]
    header = ["field", *(g.name for g in groups)]
    return [Table(header, rows, labels=len(header))]


def _show(value) -> str:
    return NONE if value is None or value == "" else str(value)


def _versions(groups: Sequence[Group]) -> list:
    runs = [run for g in groups for run in g.runs]
    programs = dict.fromkeys(
        name for run in runs for name in (run.summary or {}).get("versions", {})
    )
    rows = []
    for run in runs:
        facts = run.summary or {}
        versions = [str(facts.get("versions", {}).get(p, NONE)) for p in programs]
        about = NONE
        if teacher := facts.get("teacher"):
            about = (
                f"{teacher.get('arch')}, top-1 {100 * teacher.get('top1', 0):.2f} % on "
                f"{teacher.get('top1_split')}"
            )
        seeds = [str(run.seed), _show(run.config.get("augment", {}).get("seed"))]
        rows.append([run.name, *seeds, *versions, about])
    header = ["run", "seed", "augmentation seed", *programs, "teacher"]
    return [Table(header, rows, labels=len(header))]
