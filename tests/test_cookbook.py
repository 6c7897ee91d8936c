"""docs/cookbook.md: a task runs as it stands there, or says what it needs."""

import os
import re
import shutil
import subprocess
import sys

import made_sets
import numpy as np
import pytest
from commands import ROOT
from PIL import Image

PAGE = (ROOT / "docs/cookbook.md").read_text("utf-8")
TASKS = dict(section.split("\n", 1) for section in PAGE.split("\n## ")[1:])
BLOCK = re.compile(r"<!-- (.*) -->\n```(\w+)\n(.*?)```", re.DOTALL)
RUNS = [title for title, text in TASKS.items() if "<!-- runs -->" in text]

# What commands are given beside the words of the page, to be done in seconds. The first
# line that a command begins with counts.
NANO = (
    "--config.model.variant=deit_nano_distilled_patch8_32 --config.batch_size=8 "
    "--config.dataset.workers=0 --config.distillation.num_views=2"
)
EPOCH = "--config.schedule.warmup_epochs=0 --config.epochs"
SHORT = {
    "teacher finetune": "--arch=resnet18 --weights=none --epochs=1 --image_size=32 "
    "--batch_size=8",
    "teacher export_logits": f"{NANO} --allow_weak_teacher",
    "train --config=deit:folder": f"{NANO} {EPOCH}=1",
    "train --config=vit:cifar10": f"{NANO} {EPOCH}=1".replace(
        "deit_nano_distilled", "vit_nano"
    ),
    "train": f"{EPOCH}=0.2",
}
PROGRAM = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(ROOT)!r})
from deit_jax.__main__ import main
typed = " ".join(sys.argv[1:])
for command, more in {SHORT!r}.items():
    if typed.startswith(command):
        sys.argv += more.split()
        break
main()
"""


@pytest.fixture
def kitchen(tmp_path, digits_run, folder):
    """A directory with what the tasks find there, and a PATH of short commands."""
    shutil.copytree(digits_run, tmp_path / "runs/deit-digits")
    Image.new("L", (32, 32)).save(tmp_path / "seven.png")
    for name in "0123456789":
        path = tmp_path / "shifted" / name / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((32, 32), 9, np.uint8)).save(path)
    made_sets.archive(made_sets.cifar(tmp_path, "10-py"))
    made_sets.hub(tmp_path / "parquet")
    programs = {
        "deit-jax": PROGRAM,
        "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
        "pip": "#!/bin/sh\n",
    }
    for name, text in programs.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("title", RUNS)
def test_a_task_runs(kitchen, title):
    _, language, text = BLOCK.search(TASKS[title]).groups()
    program = ["bash", "-eu", "-c"] if language == "bash" else [sys.executable, "-c"]
    done = subprocess.run(
        [*program, text],
        cwd=kitchen,
        env=os.environ
        | {"PATH": f"{kitchen}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_has_ten_tasks_of_at_most_ten_lines():
    assert len(TASKS) >= 10
    for title, text in TASKS.items():
        ((mark, language, block),) = BLOCK.findall(text)
        assert mark in ("runs", "needs a network", "needs an accelerator"), title
        assert language in ("bash", "python"), title
        assert len(block.splitlines()) <= 10, title
