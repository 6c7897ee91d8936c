import signal
import socket
import subprocess
import sys

import pytest

from deit_jax.errors import InputError
from deit_jax.training import run_lock


def test_one_process_at_a_time_and_a_killed_one_holds_nothing(tmp_path):
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
    holder = f"process {process.pid} on {socket.gethostname()}"
    with pytest.raises(InputError, match=holder), run_lock.hold(tmp_path):
        pass
    with run_lock.hold(tmp_path / "another"):
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
