"""The benchmark of a GPU: what it runs, in the time that it is given."""

import json
import re

import pytest
from flax.traverse_util import flatten_dict

from benchmarks import cases, compare, gpu, ours, timm_peer
from benchmarks.cases import Case
from configs import study

HALF = Case("deit_nano_distilled_patch8_32", 4, 10, "bfloat16")


@pytest.fixture
def clock(monkeypatch):
    """The deadline in seconds; a case is measured in 100 of them a side."""
    now = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])

    def child(side, case, **_):
        now[0] += 100
        assert case.dtype == "bfloat16"
        return {
            "images_per_sec": 300.0 if side == "ours" else 200.0,
            "seconds": [0.1],
            "compile_seconds": 1.0,
            "peak_memory_bytes": 2**20,
            "utilisation": 0.5,
            "matmul_flops_per_sec": 1e12,
            "parts": None,
            "device": "H100",
        }

    monkeypatch.setattr(compare, "child", child)
    return now


def test_what_does_not_fit_is_left_out_and_named(clock, tmp_path, capsys):
    path = tmp_path / "gpu.json"
    result = gpu.main(["--minutes=9", f"--json={path}"])
    # Two and a half pairs of 200 seconds: the third would end too late.
    assert list(result["cases"]) == ["gpu_tiny_224", "gpu_tiny_32"]
    assert result["left_out"][:2] == ["gpu_small_224", "gpu_base_224"]
    assert set(result["left_out"][2:]) == set(cases.GPU_WAYS)
    assert result["ratio_gpu_tiny_224"] == 1.5
    assert json.loads(path.read_text()) == result
    assert "gpu_base_224: left out" in capsys.readouterr().out


def test_cases_and_batches_are_chosen(clock):
    result = gpu.main(["--cases=gpu_base_224_plain", "--batch_size=8", "--modes="])
    [case] = (found["case"] for found in result["cases"].values())
    assert case["batch_size"] == 8 and not case["augmented"]
    assert not any(name.startswith("ratio") for name in result)


def test_another_way_is_set_beside_what_the_peer_did(clock):
    result = gpu.main(["--cases=gpu_base_224,gpu_base_224_xla,gpu_tiny_32_dispatch"])
    assert list(result["cases"]["gpu_base_224_xla"]["runs"]) == ["ours"]
    assert result["cases"]["gpu_base_224_xla"]["case"]["attention"] == "xla"
    assert result["cases"]["gpu_tiny_32_dispatch"]["case"]["steps_per_dispatch"] == 10
    assert result["ratio_gpu_base_224_xla"] == 1.5
    assert "ratio_gpu_tiny_32_dispatch" not in result  # timm was not asked


@pytest.mark.parametrize("flag", ["--cases=gpu_huge", "--modes=fastest"])
def test_unknown_names_are_refused(flag, capsys):
    with pytest.raises(SystemExit):
        gpu.main([flag])
    assert f"{flag.partition('=')[0]}: no " in capsys.readouterr().err


def test_the_run_is_that_of_the_study():
    command = gpu.study_command("data", epochs=20.0, workdir="runs/gpu")
    fields = (re.fullmatch(r"--config\.([\w.]+)=(.*)", part) for part in command)
    given = {match[1]: match[2] for match in fields if match}
    config = flatten_dict(study.get_config("vit").to_dict(), sep=".")
    assert given.keys() <= config.keys()
    for field in ("epochs", "schedule.warmup_epochs"):
        assert float(given[field]) == config[field]


def test_the_cases_are_the_papers_models_in_half_precision():
    for name, case in (cases.GPU | cases.GPU_WAYS).items():
        assert case.dtype == "bfloat16" and case.training
        assert case.augmented != name.endswith("_plain")


@pytest.mark.slow
def test_half_precision_on_both_sides(one_torch_thread):
    """Trained by the peer, applied by both."""
    found = timm_peer.measure(HALF, mode="eager", rounds=1, steps=1, parts=True)
    assert 0 < found["loss"] < 10 and all(v > 0 for v in found["parts"].values())
    case = Case(HALF.variant, 4, 10, "bfloat16", training=False)
    theirs = timm_peer.measure(case, mode="eager", rounds=1, steps=2, parts=True)
    mine = ours.measure(case, rounds=1, steps=2, parts=True)
    for found in (theirs, mine):
        assert found["images_per_sec"] > 0
        assert found["loss"] is None and found["parts"] is None
    # A third of the training's.
    assert 3 * mine["flops_per_image"] == 51_049_728
