"""Two processes with two devices each, on loopback, against one with four."""

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import time

import caches
import jax
import numpy as np
import one_process
import pytest
import run_directories
from commands import FAST_COMPILATION, ROOT

from deit_jax import train
from deit_jax.data import sources
from deit_jax.errors import InputError
from deit_jax.evaluate import evaluate
from deit_jax.training import checkpoint, processes, run_directory, writers

pytestmark = pytest.mark.usefixtures("small_nano")  # as in `one_process`


def start(*arguments, devices, environment):
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment |= {
        "XLA_FLAGS": f"{flags} {FAST_COMPILATION}",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, "tests/one_process.py", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port(*candidates):
    for candidate in candidates or [0]:
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", candidate))
            return server.getsockname()[1]
    raise AssertionError("no port is free")


def slurm(number, job):
    """What srun would set for one of two tasks, and JAX and this package read."""
    tasks = dict.fromkeys(("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "2")
    ours = dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID"), str(number))
    return tasks | ours | {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost"}


def run_two(cache, workdir, *flags_of_each, devices, launcher=None):
    """Exit code, stdout, stderr and the time of its end, of each process.

    Args:
      launcher: number -> environment, in place of the fields of the config.
    """
    port = 0 if launcher else free_port()
    started = []
    for number, flags in enumerate(flags_of_each):
        words = (number, port, cache, f"{workdir}-{number}", *flags)
        environment = launcher(number) if launcher else {}
        started.append(start(*words, devices=devices, environment=environment))
    ended = {}
    while len(ended) < 2:
        for number, process in enumerate(started):
            if number not in ended and process.poll() is not None:
                ended[number] = time.monotonic()
        time.sleep(0.05)
    outputs = [process.communicate(timeout=60) for process in started]
    return [
        (process.returncode, *output, ended[number])
        for number, (process, output) in enumerate(zip(started, outputs, strict=True))
    ]


def assert_done(ended):
    assert [code for code, *_ in ended] == [0, 0], ended


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("processes")
    caches.write_oracle(directory / "cache", sources.load("digits", "train[:128]"))
    return directory


@pytest.fixture(scope="module")
def one(directory):
    """The summary of one process with four devices."""
    config = one_process.make_config(directory / "cache")
    return train.train_and_evaluate(config, directory / "one")


@pytest.fixture(scope="module")
def two(directory):
    images = [[f"--images={directory / f'images-{number}.npy'}"] for number in range(2)]
    ended = run_two(directory / "cache", directory / "two", *images, devices=2)
    assert_done(ended)
    return ended


def losses(run):
    return {
        row["step"]: (row["train/loss"], row["train/loss_distill"], row["train/top1"])
        for row in writers.read(run)
        if "train/loss" in row
    }


def assert_close(got, expected):
    assert list(got) == list(expected)
    np.testing.assert_allclose(
        list(got.values()), list(expected.values()), atol=1e-5, rtol=0
    )


@pytest.mark.slow
def test_two_processes_see_the_images_of_one(directory, two):
    config = one_process.make_config(directory / "cache")
    expected = one_process.train_images(config, 3)
    assert expected.shape == (3, 32, 32, 32, 3)
    assert len(np.unique(expected)) > 100
    for number in range(2):
        images = np.load(directory / f"images-{number}.npy")
        np.testing.assert_array_equal(images, expected)


@pytest.mark.slow
def test_two_processes_train_as_one(directory, one, two):
    expected, got = losses(directory / "one"), losses(directory / "two-0")
    assert list(expected) == list(range(1, one_process.STEPS + 1))
    assert_close(got, expected)
    assert expected[1] != expected[10]


@pytest.mark.slow
def test_two_processes_hold_the_images_and_do_several_steps(directory, one):
    ended = run_two(
        directory / "cache", directory / "held", *[["--on_device"]] * 2, devices=2
    )
    assert_done(ended)
    singly = np.array(list(losses(directory / "one").values()))
    expected = {5: singly[:5].mean(axis=0), 10: singly[5:].mean(axis=0)}
    assert_close(losses(directory / "held-0"), expected)


@pytest.mark.slow
def test_two_processes_count_every_image_once(directory, one, two):
    summary = json.loads((directory / "two-0" / "summary.json").read_text())
    assert len(summary["devices"]) == 4
    for weights in ("eval", "eval_ema"):
        confusion = np.array(summary["tables"][weights]["mean"]["confusion"])
        assert confusion.sum() == summary["eval_images"] == 50
        for head, expected in one[weights].items():
            got = summary[weights][head]
            if head != "token_cosine":
                got, expected = got["loss"], expected["loss"]
            assert got == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_only_the_first_process_writes(directory, two):
    assert not (directory / "two-1").exists()
    (_, first, *_), (_, second, *_) = two
    assert "4 x cpu in 2 processes" in first
    assert "step 10/10" in first
    assert "step" not in second


@pytest.mark.slow
def test_each_process_asks_a_live_teacher(directory):
    teacher, cache = directory / "teacher", directory / "cache"
    run_directories.make(teacher)
    ended = run_two(
        cache, directory / "live", *[[f"--teacher={teacher}"]] * 2, devices=2
    )
    assert_done(ended)
    config = one_process.make_config(cache, teacher)
    train.train_and_evaluate(config, directory / "alone")
    assert_close(losses(directory / "live-0"), losses(directory / "alone"))


@pytest.mark.slow
def test_a_death_ends_the_others_and_the_run_goes_on(directory, one):
    """On two devices until the seventh step, then on four."""
    survivor, dead = run_two(
        directory / "cache", directory / "dies", [], ["--die_at=7"], devices=1
    )
    assert dead[0] == -9
    assert survivor[0] not in (0, -9)
    assert survivor[3] - dead[3] < 60
    assert "Start all of them again with the same command" in survivor[2]
    config = one_process.make_config(directory / "cache")
    summary = train.train_and_evaluate(config, directory / "dies-0")
    assert summary["resumed_at_step"] == 5
    assert_close(losses(directory / "dies-0"), losses(directory / "one"))


@pytest.mark.slow
def test_tasks_of_slurm_with_other_configs_are_refused(directory):
    # JAX takes its port from the number of the job.
    job = free_port(*range(61440, 65536, 7)) - 61440
    ended = run_two(
        directory / "cache",
        directory / "other",
        [],
        ["--seed=1"],
        devices=1,
        launcher=functools.partial(slurm, job=job),
    )
    for code, _, stderr, _ in ended:
        assert code == 2, stderr
        assert "seed: 0 in process 0, 1 in process 1" in stderr
        assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_processes": 2}, "expected all three"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "process_id=2"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "HOST:PORT"),
        ({"coordinator": "a:1"}, "num_processes=0"),
        ({"process_id": 1}, "expected all three"),
        ({"auto": True}, "do not find each other"),
    ],
)
def test_settings_that_do_not_go_together(settings, message, monkeypatch):
    monkeypatch.setattr(processes, "launched", lambda: 0)
    with pytest.raises(InputError, match=message), processes.joined(**settings):
        pass


@pytest.mark.parametrize(
    "settings",
    [{}, {"auto": False}, {"num_processes": 1}, {"num_processes": 1, "process_id": 0}],
)
def test_one_process_initialises_nothing(settings):
    with processes.joined(**settings):
        assert not jax.distributed.is_initialized()
        assert processes.count() == 1
        assert processes.local(processes.devices()) == range(4)


@pytest.mark.parametrize(
    ("environment", "number"),
    [
        ({}, 0),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, 0),  # a shell of salloc
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, 0),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 2),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, 0),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, 4),
    ],
)
def test_what_launchers_say(environment, number, monkeypatch):
    for name in (*processes.LAUNCHERS, processes.TPU_HOSTS):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.launched() == number
    if number:
        with pytest.raises(InputError, match=rf"works in one process, and {number}"):
            evaluate("nowhere")


@pytest.mark.parametrize(
    ("present", "absent", "opened"),
    [
        (
            run_directory.RunDirectory,
            run_directory.AbsentDirectory,
            run_directory.open_directory,
        ),
        (
            checkpoint.Checkpoints,
            checkpoint.AbsentCheckpoints,
            checkpoint.open_checkpoints,
        ),
    ],
)
def test_what_the_first_process_has_is_absent_in_the_others(
    present, absent, opened, tmp_path, monkeypatch
):
    monkeypatch.setattr(processes, "is_first", lambda: False)
    made = opened(tmp_path / "run", 1)
    assert type(made) is absent
    # All that the loop asks of it; a restore follows from a step that is there.
    public = {name for name in vars(present) if name[0] != "_"}
    assert public - {"restore"} <= set(dir(made))
    made.close()
    assert not (tmp_path / "run").exists()
