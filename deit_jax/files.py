"""Small files that are whole at any moment."""

import os
from pathlib import Path


def replace_file(path: str | os.PathLike, text: str) -> None:
    """Writes `text` to `path`: a kill leaves the old file or the new, never a half."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
