"""The comparison with a peer: its turns and ratios, and once from end to end."""

import argparse
import json

import jax
import pytest

from benchmarks import cases, compare, ours, train_step
from benchmarks.cases import Case

NANO = Case("deit_nano_distilled_patch8_32", 4, 10)
RUN_FIELDS = {
    "images_per_sec",
    "seconds",
    "compile_seconds",
    "peak_memory_bytes",
    "loss",
    "parts",
    "device",
    "threads",
    "versions",
}
OUR_FIELDS = {"flops_per_image", "matmul_flops_per_sec", "utilisation"}


def test_a_case_survives_its_flags():
    parser = argparse.ArgumentParser()
    cases.add_flags(parser)
    for case in (NANO, Case(cases.TINY_224, 2, 7, "bfloat16", False, False)):
        assert cases.from_flags(parser.parse_args(case.flags)) == case


def test_the_ratio_is_the_median_against_the_faster_mode():
    rates = {
        "ours": iter([10, 12, 30]),
        "eager": iter([5, 5, 5]),
        "compile": iter([8, 8, 8]),
    }
    order = []

    def run(side, case, parts):
        order.append((side, parts))
        return {"images_per_sec": next(rates[side])}

    found = compare.compare(NANO, ["eager", "compile"], pairs=3, run=run)
    assert found["against"] == "compile"
    assert found["ratio"] == 1.5
    assert found["ratios"]["eager"] == [2.0, 2.4, 6.0]
    assert found["rates"]["ours"] == 12
    there = ["ours", "eager", "compile"]
    assert [side for side, _ in order] == there + there[::-1] + there
    assert [parts for _, parts in order] == 6 * [False] + 3 * [True]


@pytest.mark.slow
def test_both_sides_in_processes_of_their_own(tmp_path, capsys):
    """At one step of the smallest model; what is written is what is read here."""
    result = train_step.main(
        [
            "--modes=eager",
            "--cases=train_32",
            f"--variant={NANO.variant}",
            "--batch_size=4",
            "--pairs=1",
            "--rounds=1",
            f"--json={tmp_path / 'result.json'}",
        ]
    )
    assert json.loads((tmp_path / "result.json").read_text()) == result
    found = result["cases"]["train_32"]
    assert found["case"]["variant"] == NANO.variant
    [mine], [theirs] = found["runs"]["ours"], found["runs"]["eager"]
    assert mine.keys() == RUN_FIELDS | OUR_FIELDS
    assert theirs.keys() == RUN_FIELDS
    ratio = mine["images_per_sec"] / theirs["images_per_sec"]
    assert result["ratio_train_32"] == ratio > 0
    # The images of both are random, and a new model knows nothing.
    assert mine["loss"] == pytest.approx(theirs["loss"], abs=1.5)
    pieces = {"augmentation", "forward", "backward", "optimizer and EMA"}
    assert theirs["parts"].keys() == pieces
    assert mine["parts"].keys() == pieces | {"input", "teacher look-up"}
    text = capsys.readouterr().out
    assert "ours/theirs" in text and f"({ratio:.3f}" in text


@pytest.mark.parametrize("flag", ["--cases=train_64", "--modes=fastest"])
def test_unknown_names_are_refused(flag, capsys):
    with pytest.raises(SystemExit):
        train_step.main([flag])
    assert f"{flag.partition('=')[0]}: no " in capsys.readouterr().err


@pytest.mark.slow
def test_a_side_that_fails_says_why(tmp_path):
    with pytest.raises(SystemExit, match="invalid choice: 'fastest'"):
        compare.child(
            "fastest",
            NANO,
            peer="timm",
            caches=str(tmp_path),
            rounds=1,
            steps=1,
            parts=False,
        )


def test_without_a_peer_there_is_no_ratio():
    def run(side, case, parts):
        assert side == "ours"
        return {"images_per_sec": 1.0}

    found = compare.compare(NANO, [], pairs=2, run=run)
    assert found["ratio"] is None and found["against"] is None


def test_the_step_is_that_of_the_recipe():
    built = ours.experiment(NANO, jax.local_devices()[:1])
    settings = built.student.settings
    assert settings.randaugment and settings.mixes and settings.erase_probability
    assert built.settings["inputs"].keywords["augmentation"] == settings
    batch = next(ours.host_batches(built))
    assert batch["teacher_logits"].shape == (1, 4, 10)
    assert "teacher_logits" not in next(ours.host_batches(built, teacher=None))
