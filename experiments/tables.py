"""Writes the tables of docs/results.md, and of the pages behind it, from docs/runs.

    python -m experiments.tables

docs/runs/NAME/ holds the summaries of runs, `<model>-seed<number>.json`. The table
after a line `<!-- overview -->` has a row for each model of the demo and of all scales
of the study; after `<!-- runs: NAME -->`, one for each head; after
`<!-- differences: NAME -->`, one for each model against the one before.
"""

import itertools
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from deit_jax.reporting.comparison import METRICS, PERCENT, difference, sample
from deit_jax.reporting.runs import Group, Run
from deit_jax.training.summary import WEIGHTS

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = ("results.md", "results/*.md")
MARK = re.compile(r"(<!-- (overview|runs|differences)(?:: ([\w-]+))? -->\n)(\|.*\n)*")
FIRST = (
    "vit",
    "no-teacher",
    "plain-linear",
    "same-linear",
    "same-exact",
    "resnet50",
)  # the others by name


def groups(name: str) -> list[Group]:
    """The models of docs/runs/NAME, each with its seeds."""
    members: dict[str, list[Run]] = {}
    for path in sorted((DOCS / "runs" / name).glob("*.json")):
        summary = json.loads(path.read_text())
        model = re.sub(r"-seed\d+$", "", path.stem)
        members.setdefault(model, []).append(
            Run(path.parent, path.stem, {}, [], summary)
        )
    ranks = {model: place for place, model in enumerate(FIRST)}
    order = sorted(members, key=lambda model: (ranks.get(model, len(FIRST)), model))
    return [Group(model, members[model]) for model in order]


def scales() -> list[str]:
    """The folders of the study's scales."""
    return sorted(path.name for path in (DOCS / "runs").glob("study-*"))


def overview() -> Iterator[list[str]]:
    """A row for each model of the demo and of every scale of the study."""
    titles = ["runs", "model", "million parameters", "epochs", "seeds", "top-1 %"]
    yield [*titles, "95 % interval", "F1", "AUC", "ECE", "machine"]
    for name, g in ((n, g) for n in ("digits", *scales()) for g in groups(n)):
        facts, scores = g.runs[0].summary, [run.heads()[run.head] for run in g.runs]
        top1 = sample(g).estimate("top1")
        devices = facts["devices"]
        yield [
            name,
            g.name,
            f"{facts['parameters'] / 1e6:.2f}",
            f"{facts['epochs']:g}",
            f"{len(g.runs)}",
            _mean(scores, "top1"),
            f"{100 * top1.low:.1f} to {100 * top1.high:.1f}",
            *(_mean(scores, metric) for metric in ("f1", "auc", "ece")),
            f"{len(devices)} x {devices[0]}",
        ]


def heads(name: str) -> Iterator[list[str]]:
    """A row for each head of every model, raw and EMA: means and deviations."""
    entries = [
        (g, key, weights, head)
        for g in groups(name)
        for key, weights in WEIGHTS
        for head in g.runs[0].heads(key)
    ]
    scores = [[run.heads(key)[head] for run in g.runs] for g, key, _, head in entries]
    # Older summaries lack some.
    metrics = [
        m for m in METRICS if all(m[0] in one for each in scores for one in each)
    ]
    yield ["model", "weights", "head", "seeds", *(title for _, title, *_ in metrics)]
    for (g, _, weights, head), each in zip(entries, scores, strict=True):
        cells = [_mean(each, metric) for metric, *_ in metrics]
        yield [g.name, weights, head, f"{len(g.runs)}", *cells]


def differences(name: str) -> Iterator[list[str]]:
    """A row for each model: what it gains over the one before it, with intervals."""
    rows = []
    for before, g in itertools.pairwise(groups(name)):
        found = {m: difference(g, before, m) for m, *_ in METRICS}
        rows.append((f"{g.name} - {before.name}", found))
    metrics = [m for m in METRICS if all(found[m[0]] for _, found in rows)]
    yield ["", *(title for _, title, *_ in metrics)]
    for label, found in rows:
        shown = [found[m].shown(m, 3, sign="+") for m, *_ in metrics]
        yield [label, *(f"{value} ({interval})" for value, interval in shown)]


def _mean(scores: list[dict], metric: str) -> str:
    """The mean over the seeds, with the standard deviation where there are several."""
    if any(metric not in one for one in scores):
        return ""
    scale, digits = (100, 2) if metric in PERCENT else (1, 3)
    values = [scale * one[metric] for one in scores]
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def rewrite(text: str) -> str:
    """A page with its tables as docs/runs has them."""
    return MARK.sub(_table, text)


def _table(match: re.Match) -> str:
    mark, kind, name = match[1], match[2], match[3]
    makers = {"overview": overview, "runs": heads, "differences": differences}
    header, *rows = makers[kind](name) if name else makers[kind]()
    lines = [header, ["---"] * len(header), *rows]
    return mark + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    for page in (page for pattern in PAGES for page in DOCS.glob(pattern)):
        page.write_text(rewrite(page.read_text()))


if __name__ == "__main__":
    main()
