"""What is read from compiled programs of several devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from benchmarks import scaling

VARIANT = "deit_nano_distilled_patch8_32"


def test_collectives_are_counted_with_their_bytes():
    """Two sums in one, and a gather; in HLO as XLA writes it, comments included."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("x",))

    def several(a, b, c):
        return jax.lax.psum((a, b), "x"), jax.lax.all_gather(c, "x", tiled=True)

    compiled = (
        jax.jit(
            jax.shard_map(
                several,
                mesh=mesh,
                in_specs=(P("x"), P("x"), P("x")),
                out_specs=(P(), P()),
                check_vma=False,
            )
        )
        .lower(jnp.ones((4, 3)), jnp.ones((4, 5, 2)), jnp.ones((8,), jnp.bfloat16))
        .compile()
    )
    found = scaling.collectives(compiled.as_text())
    assert found["all-reduce"]["bytes"] == 4 * (3 + 10)
    # On a CPU bfloat16 is gathered as such, or as the float32 that it becomes.
    assert found["all-gather"]["count"] == 1
    assert found["all-gather"]["bytes"] in (16, 32)
    long = " = (f32[2]{0}, f32[3]{0}, /*index=5*/bf16[4,2]{1,0}) all-reduce-start(%a)"
    assert scaling.collectives(long) == {"all-reduce": {"count": 1, "bytes": 36}}
    assert scaling.collectives("%f = f32[2]{0} fusion(%all-reduce.1)") == {}


@pytest.mark.slow
def test_two_devices_share_one_gradient(tmp_path, capsys):
    path = tmp_path / "scaling.json"
    flags = [f"--variant={VARIANT}", "--batch_size=2", "--no-augmented"]
    scaling.main([*flags, "--devices=1,2", f"--json={path}"])
    one, two = json.loads(path.read_text())
    assert (one["devices"], two["devices"]) == (1, 2)
    # The step on one device is the same work but for the sums.
    assert two["flops"] == pytest.approx(one["flops"], rel=0.05)
    payload = two["payload_bytes"] - two["gradient_bytes"]
    assert 0 < payload < 100  # the metrics
    assert two["collectives"].keys() == {"all-reduce"}
    assert "ring" in capsys.readouterr().out
