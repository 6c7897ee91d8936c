import os
import signal
import socket
import subprocess
import sys

import pytest

from deit_jax.errors import InputError
from deit_jax.training import run_lock


def test_one_process_at_a_time(tmp_path):
    run = tmp_path / "runs" / "one"
    with run_lock.hold(run):
        with (
            pytest.raises(InputError, match="is in use by") as refused,
            run_lock.hold(run),
        ):
            pass
        assert f"process {os.getpid()} on {socket.gethostname()}" in str(refused.value)
        with run_lock.hold(tmp_path / "runs" / "two"):
            pass
    with run_lock.hold(run):
        pass


def test_a_killed_process_holds_nothing(tmp_path):
    program = (
        "import sys, time\n"
        "from deit_jax.training import run_lock\n"
        "with run_lock.hold(sys.argv[1]):\n"
        "    print('claimed', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "claimed\n"
    with (
        pytest.raises(InputError, match=f"in use by process {process.pid} on"),
        run_lock.hold(tmp_path),
    ):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with run_lock.hold(tmp_path):
        pass


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="the run directory cannot be written"),
        run_lock.hold(tmp_path / "file"),
    ):
        pass
