"""What the report says in words of runs whose effect is known."""

import numpy as np
import pytest
from made_runs import group, make, right

from deit_jax.reporting import comparison, conclusions, effects, findings, results

SURE, CHANCE = "That is more than chance.", "That could be chance."


def said(groups) -> dict[str, str]:
    [points] = conclusions.points(groups)
    return {topic: " ".join(texts) for topic, *texts in points.points}


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        # Of 2,000 images 80 % and 75 %, not the same ones.
        (right(2000, 1600), right(2000, 1500, first=500), SURE),
        (right(2000, 1602), right(2000, 1600, first=400), CHANCE),
        # One point, but of the same images: 20 that only one of them can.
        (right(2000, 1620), right(2000, 1600), SURE),
        (right(2000, 1620), right(2000, 1600, first=200), CHANCE),
        (right(40, 30), right(40, 28, first=10), CHANCE),
    ],
    ids=["5 points", "0.1 points", "1 point, paired", "1 point, others", "40 images"],
)
def test_a_difference_is_said_with_whether_it_could_be_chance(tmp_path, a, b, verdict):
    made = group(make(tmp_path / "b", b, config={"x": 1}), make(tmp_path / "a", a))
    text = said(made)["Best"]
    points = 100 * (a.mean() - b.mean())
    assert text.startswith(f"By top-1 a is best with {100 * a.mean():.2f} %, ")
    assert f"{points:.2f} points before b" in text
    assert text.endswith(verdict)
    assert "There is one seed of b and a" in said(made)["How sure"]


@pytest.mark.parametrize(
    "change",
    [{"kept": False}, {"kept": False, "tables": False}, {"fingerprint": "other"}],
    ids=["confusions alone", "top-1 alone", "other images"],
)
def test_what_cannot_be_paired_is_not(tmp_path, change):
    """The very difference that pairing makes sure of."""
    one = make(tmp_path / "a", right(2000, 1620))
    two = make(tmp_path / "b", right(2000, 1600), config={"x": 1}, **change)
    groups = group(one, two)
    assert said(groups)["Best"].endswith(CHANCE)
    found = comparison.difference(*groups, "top1")
    error = np.sqrt(0.81 * 0.19 / 2000 + 0.8 * 0.2 / 2000)
    assert found.high - found.value == pytest.approx(1.96 * error, rel=0.06)
    if "kept" in change:
        assert "Without predictions.npz: b." in said(groups)["How sure"]


def test_equal_runs_are_equal(tmp_path):
    made = [make(tmp_path / n, right(50, 40), config={"x": n}) for n in "ab"]
    found = said(group(*made))
    assert found["Best"] == "a and b have the same top-1, 80.00 %."
    assert "The other metrics" not in found


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [((1500, 1510, 1490), SURE), ((1500, 1700, 1300), CHANCE)],
    ids=["seeds agree", "seeds scatter"],
)
def test_seeds_that_scatter_make_a_difference_chance(tmp_path, counts, verdict):
    directories = []
    for name, more in (("base", 0), ("better", 120)):
        for seed, count in enumerate(counts):
            answers, path = right(2000, count + more), tmp_path / f"{name}-seed{seed}"
            directories.append(make(path, answers, seed=seed, config={"x": name}))
    text = said(group(*directories))
    assert text["Best"].startswith("By top-1 better is best")
    assert "6.00 points before base" in text["Best"]
    assert text["Best"].endswith(verdict)
    assert "several seeds of base (3) and better (3)" in text["How sure"]
    assert "one seed" not in text["How sure"]


def test_the_interval_of_seeds_is_welchs_where_images_say_no_more(tmp_path):
    from scipy.stats import ttest_ind

    values = [0.5, 0.51, 0.55], [0.6, 0.62, 0.61, 0.66]
    found = comparison._margin(0.0, values, 0.95)
    expected = ttest_ind(*values, equal_var=False).confidence_interval()
    assert found == pytest.approx((expected.high - expected.low) / 2)
    wider = comparison._margin(0.1, values, 0.95)
    assert wider == pytest.approx(np.hypot(0.1 * 1.96, found), rel=0.03)


VIT = {
    "model": {"variant": "vit_nano_patch8_32"},
    "distillation": {"kind": "none", "head": "class", "logits_dir": ""},
    "augment": {"recipe": "none", "seed": 0},
    "loss": {"label_smoothing": 0.0},
}
DEIT = VIT | {
    "model": {"variant": "deit_nano_distilled_patch8_32"},
    "distillation": {"kind": "soft", "logits_dir": "a", "view": "plain"},
}
AUGMENT = DEIT | {
    "distillation": DEIT["distillation"] | {"view": "same", "logits_dir": "b"},
    "augment": {"recipe": "seed_study", "seed": 0},
}


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        (VIT, DEIT, "distillation"),
        (DEIT, VIT, None),
        (DEIT, AUGMENT, "augmentation"),
        (VIT, AUGMENT, None),
        (VIT, DEIT | {"loss": {"label_smoothing": 0.1}}, None),
        (VIT, DEIT | {"log": {"every_steps": 7}}, "distillation"),
        (VIT, DEIT | {"model": {"variant": "deit_tiny_distilled_patch8_32"}}, None),
        (VIT, VIT | {"augment": AUGMENT["augment"]}, "augmentation"),
        (VIT, VIT | {"epochs": 3}, None),
    ],
    ids=[
        "teacher", "backwards", "augmented", "both", "smoothing too", "logs too",
        "larger too", "no teacher", "neither",
    ],
)  # fmt: skip
def test_an_effect_is_of_what_alone_differs(tmp_path, a, b, kind):
    one = make(tmp_path / "one", right(40, 20), config=a)
    two = make(tmp_path / "two", right(40, 30), config=b)
    groups = group(one, two)
    assert effects.changed(*groups) == kind
    assert bool(effects.effect(*groups)) == bool(kind)


def test_an_effect_has_its_size_and_the_teacher(tmp_path):
    teacher = {"arch": "resnet50", "top1": 0.9, "top1_split": "val"}
    one = make(tmp_path / "vit", right(2000, 1500), config=VIT)
    facts = {"teacher": teacher}
    two = make(tmp_path / "deit", right(2000, 1600), config=DEIT, facts=facts)
    [(topic, text)] = effects.effect(*group(one, two))
    assert topic == "Distillation"
    assert text.startswith("deit differs from vit in distillation (soft) alone. With")
    assert "With it: top-1 +5.00 points (" in text
    assert text.endswith("top-1 of 90.00 % there: deit is 10.00 points below.")


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ((2, 1.5, 1, 1.4), "lowest at epoch 3 of 4 (1.000) and 1.400 at the end: it o"),
        ((2, 1.5, 1.0, 1.005), "hardly any overfitting"),
        ((2, 1.5, 1.2, 1), "lowest at epoch 4 of 4 (1.000), the end: no sign of over"),
        ((1, 2, 3), None),
    ],
    ids=["rises", "hardly rises", "falls", "too few"],
)
def test_overfitting_is_said_of_a_loss_that_rises(tmp_path, losses, says):
    [g] = group(make(tmp_path / "a", right(40, 20), losses=losses))
    text = findings.overfitting(g)
    assert "75.0 % of the training images and on 50.0 %" in text
    assert says in text if says else "Validation" not in text


@pytest.mark.parametrize(
    ("count", "sure", "says"),
    [
        (1000, 5.0, "a is surer than it is right: mean confidence 98.0 %, accuracy 50"),
        (1000, 0.1, "a is less sure than it is right"),
        (1010, 1.1, "a is as sure as it is right, but for chance"),
    ],
)
def test_calibration_is_said_with_its_sign(tmp_path, count, sure, says):
    [g] = group(make(tmp_path / "a", right(2000, count), sure=sure))
    assert says in findings.calibration(g)


def test_pairs_and_classes_are_named(tmp_path):
    """One knows no owl and takes it for a cow; the other knows no cow."""
    labels = np.arange(2000) % 4
    one, two = (make(tmp_path / str(c), labels != c, config={"x": c}) for c in (2, 3))
    groups = group(one, two)
    assert findings.confused(groups[0]) == "2: owl and cow (25.0 %) of all images."
    text = said(groups)["Classes, by F1"]
    assert "3 gains most in owl (+1.000 ± " in text
    assert "loses most in cow (-0.667 ± " in text and "cat (-0.333 ± " in text
    assert "dog" not in text


def test_classes_that_differ_by_chance_are_not_named(tmp_path):
    one = make(tmp_path / "0", right(400, 200))
    two = make(tmp_path / "3", right(400, 200, first=3), config={"x": 3})
    text = said(group(one, two))["Classes, by F1"]
    assert text.startswith("Against 0, beyond chance, 3 gains in none and loses in non")


def test_the_tables_have_intervals_and_mark_what_is_sure(tmp_path):
    one = make(tmp_path / "a", right(2000, 1500))
    two = make(tmp_path / "b", right(2000, 1600), config={"x": 1})
    groups = group(one, two)
    _, values, _, differences = results.intervals(groups)
    assert [row[1].text for row in values.rows] == ["75.00", "80.00"]
    low, high = map(float, values.rows[0][1].note.split(" to "))
    assert (low, high) == pytest.approx((73.1, 76.9), abs=0.3)
    [row] = differences.rows
    assert (row[1].text, row[1].best) == ("+5.00", True)
    assert not values.rows[0][1].best


def test_one_run_is_described_and_compared_with_none(tmp_path):
    text = said(group(make(tmp_path / "a", right(40, 20))))
    assert text.keys() == {"Calibration", "Most confused", "How sure"}
