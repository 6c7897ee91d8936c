"""What the report says of its runs: the sections, from the figures of the runs."""

import collections
import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from deit_jax.reporting import figures
from deit_jax.reporting.document import Cell, Picture, Section, Table, Text
from deit_jax.reporting.figures import Line, Panel
from deit_jax.reporting.runs import Group, Run, config_differences

# Name, title, whether more is better, and digits; the accuracies are in percent.
METRICS = (
    ("top1", "top-1 %", True, 2),
    ("top5", "top-5 %", True, 2),
    ("precision", "precision", True, 4),
    ("recall", "recall", True, 4),
    ("f1", "F1", True, 4),
    ("auc", "AUC", True, 4),
    ("ece", "ECE", False, 4),
    ("loss", "NLL", False, 4),
)
WEIGHTS = (("eval", "raw"), ("eval_ema", "EMA"))
MOST_CLASSES = 30  # that the table and the picture of F1 have room for
NONE = "-"


def sections(groups: Sequence[Group]) -> list[Section]:
    """The whole report, without sections that no run has figures for."""
    found = [
        Section("Runs", _overview(groups)),
        Section("Results", _results(groups)),
        Section("Every head, raw and EMA", _heads(groups)),
        Section("Learning curves", _curves(groups)),
        Section("Generalisation gap", _gaps(groups)),
        Section("Per-class F1", _by_data(groups, _per_class)),
        Section("Confusion matrices", _by_data(groups, _confusions)),
        Section("Calibration", _by_data(groups, _calibration)),
        Section("Student and teacher", _agreement(groups)),
        Section("Cost", _cost(groups)),
        Section("Differences of the configs", _differences(groups)),
        Section("Seeds, versions and teachers", _versions(groups)),
    ]
    return [section for section in found if section.blocks]


def _overview(groups: Sequence[Group]) -> list:
    runs = [run for g in groups for run in g.runs]
    rows = []
    for g in groups:
        for run in g.runs:
            facts = run.summary or {}
            done = (
                f"finished, {facts.get('steps', run.last_step):,} steps"
                if run.finished
                else f"unfinished, at step {run.last_step:,}"
            )
            rows.append(
                [
                    run.name,
                    str(run.config.get("model", {}).get("variant", NONE)),
                    run.data,
                    done,
                    str(run.seed),
                ]
            )
    blocks = [Table(["run", "model", "data and splits", "state", "seed"], rows, 4)]
    if unfinished := [run.name for run in runs if not run.finished]:
        blocks.append(
            Text(
                f"Unfinished: {', '.join(unfinished)}. The figures of such a run are "
                "those of its newest evaluation; they are never marked as the best, "
                "and are left out of means over seeds.",
                warning=True,
            )
        )
    data = list(dict.fromkeys(g.data for g in groups))
    if len(data) > 1:
        blocks.append(
            Text(
                f"The runs are of different data: {'; '.join(data)}. Only runs on the "
                "same data are compared: the best and the differences are within "
                "each.",
                warning=True,
            )
        )
    lacking = [run.name for run in runs if run.finished and not run.tables()]
    if lacking:
        blocks.append(
            Text(
                f"Without tables by class and by confidence in summary.json: "
                f"{', '.join(lacking)}. They were trained before these were written, "
                "or gave a logit that is not finite.",
                warning=True,
            )
        )
    for run in runs:
        if absent := (run.summary or {}).get("absent_classes"):
            blocks.append(
                Text(
                    f"{run.name}: no images of {', '.join(absent[:20])}"
                    f"{', ...' * (len(absent) > 20)} in the evaluation split. Macro "
                    "averages are over the other classes.",
                    warning=True,
                )
            )
    several = [g for g in groups if len(g.runs) > 1]
    for g in several:
        names = ", ".join(run.name for run in g.runs)
        blocks.append(
            Text(f"{g.name} stands for {names}: one config, {len(g.runs)} seeds.")
        )
    return blocks


def _results(groups: Sequence[Group]) -> list:
    header = ["run", *(title for _, title, _, _ in METRICS)]
    entries = [(g, _values(g, "eval", g.head)) for g in groups]
    blocks = [
        Text(
            "At the last step, on the whole evaluation split, with the raw parameters "
            "and the head that the model predicts with (the mean of both heads' logits "
            "where there are two). Nothing was selected on this split. Bold is best; "
            "small print has the difference to the first run on the same data."
            + (
                " Several seeds are their mean, ± their standard deviation."
                if any(len(g.counted) > 1 for g in groups)
                else ""
            )
        ),
        Table(header, _rows(entries, [[_label(g)] for g in groups])),
    ]
    if any(len(g.runs) > 1 for g in groups):
        single = [Group(run.name, [run]) for g in groups for run in g.runs]
        entries = [(g, _values(g, "eval", g.head)) for g in single]
        blocks += [
            Text("Every run by itself:"),
            Table(header, _rows(entries, [[_label(g)] for g in single])),
        ]
    images = {
        run.summary["eval_images"]
        for g in groups
        for run in g.finished
        if run.summary.get("eval_images")
    }
    for count in sorted(images):
        # Of a proportion: the largest at 50 %, and at 95 % less than half of that.
        error = 100 * math.sqrt(0.95 * 0.05 / count)
        blocks.append(
            Text(
                f"With {count:,} images, a top-1 of 95 % has a standard error of "
                f"{error:.2f} points: much smaller differences say nothing."
            )
        )
    return blocks


def _label(g: Group) -> str:
    if g.finished:
        return g.name
    return f"{g.name} (unfinished, step {max(run.last_step for run in g.runs):,})"


def _heads(groups: Sequence[Group]) -> list:
    entries, labels = [], []
    for g in groups:
        for key, weights in WEIGHTS:
            for head in g.counted[0].heads(key):
                entries.append((g, _values(g, key, head)))
                labels.append([_label(g), weights, head])
    if len(entries) == len(groups):
        return []  # nothing that the table of results does not say
    header = ["run", "weights", "head", *(title for _, title, _, _ in METRICS)]
    return [Table(header, _rows(entries, labels, differences=False), 3)]


def _values(g: Group, weights: str, head: str) -> dict[str, list[float]]:
    """Of every metric, a value for each counted run."""
    found = {}
    for name, *_ in METRICS:
        values = [run.heads(weights).get(head, {}).get(name) for run in g.counted]
        scale = 100 if name in ("top1", "top5") else 1
        if all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            found[name] = [scale * value for value in values]
    return found


def _rows(
    entries: Sequence[tuple[Group, dict[str, list[float]]]],
    labels: Sequence[list[str]],
    *,
    differences: bool = True,
) -> list[list[Cell | str]]:
    """Mean and deviation of every metric, the best bold, differences to the first."""
    rows = [list(label) for label in labels]
    for name, _, more_is_better, digits in METRICS:
        # As shown, so that what looks equal is equally good.
        means = [
            round(statistics.fmean(values[name]), digits) if name in values else None
            for _, values in entries
        ]
        best, first, rivals = {}, {}, collections.Counter()
        for (g, _), mean in zip(entries, means, strict=True):
            if mean is None:
                continue
            first.setdefault(g.data, mean)
            if g.finished:
                better = max if more_is_better else min
                best[g.data] = better(best.get(g.data, mean), mean)
                rivals[g.data] += 1
        seen = set()
        for row, (g, values), mean in zip(rows, entries, means, strict=True):
            if mean is None:
                row.append(NONE)
                continue
            notes = []
            if len(values[name]) > 1:
                notes.append(f"± {statistics.stdev(values[name]):.{digits}f}")
            if differences and g.data in seen:
                notes.append(f"{mean - first[g.data]:+.{digits}f}")
            seen.add(g.data)
            is_best = bool(g.finished) and mean == best[g.data] and rivals[g.data] > 1
            row.append(Cell(f"{mean:.{digits}f}", is_best, ", ".join(notes)))
    return rows


def _curves(groups: Sequence[Group]) -> list:
    x = _x_axis(groups)
    panels = []
    pairs = [("loss", "NLL"), ("top1", "top-1 accuracy"), ("top5", "top-5 accuracy")]
    pairs += [("f1", "macro F1"), ("precision", "macro precision")]
    pairs += [("recall", "macro recall"), ("auc", "one-vs-rest AUC")]
    pairs += [("ece", "expected calibration error")]
    trained = {"loss": "train/loss_ce", "top1": "train/top1"}
    for name, title in pairs:
        lines = []
        for number, g in enumerate(groups):
            if name in trained:
                lines += _lines(number, g, trained[name], x, dashed=True)
            lines += _lines(number, g, f"eval/{{head}}/{name}", x)
        if lines:
            panels.append(Panel(title, lines))
    if not panels:
        return []
    loss = []
    for number, g in enumerate(groups):
        loss += _lines(number, g, "train/loss", x, dashed=True)
    if loss:
        panels.append(Panel("training loss, as it is minimised", loss))
    return [
        Picture(
            "learning_curves",
            figures.curves(panels, [g.name for g in groups], x_label=x),
            "Validation (solid): raw parameters, the head that predicts. Training "
            "(dashed): cross-entropy and accuracy of the class head on the augmented "
            "batches, means between two log lines; label smoothing and mixed labels "
            "raise that cross-entropy above zero."
            + (
                " Thin lines are single seeds, thick ones their mean."
                if any(len(g.runs) > 1 for g in groups)
                else ""
            ),
        )
    ]


def _x_axis(groups: Sequence[Group]) -> str:
    """Epochs, which suit runs of any batch size, where every run tells them."""
    rows = (row for g in groups for run in g.runs for row in run.rows)
    return "epoch" if all("epoch" in row for row in rows) else "step"


def _lines(
    number: int, g: Group, name: str, x: str, *, dashed: bool = False
) -> list[Line]:
    """The lines of a metric; `{head}` in its name is the head that predicts."""
    each = [run.series(name.format(head=run.head), x=x) for run in g.runs]
    return _with_mean(number, each, dashed=dashed)


def _with_mean(
    number: int, each: Sequence[tuple[list, list[float]]], *, dashed: bool = False
) -> list[Line]:
    """A line for each seed and, where there are several, their mean."""
    each = [(at, values) for at, values in each if at]
    lines = [Line(number, *one, dashed=dashed, faint=len(each) > 1) for one in each]
    if len(each) > 1:
        shared = sorted(set.intersection(*(set(at) for at, _ in each)))
        looked_up = [dict(zip(*one, strict=True)) for one in each]
        mean = [statistics.fmean(one[at] for one in looked_up) for at in shared]
        lines.append(Line(number, shared, mean, dashed=dashed))
    return lines


def _gaps(groups: Sequence[Group]) -> list:
    x = _x_axis(groups)
    panels = {"top1": [], "loss": []}
    rows = []
    for number, g in enumerate(groups):
        gaps = {name: [gap(run, name, x=x) for run in g.runs] for name in panels}
        for name, lines in panels.items():
            lines += _with_mean(number, gaps[name])
        for run, (_, top1), (_, nll) in zip(g.runs, *gaps.values(), strict=True):
            if not top1:
                continue
            at, validation = run.series("eval/class/top1", x=x)
            best = int(np.argmax(validation))
            rows.append(
                [
                    run.name,
                    f"{100 * top1[-1]:+.2f}",
                    f"{nll[-1]:+.4f}" if nll else NONE,
                    f"{100 * validation[best]:.2f}",
                    f"{at[best]:g}",
                    f"{100 * (validation[-1] - validation[best]):+.2f}",
                ]
            )
    if not rows:
        return []
    header = [
        "run",
        "last gap, top-1 points",
        "last gap, NLL",
        "highest validation top-1 %",
        f"at {x}",
        "last - highest, points",
    ]
    return [
        Text(
            "Of the class head with the raw parameters. A gap that grows while the "
            "validation figures no longer improve is overfitting. Training figures are "
            "taken under augmentation, stochastic depth and label smoothing, so a "
            "strong recipe has a negative gap; they are those of the log line before "
            "the evaluation."
        ),
        Picture(
            "generalisation_gap",
            figures.curves(
                [
                    Panel("top-1, training - validation", panels["top1"]),
                    Panel("NLL, validation - training", panels["loss"]),
                ],
                [g.name for g in groups],
                x_label=x,
            ),
            "The gap between training and validation; higher is more overfitting.",
        ),
        Table(header, rows),
    ]


def gap(run: Run, metric: str, *, x: str) -> tuple[list, list[float]]:
    """How much better the class head is in training: `top1` or `loss` over `x`.

    An evaluation is compared with the newest log line that is not after it.
    """
    trained = "train/loss_ce" if metric == "loss" else "train/top1"
    sign = -1 if metric == "loss" else 1
    at, values = run.series(f"eval/class/{metric}", x=x)
    logged_at, logged = run.series(trained, x=x)
    points = []
    for place, value in zip(at, values, strict=True):
        before = int(np.searchsorted(logged_at, place, side="right")) - 1
        if before >= 0:
            points.append((place, sign * (logged[before] - value)))
    return [p for p, _ in points], [v for _, v in points]


def _by_data(groups: Sequence[Group], make: Callable) -> list:
    """What `make` gives for the groups of each data set that have tables."""
    chosen: dict[tuple, list[tuple[int, Group]]] = {}
    for number, g in enumerate(groups):
        if _tables(g):
            chosen.setdefault((g.data, *_class_names(g)), []).append((number, g))
    blocks = []
    for place, ((data, *_), members) in enumerate(chosen.items(), 1):
        suffix = f"_{place}" if len(chosen) > 1 else ""
        label = f"{data}: " if len(chosen) > 1 else ""
        blocks += make(members, [g.name for g in groups], suffix, label)
    return blocks


def _tables(g: Group) -> list[dict]:
    return [run.tables() for run in g.finished if run.tables()]


def _class_names(g: Group) -> list[str]:
    return [str(name) for name in g.finished[0].summary["class_names"]]


def _per_class(chosen, names, suffix: str, label: str) -> list:
    class_names = _class_names(chosen[0][1])
    support = np.array(_tables(chosen[0][1])[0]["per_class"]["support"])
    values = []
    for number, g in chosen:
        f1 = np.array([t["per_class"]["f1"] for t in _tables(g)], float)  # None is nan
        deviation = f1.std(axis=0, ddof=1) if len(f1) > 1 else None
        values.append((number, f1.mean(axis=0), deviation))
    mean = np.mean([value for _, value, _ in values], axis=0)
    present = np.flatnonzero(support)
    shown = present
    caption = f"{label}F1 of every class, with the head that predicts."
    if len(present) > MOST_CLASSES:
        shown = present[np.argsort(mean[present], kind="stable")[:MOST_CLASSES]]
        caption = (
            f"{label}The {MOST_CLASSES} classes of {len(present)} with the lowest F1, "
            "averaged over the runs."
        )
    if any(deviation is not None for *_, deviation in values):
        caption += " Bars: one standard deviation over the seeds."
    rows = []
    for c in shown:
        best = max(round(value[c], 4) for _, value, _ in values)
        rows.append([class_names[c], f"{support[c]:,}"])
        for _, value, deviation in values:
            text = f"{value[c]:.4f}"
            if deviation is not None:
                text += f" ± {deviation[c]:.4f}"
            is_best = len(values) > 1 and round(value[c], 4) == best
            rows[-1].append(Cell(text, is_best))
    picture = figures.dots(
        [(n, v[shown], None if d is None else d[shown]) for n, v, d in values],
        [class_names[c] for c in shown],
        names,
        x_label="F1",
    )
    header = ["class", "images", *(g.name for _, g in chosen)]
    return [Picture(f"per_class_f1{suffix}", picture, caption), Table(header, rows)]


def _confusions(chosen, names, suffix: str, label: str) -> list:
    matrices = []
    for _, g in chosen:
        found = [t["confusion"] for t in _tables(g) if "confusion" in t]
        if found:
            seeds = f", {len(found)} seeds" if len(found) > 1 else ""
            matrices.append((g.name + seeds, np.sum(found, axis=0)))
    if not matrices:
        return [Text(f"{label}too many classes for a matrix that can be read.")]
    picture = figures.confusions(matrices, _class_names(chosen[0][1]))
    return [
        Picture(
            f"confusion{suffix}",
            picture,
            f"{label}Images of the row's class that were taken for the column's; the "
            "colour is the share of the row. Seeds are added up.",
        )
    ]


def _calibration(chosen, names, suffix: str, label: str) -> list:
    bins = []
    for number, g in chosen:
        found = [t["calibration"] for t in _tables(g)]
        count = np.array([one["count"] for one in found])
        total = count.sum(axis=0)
        means = []
        for name in ("confidence", "accuracy"):
            values = np.nan_to_num(np.array([one[name] for one in found], float))
            summed = (count * values).sum(axis=0)
            means.append(np.where(total, summed / np.maximum(total, 1), np.nan))
        bins.append((number, total, *means))
    return [
        Picture(
            f"calibration{suffix}",
            figures.calibration(bins, names),
            f"{label}Below the dotted line a model is surer than it is right. Bins "
            "with few images scatter: see their share on the right. Seeds are pooled.",
        )
    ]


def _agreement(groups: Sequence[Group]) -> list:
    x = _x_axis(groups)
    panels = []
    for name, title in (
        ("train/teacher_agreement", "top-1 agreement with the teacher"),
        ("train/teacher_kl", "KL(teacher || student), nats"),
        ("train/teacher_cosine", "cosine of the probabilities"),
        ("eval/token_cosine", "cosine of class and distillation token"),
    ):
        lines = []
        for number, g in enumerate(groups):
            lines += _lines(number, g, name, x)
        if lines:
            panels.append(Panel(title, lines))
    if not panels:
        return []
    return [
        Picture(
            "student_and_teacher",
            figures.curves(panels, [g.name for g in groups], x_label=x),
            "Student and teacher are compared on the training batches, at temperature "
            "1; the tokens on the evaluation split, after the last norm (the paper "
            "finds 0.93 for DeiT on ImageNet).",
        )
    ]


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
    header = [
        "run",
        "million parameters",
        "GFLOPs an image",
        "PFLOPs of training",
        "images/s",
        "hours",
        "devices",
    ]
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
        versions = facts.get("versions", {})
        teacher = facts.get("teacher")
        about = NONE
        if teacher:
            about = (
                f"{teacher.get('arch')}, top-1 {100 * teacher.get('top1', 0):.2f} % on "
                f"{teacher.get('top1_split')}"
            )
        augment_seed = run.config.get("augment", {}).get("seed")
        rows.append(
            [
                run.name,
                str(run.seed),
                _show(augment_seed),
                *(str(versions.get(name, NONE)) for name in programs),
                about,
            ]
        )
    header = ["run", "seed", "augmentation seed", *programs, "teacher"]
    return [Table(header, rows, labels=len(header))]
