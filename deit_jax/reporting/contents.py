"""What the report says of its runs: the sections, from the figures of the runs."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

from deit_jax.errors import listed
from deit_jax.reporting import classes, conclusions, examples, learning, results
from deit_jax.reporting.document import NONE, Image, Section, Table, Text
from deit_jax.reporting.runs import Group, Run, config_differences

Parts = list[tuple[str, list[Group]]]


def sections(
    groups: Sequence[Group], *, images: int = 0, attention: bool = False
) -> list[Section]:
    """The whole report, without sections that no run has figures for.

    Runs on different data are never compared: each data set has sections of its own.

    Args:
      images: How many evaluation images to show what the runs say of.
      attention: Whether to show what they look at in some of these.
    """
    parts = _by_data(groups)
    finished = [(data, [g for g in members if g.finished]) for data, members in parts]
    shown = functools.partial(examples.shown, images=images, attention=attention)
    found = [
        *_each("Conclusions", conclusions.points, finished),
        Section("Runs", _overview(groups)),
        *_each("Results", results.scores, parts),
        *_each("Confidence", results.intervals, finished),
        *_each("The same images", shown, finished if images else []),
        *_each("Every head, raw and EMA", results.every_head, parts),
        *_each("Learning curves", learning.curves, parts),
        *_each("Generalisation gap", learning.gaps, parts),
        *_each("Per-class F1", classes.per_class, parts),
        *_each("Confusion matrices", classes.confusions, parts),
        *_each("Calibration", classes.calibration, parts),
        *_each("Student and teacher", learning.agreement, parts),
        Section("Cost", _cost(groups)),
        Section("Differences of the configs", _differences(groups)),
    ]
    return [section for section in found if section.blocks]


def _by_data(groups: Sequence[Group]) -> Parts:
    """The groups of each data set; one that has other classes now is another."""
    known = {g.data: g.class_names for g in reversed(groups) if g.class_names}
    parts: dict[tuple, list[Group]] = {}
    for g in groups:
        names = g.class_names or known.get(g.data, [])
        parts.setdefault((g.data, *names), []).append(g)
    return [(data, members) for (data, *_), members in parts.items()]


def _each(title: str, make: Callable, parts: Parts) -> Iterator[Section]:
    """A section for each data set, which its title and images name among others."""
    for place, (data, members) in enumerate(parts, 1):
        blocks = make(members) if members else []
        if len(parts) == 1:
            yield Section(title, blocks)
            continue
        renamed = [
            dataclasses.replace(block, name=f"{block.name}_{place}")
            if isinstance(block, Image)
            else block
            for block in blocks
        ]
        yield Section(f"{title}: {data}", renamed)


def _overview(groups: Sequence[Group]) -> list:
    rows = [_run_row(g, run) for g in groups for run in g.runs]
    header = ["run", "model", "data and splits", "state", "seed", "augmentation seed"]
    header += ["teacher", "versions"]
    return [Table(header, rows, labels=len(header)), *_warnings(groups)]


def _run_row(g: Group, run: Run) -> list[str]:
    facts = run.summary or {}
    state = f"unfinished, at step {run.last_step:,}"
    if run.finished:
        state = f"finished, {facts.get('steps', run.last_step):,} steps"
    about = NONE
    if teacher := facts.get("teacher"):
        top1 = f"{100 * teacher.get('top1', 0):.2f} %"
        about = f"{teacher.get('arch')}, top-1 {top1} on {teacher.get('top1_split')}"
    versions = [f"{program} {v}" for program, v in facts.get("versions", {}).items()]
    return [
        run.name,
        g.setting("model", "variant"),
        g.data,
        state,
        str(run.seed),
        g.setting("augment", "seed"),
        about,
        ", ".join(versions) or NONE,
    ]


def _warnings(groups: Sequence[Group]) -> list[Text]:
    runs, said = [run for g in groups for run in g.runs], []
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
            "data are compared."
        )
    if lacking := [run.name for run in runs if run.finished and not run.tables]:
        said.append(
            "Without tables by class and by confidence in summary.json: "
            f"{', '.join(lacking)}. They were trained before these were written, or "
            "gave a logit that is not finite."
        )
    for run in runs:
        if absent := (run.summary or {}).get("absent_classes"):
            said.append(
                f"{run.name}: no images of {listed(absent)} in the evaluation split. "
                "Macro averages are over the other classes."
            )
    seeds = [
        Text(
            f"{g.name} stands for {', '.join(run.name for run in g.runs)}: one config, "
            f"{len(g.runs)} seeds."
        )
        for g in groups
        if len(g.runs) > 1
    ]
    return [*(Text(text, warning=True) for text in said), *seeds]


def _cost(groups: Sequence[Group]) -> list:
    rows = []
    for run in (run for g in groups for run in g.finished):
        facts = run.summary
        flops, devices = facts.get("flops_per_image") or 0, facts.get("devices", [])
        images = facts.get("steps", 0) * facts.get("batch_size", 0)
        amounts = [
            (facts.get("parameters", 0) / 1e6, ",.2f"),
            (flops / 1e9, ",.3f"),
            (3 * flops * images / 1e15, ".3g"),
            (facts.get("images_per_sec"), ",.0f"),
        ]
        kinds = ", ".join(f"{devices.count(k)} x {k}" for k in dict.fromkeys(devices))
        rows.append(
            [
                run.name,
                *(format(x, digits) if x else NONE for x, digits in amounts),
                f"{facts.get('seconds', 0) / 3600:,.3f}",
                kinds or NONE,
            ]
        )
    if not rows:
        return []
    header = ["run", "million parameters", "GFLOPs an image", "PFLOPs of training"]
    text = (
        "FLOPs are those of the matrix products in the forward pass, two for each "
        "multiplication with its addition; training is taken as three times that for "
        "every image seen, without the teacher. Images/s is the median between log "
        "lines; hours include evaluation."
    )
    return [Table([*header, "images/s", "hours", "devices"], rows), Text(text)]


def _differences(groups: Sequence[Group]) -> list:
    if len(groups) == 1:
        return []
    rows = [
        [field, *(NONE if value in (None, "") else str(value) for value in values)]
        for field, values in config_differences(groups).items()
    ]
    header = ["field", *(g.name for g in groups)]
    return [Table(header, rows, labels=len(header))]
