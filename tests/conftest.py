"""Four CPU devices for every test, and no silent broadcasting."""

import atexit
import os
import shutil
import signal
import tempfile

import commands

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count=4 {commands.FAST_COMPILATION}"
)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
# As commands set it for themselves, but without their starting twice.
os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
# What one test's process has compiled another's need not; pytest-xdist's workers have
# that of the process that started them.
os.environ["JAX_COMPILATION_CACHE_DIR"] = (
    os.environ["JAX_COMPILATION_CACHE_DIR"]
    if "PYTEST_XDIST_WORKER" in os.environ
    else tempfile.mkdtemp(prefix="compiled-")
)
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

import hypothesis
import jax
import numpy as np
import pytest
import small_models
from absl import flags
from PIL import Image

from deit_jax.data import sources

if "PYTEST_XDIST_WORKER" not in os.environ:
    atexit.register(
        shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
    )
jax.config.update("jax_numpy_rank_promotion", "raise")
# Always the same few inputs; --hypothesis-profile=thorough tries many, and others.
hypothesis.settings.register_profile(
    "quick",
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.register_profile(
    "thorough",
    hypothesis.settings.get_profile("quick"),
    max_examples=1000,
    derandomize=False,
    print_blob=True,
)
hypothesis.settings.load_profile("quick")
flags.FLAGS.mark_as_parsed()  # absl code in libraries asks for it


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """The programs that a file's tests have compiled go with it.

    Each takes memory maps. A process has 65,530 of them (vm.max_map_count), which the
    programs of all tests together exceed; what is mapped then ends the process.
    """
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def small_nano():
    """Not with `digits_run`, nor for a test that starts another process."""
    with small_models.small_nano():
        yield


@pytest.fixture
def digits_config():
    """configs/deit.py:digits, cut down to a few seconds."""
    from configs import deit

    config = deit.get_config("digits")
    config.epochs = 2.0
    config.schedule.warmup_epochs = 0.0
    config.log.every_steps = 10
    config.checkpoint.every_steps = 20
    config.eval.every_epochs = 0.0
    return config


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """The directory of a finished run of 9 steps, to be read or copied."""
    from configs import deit
    from deit_jax import train

    config = deit.get_config("digits")
    config.epochs = 0.2
    config.schedule.warmup_epochs = 0.0
    config.dataset.eval_split = "test[:50]"
    config.checkpoint.every_steps = 4
    workdir = tmp_path_factory.mktemp("digits") / "run"
    train.train_and_evaluate(config, workdir)
    return workdir


@pytest.fixture
def ctrl_c():
    """Not ignored, as a shell in the background leaves it, and nohup SIGHUP."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, one) for number, one in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# torch is imported by its own tests only.


@pytest.fixture(scope="module")
def one_torch_thread():
    """Tiny batches gain nothing from more, and a busy machine makes them slow."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def held_out():
    """What teachers are measured on."""
    return sources.load("digits", "test[:32]")


@pytest.fixture(scope="module")
def teacher(held_out):
    """Untrained, but with BatchNorm statistics that differ from the initial ones."""
    import torch

    from teacher import classifier as classifiers
    from teacher import network

    torch.manual_seed(0)
    model = network.build("resnet18", 10, image_size=32)
    model.train()
    model(torch.randn(8, 3, 32, 32))
    return classifiers.Classifier(
        model.eval(),
        arch="resnet18",
        stem="standard",
        image_size=32,
        class_names=held_out.class_names,
    )


@pytest.fixture
def folder(tmp_path):
    """40 images as people have them, in bright and dark classes."""
    random = np.random.default_rng(0)
    kinds = [("RGB", "jpg"), ("L", "png"), ("RGBA", "WEBP"), ("CMYK", "JPEG")]
    for number in range(40):
        mode, ending = kinds[number % 4]
        height, width = random.integers(20, 90, 2)
        bright = number // 4 % 2
        pixels = random.integers(128 * bright, 128 + 128 * bright, (height, width, 4))
        pixels[..., 3] = 255
        split, name = ("val" if number >= 32 else "train"), ("dark", "bright")[bright]
        path = tmp_path / "pictures" / split / name / f"{number}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path)
    return f"folder:{tmp_path / 'pictures'}"


@pytest.fixture
def folder_config(folder):
    """An epoch of four steps on `folder`, streamed, and without a teacher."""
    from configs import vit

    config = vit.get_config("folder")
    config.dataset.update(name=folder, workers=0)
    config.model.variant = "vit_nano_patch8_32"
    config.batch_size = 8
    config.epochs = 1.0
    config.augment.recipe = "none"
    config.eval.batch_size = 8
    return config
