"""The rows of a run's metrics: `metrics.jsonl`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from deit_jax import files
from deit_jax.errors import InputError
from deit_jax.files import replace_file

METRICS = "metrics.jsonl"


class MetricsFile:
    """`metrics.jsonl`: one object a write, `{"step": int, "name": value, ...}`.

    On opening it is cut back to `restored_step`: what a killed run wrote after its last
    checkpoint is computed, and written, again.
    """

    def __init__(self, workdir: str | os.PathLike, restored_step: int):
        path = Path(workdir) / METRICS
        self.kept = [row for row in read(workdir) if row["step"] <= restored_step]
        replace_file(path, "".join(json.dumps(row) + "\n" for row in self.kept))
        self._file = open(path, "a")  # noqa: SIM115 - closed by close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Returns when all rows are on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read(workdir: str | os.PathLike) -> list[dict]:
    """The rows of metrics.jsonl before the first that is none.

    The last line may have been cut short by a kill. Every row has a whole `step`, and
    all of its values are numbers.

    Raises:
      InputError: It is no regular file, or cannot be read.
    """
    path = Path(workdir) / METRICS
    if not path.exists():
        return []
    try:
        files.check_regular(path)
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read: {error}. Move it away, or give another --workdir."
        ) from error
    rows = []
    for line in content.splitlines():
        try:
            row = json.loads(line)
            files.check(row, {"step": int})
            files.check(row, {...: float})
        except ValueError:
            break
        rows.append(row)
    return rows
