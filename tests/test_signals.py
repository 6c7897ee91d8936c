import os
import signal
import subprocess
import sys
import threading

import pytest

from deit_jax.training import signals


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_the_first_signal_is_a_request(number, ctrl_c, capfd):
    before = [signal.getsignal(each) for each in signals.SIGNALS]
    with signals.caught() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.signal == number.name
        with pytest.raises(signals.Stopped, match=f"stopped by {number.name}"):
            stop.check()
    assert "a second signal ends it at once" in capfd.readouterr().err
    assert [signal.getsignal(each) for each in signals.SIGNALS] == before


def ended_by_ctrl_c(program):
    start = (
        "import os, signal\n"
        # A shell that starts the tests in the background lets them ignore Ctrl-C.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from deit_jax.training import signals\n"
    )
    done = subprocess.run([sys.executable, "-c", start + program], capture_output=True)
    assert done.returncode == -signal.SIGINT
    return done


def test_a_second_signal_ends_the_process():
    program = (
        "with signals.caught():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('and here')\n"
    )
    done = ended_by_ctrl_c(program)
    assert done.stdout == b"still here\n"


def test_no_import_makes_a_traceback_of_a_signal():
    program = (
        "with signals.importing():\n"
        "    pass\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "with signals.importing():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    assert ended_by_ctrl_c(program).stderr == b""


def test_other_threads_change_nothing():
    before = signal.getsignal(signal.SIGTERM)

    def work():
        with signals.caught() as stop:
            seen.append((stop.signal, signal.getsignal(signal.SIGTERM)))

    seen = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]
