import errno
import os

import pytest

from deit_jax import files
from deit_jax.errors import InputError


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    files.replace_file(path, "old")
    files.replace_file(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        ValueError("RESOURCE_EXHAUSTED: [OS error 28: ENOSPC No space left on device]"),
    ],
)
def test_a_full_disk_is_one_message(tmp_path, error):
    with (
        pytest.raises(InputError, match="no space is left") as caught,
        files.explain_full_disk(tmp_path),
    ):
        try:
            raise error
        except Exception as first:
            raise RuntimeError("a save failed") from first
    assert str(tmp_path) in str(caught.value)


def test_other_errors_stay_what_they_are(tmp_path):
    other = OSError(errno.EACCES, "Permission denied")
    with pytest.raises(OSError, match="denied"), files.explain_full_disk(tmp_path):
        raise other
    with pytest.raises(InputError, match=r"^mine$"), files.explain_full_disk(tmp_path):
        raise InputError("mine") from OSError(errno.ENOSPC, "full")
