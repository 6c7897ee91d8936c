"""Commands as a user types them."""

import importlib.metadata
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The suite compiles far more than it computes: level 0 halves its time, and XLA's
# former emitters, which later versions lack, take a third off the rest.
FAST_COMPILATION = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FAST_COMPILATION += " --xla_cpu_use_fusion_emitters=false"


def run(module, *arguments, shell="exec {}", **environment):
    """`python -m MODULE ARGUMENTS`, in the place of `{}` in a line of a shell.

    A variable that is None is taken away.
    """
    variables = {
        **os.environ,
        "XLA_FLAGS": FAST_COMPILATION,
        **environment,
    }
    return subprocess.run(
        shell.format(shlex.join([sys.executable, "-m", module, *map(str, arguments)])),
        shell=True,
        cwd=ROOT,
        env={name: value for name, value in variables.items() if value is not None},
        text=True,
        capture_output=True,
    )


def refusal(module, *arguments, **environment):
    """The message of a command that refuses what it is given, and nothing else."""
    done = run(module, *arguments, **environment)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    return done.stderr.removeprefix("error: ")
