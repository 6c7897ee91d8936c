"""Four CPU devices for every test, and no silent broadcasting."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# The suite compiles far more than it computes: level 0 halves its time.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

import jax
import pytest
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "raise")
flags.FLAGS.mark_as_parsed()  # absl code in libraries asks for it


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
