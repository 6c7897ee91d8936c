"""What a run keeps of its evaluation."""

import numpy as np
import pytest

from deit_jax.training import metrics, predictions


def made(images=40, classes=6):
    rng = np.random.default_rng(0)
    heads = ("class", "distill")
    logits = {h: rng.normal(size=(images, classes)).astype(np.float32) for h in heads}
    return logits, rng.integers(0, classes, images).astype(np.int32)


@pytest.mark.parametrize("kept", ["scores", "columns"])
def test_what_is_read_gives_the_metrics_again(tmp_path, monkeypatch, kept):
    logits, labels = made()
    if kept == "columns":
        monkeypatch.setattr(predictions, "MOST_SCORES", labels.size * 6 - 1)
    predictions.write(tmp_path, logits, labels, fingerprint="abc")
    fingerprint, found = predictions.read(tmp_path)
    assert fingerprint == "abc"
    expected = metrics.heads(logits)
    assert found.keys() == expected.keys()
    for head, one in found.items():
        scored = metrics.classification(expected[head], labels)
        assert one.right.mean() == scored["top1"]
        assert (one.rank < 5).mean() == scored["top5"]
        assert one.loss.mean() == pytest.approx(scored["loss"], abs=1e-6)
        np.testing.assert_array_equal(one.predicted, expected[head].argmax(axis=1))
        assert (one.scores is None) == (kept == "columns")
        assert one.classes == 6
        if one.scores is not None:
            np.testing.assert_array_equal(one.confidence, one.scores.max(axis=1))


def test_the_file_of_cifar_10_has_less_than_a_megabyte(tmp_path):
    predictions.write(tmp_path, *made(10_000, 10), fingerprint="abc")
    assert (tmp_path / predictions.PREDICTIONS).stat().st_size < 1e6


def test_of_imagenet_only_columns_are_kept(tmp_path):
    logits, labels = made(1001, 1000)
    predictions.write(tmp_path, logits, labels, fingerprint="abc")
    # Three heads of four columns of four bytes.
    assert (tmp_path / predictions.PREDICTIONS).stat().st_size < 1001 * 52 + 4000


def test_a_model_that_gives_nan_leaves_none(tmp_path):
    logits, labels = made()
    logits["distill"][3, 2] = np.nan
    predictions.write(tmp_path, logits, labels, fingerprint="abc")
    assert predictions.read(tmp_path) is None


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "other arrays", "folder"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / predictions.PREDICTIONS
    predictions.write(tmp_path, *made(), fingerprint="abc")
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "other arrays":
        np.savez(path, labels=np.arange(3))
    else:
        cut = content[: len(content) // 2]
        path.write_bytes({"empty": b"", "cut": cut, "text": b"abc"}[damage])
    with pytest.raises(ValueError, match=r"no file of predictions|no regular file"):
        predictions.read(tmp_path)
