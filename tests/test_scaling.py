"""What is read from compiled programs of several devices."""

import json

import pytest

from benchmarks import scaling

VARIANT = "deit_nano_distilled_patch8_32"


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
