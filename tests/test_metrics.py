import numpy as np
import pytest
from sklearn.metrics import log_loss, top_k_accuracy_score

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


def test_a_constant_model_gets_no_more_than_one_class_right():
    labels = np.arange(10)
    assert metrics.classification(np.zeros((10, 10)), labels)["top1"] == 0.1


def test_a_model_that_gives_nan_is_never_right():
    got = metrics.classification(np.full((4, 10), np.nan), np.zeros(4, int))
    assert got["top1"] == got["top5"] == 0
    assert np.isnan(got["loss"])


def test_fewer_than_five_classes():
    got = metrics.classification(np.eye(3), np.array([0, 0, 0]))
    assert got["top1"] == pytest.approx(1 / 3)
    assert got["top5"] == 1


def test_mean_head_is_the_mean_of_the_logits():
    heads = metrics.heads({"class": np.ones((2, 3)), "distill": np.zeros((2, 3))})
    assert list(heads) == ["class", "distill", "mean"]
    np.testing.assert_array_equal(heads["mean"], np.full((2, 3), 0.5))
    assert list(metrics.heads({"class": np.ones((2, 3))})) == ["class"]
