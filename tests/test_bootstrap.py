"""Intervals: resampled metrics against a plain loop, scipy and repeated samples."""

import time

import numpy as np
import pytest
from scipy import stats

from deit_jax.training import bootstrap, metrics, predictions


def made(images=300, classes=5, skill=1.5, seed=0, decimals=7):
    """Logits with ties where `decimals` are few, and labels of uneven classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images) * rng.integers(0, 2, images)
    logits = rng.normal(0, 1, (images, classes)) + skill * np.eye(classes)[labels]
    return logits.round(decimals).astype(np.float32), labels


def metrics_of(logits, labels):
    tables = metrics.tables(logits, labels)
    f1 = np.array(tables["per_class"]["f1"], float)
    found = metrics.classification(logits, labels) | metrics.averages(tables)
    return found | {"f1_of_class": f1}


@pytest.mark.parametrize(
    ("images", "classes", "decimals"),
    [(300, 5, 7), (300, 5, 0), (12, 6, 7), (70, 2, 1)],
    ids=["many", "ties", "classes that drop out", "two classes"],
)
def test_resampled_metrics_are_those_of_a_plain_loop(images, classes, decimals):
    logits, labels = made(images, classes, decimals=decimals)
    resamples = bootstrap.BLOCK + 3  # more than a block
    got = bootstrap.replicates(
        predictions.of_logits(logits, labels), resamples=resamples
    )
    drawn = [c for block in bootstrap._counts(images, resamples, 0) for c in block.T]
    expected = [
        metrics_of(logits[rows], labels[rows])
        for rows in (np.repeat(np.arange(images), c.astype(int)) for c in drawn)
    ]
    assert got.keys() == expected[0].keys()
    for name, values in got.items():
        plain = np.array([one.get(name, np.nan) for one in expected])
        if name == "ece":  # on average it is that of all images
            assert plain.mean() > metrics_of(logits, labels)["ece"]
            plain += metrics_of(logits, labels)["ece"] - plain.mean()
        np.testing.assert_allclose(values, plain, rtol=0, atol=1e-9, err_msg=name)


def test_intervals_are_scipys():
    logits, labels = made(500)
    answers = predictions.of_logits(logits, labels)
    got = bootstrap.replicates(answers, resamples=4000)
    for name, values in (("top1", answers.right), ("loss", answers.loss)):
        expected = stats.bootstrap(
            (values.astype(float),), np.mean, n_resamples=4000, method="percentile"
        ).confidence_interval
        width = expected.high - expected.low
        np.testing.assert_allclose(
            bootstrap.interval(got[name]), expected, rtol=0, atol=0.08 * width
        )


def test_an_interval_holds_the_truth_as_often_as_it_says():
    truth = metrics_of(*made(100_000))
    inside = dict.fromkeys(("top1", "f1", "auc", "ece", "loss"), 0)
    for seed in range(1, 101):
        answers = predictions.of_logits(*made(400, seed=seed))
        drawn = bootstrap.replicates(answers, resamples=200)
        for name in inside:
            low, high = bootstrap.interval(drawn[name])
            inside[name] += low <= truth[name] <= high
    assert all(86 <= count <= 100 for count in inside.values()), inside


def test_the_same_images_are_drawn_for_every_model():
    logits, labels = made()
    one, same, other = (
        bootstrap.replicates(predictions.of_logits(logits * scale, labels), seed=seed)
        for scale, seed in ((1, 0), (3, 0), (1, 1))
    )
    np.testing.assert_array_equal(one["top1"], same["top1"])
    assert np.std(one["top1"] - other["top1"]) > np.std(one["top1"])


def test_a_confusion_matrix_gives_what_it_tells():
    logits, labels = made(2000)
    answers = predictions.of_logits(logits, labels)
    full = bootstrap.replicates(answers)
    matrix = metrics.tables(logits, labels)["confusion"]
    part = bootstrap.confusion_replicates(matrix)
    assert part.keys() == {"top1", "precision", "recall", "f1", "f1_of_class"}
    for name, values in part.items():
        for statistic, rtol in ((np.mean, 0.02), (np.std, 0.15)):
            np.testing.assert_allclose(
                statistic(values, axis=0), statistic(full[name], axis=0), rtol=rtol
            )


def test_cifar_takes_seconds():
    answers = predictions.of_logits(*made(10_000, 10))
    start = time.process_time()
    bootstrap.replicates(answers)
    assert time.process_time() - start < 10
