import json

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import (
    classification_report,
    log_loss,
    roc_auc_score,
    top_k_accuracy_score,
)

from deit_jax.training import metrics


def test_equal_to_scikit_learn():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 2, (500, 8)), rng.integers(0, 8, 500)
    got = metrics.classification(logits.astype(np.float32), labels)
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert got["loss"] == pytest.approx(log_loss(labels, scores), abs=1e-6)
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, logits, k=k)
        assert got[f"top{k}"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("logits", "labels", "top1", "top5"),
    [
        (np.zeros((10, 10)), np.arange(10), 0.1, 0.5),  # constant: one class right
        (np.full((4, 10), np.nan), np.zeros(4, int), 0, 0),
        (np.eye(3), np.zeros(3, int), 1 / 3, 1),  # fewer than five classes
    ],
)
def test_ties_and_nan_are_not_right(logits, labels, top1, top5):
    got = metrics.classification(logits, labels)
    assert (got["top1"], got["top5"]) == pytest.approx((top1, top5))


def test_mean_head_is_the_mean_of_the_logits():
    heads = metrics.heads({"class": np.ones((2, 3)), "distill": np.zeros((2, 3))})
    assert list(heads) == ["class", "distill", "mean"]
    np.testing.assert_array_equal(heads["mean"], np.full((2, 3), 0.5))
    assert list(metrics.heads({"class": np.ones((2, 3))})) == ["class"]


def scored(images=400, classes=6, seed=0):
    """Logits that are right more often than not, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(0, 1, (images, classes)) + 1.5 * np.eye(classes)[labels]
    return logits.astype(np.float32), labels


def test_macro_averages_are_scikit_learns():
    logits, labels = scored()
    tables = metrics.tables(logits, labels)
    got = metrics.averages(tables)
    expected = classification_report(labels, logits.argmax(1), output_dict=True)
    macro = expected["macro avg"]
    for ours, theirs in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score")):
        assert got[ours] == pytest.approx(macro[theirs], abs=1e-12)
    for c in range(6):
        assert tables["per_class"]["f1"][c] == expected[str(c)]["f1-score"]
        assert tables["per_class"]["support"][c] == expected[str(c)]["support"]
    scores = softmax(logits.astype(np.float64), axis=1)
    auc = roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert got["auc"] == pytest.approx(auc, abs=1e-12)


@pytest.mark.parametrize("decimals", [0, 1, 12])  # 0 and 1: hundreds of ties
def test_auc_is_scikit_learns(decimals):
    scores, labels = scored(images=700, classes=9)
    scores = scores.round(decimals)
    got = metrics.one_vs_rest_auc(scores, labels)
    expected = [roc_auc_score(labels == c, scores[:, c]) for c in range(9)]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_classes_without_images_are_left_out():
    logits, labels = scored()
    labels[labels == 2] = 3
    tables = metrics.tables(logits, labels)
    present = [0, 1, 3, 4, 5]
    scores = softmax(logits.astype(np.float64), axis=1)
    auc = [roc_auc_score(labels == c, scores[:, c]) for c in present]
    assert metrics.averages(tables)["auc"] == pytest.approx(np.mean(auc), abs=1e-12)
    report = classification_report(
        labels, logits.argmax(1), labels=present, output_dict=True
    )["macro avg"]
    assert metrics.averages(tables)["f1"] == pytest.approx(report["f1-score"])
    for name in ("precision", "recall", "f1", "auc"):
        values = tables["per_class"][name]
        assert [c for c, value in enumerate(values) if value is None] == [2]
    assert tables["per_class"]["support"][2] == 0
    json.dumps(tables, allow_nan=False)


def test_images_of_one_class_have_no_auc():
    logits, _ = scored(images=10)
    got = metrics.averages(metrics.tables(logits, np.full(10, 4)))
    assert set(got) == {"precision", "recall", "f1", "ece"}


def test_a_confusion_has_the_true_class_in_its_rows():
    logits = 9 * np.eye(3)[[1, 1, 2, 0]]
    labels = np.array([0, 1, 2, 0])
    tables = metrics.tables(logits, labels)
    assert tables["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    many = np.zeros((4, metrics.LARGEST_CONFUSION + 1))
    assert "confusion" not in metrics.tables(many, labels)


def test_calibration_error_by_hand():
    # Three images at 70 % of which two are right, one at 95 % that is wrong.
    confidence = np.array([0.7, 0.7, 0.7, 0.95])
    logits = np.log(np.stack([confidence, 1 - confidence], axis=1))
    tables = metrics.tables(logits, np.array([0, 0, 1, 1]))
    bins = tables["calibration"]
    assert sum(bins["count"]) == 4
    filled = [n for n, count in enumerate(bins["count"]) if count]
    assert filled == [10, 14]  # 10/15 < 0.7 <= 11/15
    assert bins["accuracy"][10] == pytest.approx(2 / 3)
    assert bins["confidence"][14] == pytest.approx(0.95)
    assert bins["accuracy"][0] is None
    expected = 3 / 4 * abs(0.7 - 2 / 3) + 1 / 4 * 0.95
    assert metrics.averages(tables)["ece"] == pytest.approx(expected)


def test_a_certain_and_right_model_is_calibrated():
    logits = 1000 * np.eye(4, dtype=np.float32)
    tables = metrics.tables(logits, np.arange(4))
    assert tables["calibration"]["count"][-1] == 4  # confidence 1 has a bin
    perfect = dict.fromkeys(["precision", "recall", "f1", "auc"], 1.0)
    assert metrics.averages(tables) == perfect | {"ece": 0.0}
