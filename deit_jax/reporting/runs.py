"""Run directories as the report sees them: read, and grouped by config."""

import dataclasses
import functools
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from flax.traverse_util import flatten_dict

from deit_jax import files
from deit_jax.errors import InputError
from deit_jax.training import predictions, summary, writers
from deit_jax.training.predictions import Predictions
from deit_jax.training.run_directory import ADDED_FIELDS, CONFIG


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run directory.

    Attributes:
      directory: As it was given.
      name: Short, and of no other run in the report.
      config: config.json.
      rows: metrics.jsonl.
      summary: summary.json; None where the run is unfinished.
    """

    directory: Path
    name: str
    config: dict
    rows: list[dict]
    summary: dict | None

    @property
    def finished(self) -> bool:
        return self.summary is not None

    @property
    def seed(self):
        return self.config.get("seed")

    @property
    def last_step(self) -> int:
        return max((row["step"] for row in self.rows), default=0)

    @functools.cached_property
    def scores(self) -> dict[str, dict]:
        """What has {head: {metric: value}} under `eval` and maybe `eval_ema`.

        The summary or, of an unfinished run, its newest evaluation.
        """
        if self.summary is not None:
            return self.summary
        scores: dict[str, dict] = {}
        for row in self.rows:  # a later evaluation replaces an earlier
            for key, value in row.items():
                if re.fullmatch("eval(_ema)?/[^/]*/[^/]*", key):
                    name, head, metric = key.split("/")
                    scores.setdefault(name, {}).setdefault(head, {})[metric] = value
        return scores

    def heads(self, weights: str = "eval") -> dict[str, dict[str, float]]:
        """The metrics of each head, without what stands beside the heads."""
        values = self.scores.get(weights, {})
        return {head: v for head, v in values.items() if isinstance(v, dict)}

    @property
    def head(self) -> str:
        """The one that the model predicts with."""
        return "mean" if "mean" in self.heads() else "class"

    @property
    def tables(self) -> dict:
        """`metrics.tables` of the head that predicts; {} where there are none."""
        tables = (self.summary or {}).get("tables", {})
        return tables.get("eval", {}).get(self.head, {})

    @functools.cached_property
    def predictions(self) -> tuple[str, Predictions] | None:
        """The fingerprint of the images and what `head` says of them.

        None of a run without the file: unfinished, or trained before there was one.

        Raises:
          InputError: The file is damaged.
        """
        try:
            found = predictions.read(self.directory) if self.finished else None
        except (OSError, ValueError) as error:
            raise _damaged(self.directory / predictions.PREDICTIONS, error) from error
        if found is None or self.head not in found[1]:
            return None
        return found[0], found[1][self.head]

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """The epochs and values of a metric, without what is not finite."""
        points = [
            (row["epoch"], row[name])
            for row in self.rows
            if "epoch" in row and math.isfinite(row.get(name, math.nan))
        ]
        return [at for at, _ in points], [value for _, value in points]


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Runs of one config but for the seed; most often a single one."""

    name: str
    runs: list[Run]

    @property
    def data(self) -> str:
        """Training and evaluation data; figures of one data set can be compared."""
        fields = self.runs[0].config.get("dataset", {})
        names = ("name", "train_split", "eval_split")
        return " ".join(str(fields.get(name, "?")) for name in names)

    @property
    def head(self) -> str:
        return self.runs[0].head

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.finished]

    @property
    def counted(self) -> list[Run]:
        """What the figures are of: finished runs, or all where none is finished."""
        return self.finished or self.runs

    @property
    def class_names(self) -> list[str]:
        """Those of finished runs; else []."""
        return (self.counted[0].summary or {}).get("class_names", [])

    def tables(self, kind: str) -> list:
        """One of `metrics.tables` for each finished run that has it."""
        return [run.tables[kind] for run in self.finished if kind in run.tables]

    def setting(self, section: str, field: str) -> str:
        """A field of the config in words; `none` where there is none."""
        return str((self.runs[0].config.get(section) or {}).get(field, "none"))


def read(directories: Sequence[str | os.PathLike]) -> list[Run]:
    """The runs in `directories`, in their order; one given twice is read once.

    Raises:
      InputError: One of them is no run directory, or a file of it is damaged.
    """
    paths = list({Path(d).resolve(): Path(d) for d in directories}.values())
    wrong = [str(path) for path in paths if not (path / CONFIG).exists()]
    if wrong:
        raise InputError(
            f"no run directory: {', '.join(wrong)}. Expected directories that hold "
            f"{CONFIG}, as `python -m deit_jax.main` makes them."
        )
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def _read(path: Path, name: str) -> Run:
    try:
        config = files.read_json(path / CONFIG)
        files.check(config, {})
    except (OSError, ValueError) as error:
        raise _damaged(path / CONFIG, error) from error
    return Run(path, name, config, writers.read(path), summary.read(path))


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is damaged: {error}. Leave this run out, or train it anew in another "
        "--workdir."
    )


def group(runs: Sequence[Run]) -> list[Group]:
    """Puts runs together whose configs differ in nothing but `seed`."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        fields = json.dumps(_fields(run), sort_keys=True)
        members.setdefault(fields, []).append(run)
    groups = [Group(_common_name(same), same) for same in members.values()]
    names = [g.name for g in groups]
    return [
        # Two configs under names that differ in their ends only keep a whole name.
        dataclasses.replace(g, name=g.runs[0].name) if names.count(g.name) > 1 else g
        for g in groups
    ]


def _common_name(runs: list[Run]) -> str:
    """`deit-seed0` and `deit-seed1` are seeds of `deit`."""
    names = [run.name for run in runs]
    stems = {re.sub(r"[-_./ ]+(seed|s)?[-_./ =]*\d+$", "", name) for name in names}
    return names[0] if len(names) == 1 or len(stems) > 1 else stems.pop()


def config_differences(groups: Sequence[Group]) -> dict[str, list]:
    """By field, the value of each group, for the fields of the config that differ.

    A field that a config lacks is None there. `seed` is not among them.
    """
    flat = [_fields(g.runs[0]) for g in groups]
    fields = dict.fromkeys(field for one in flat for field in one)
    found = {field: [one.get(field) for one in flat] for field in fields}
    return {
        field: values
        for field, values in found.items()
        if any(value != values[0] for value in values)
    }


def _fields(run: Run) -> dict:
    """The config without its seed, and without what is None.

    A field that a later version adds is None where nobody sets it, or has the value
    that says what the run did.
    """
    flat = ADDED_FIELDS | flatten_dict(run.config, sep=".")
    return {k: v for k, v in flat.items() if k != "seed" and v is not None}
