"""Evaluation from a run directory alone."""

import json

import numpy as np
import pytest
import run_directories
from PIL import Image

from deit_jax import evaluate as command
from deit_jax import trained_model
from deit_jax.data import sources
from deit_jax.errors import InputError
from deit_jax.training import metrics, probes, summary

HEADS = ("class", "distill")
SPLIT = "test[:21]"  # no multiple of the devices


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    run_directories.make(path, ema=True)
    return path


@pytest.fixture(scope="module")
def logits(run):
    """{weights: {head: [N, C]}} of the split."""
    images = sources.load("digits", SPLIT).images
    kinds = ("raw", "ema")
    return {k: trained_model.load(run, weights=k).logits(images) for k in kinds}


def test_every_head_raw_and_average(run, logits):
    result = command.evaluate(run, dataset="digits", split=SPLIT, batch_size=8)
    labels = sources.load("digits", SPLIT).labels
    for section, kind in (("eval", "raw"), ("eval_ema", "ema")):
        assert result[section].keys() == {"class", "distill", "mean"}
        for head, found in result[section].items():
            expected = metrics.classification(logits[kind][head], labels)
            assert {name: found[name] for name in expected} == pytest.approx(
                expected, abs=1e-5
            )
            assert {"precision", "recall", "f1", "auc", "ece"} <= found.keys()
    assert result["eval"]["class"]["loss"] != result["eval_ema"]["class"]["loss"]
    assert (result["step"], result["images"]) == (3, 21)
    assert json.loads(json.dumps(result)) == result
    assert (result["notes"], result["absent_classes"]) == ([], ["4", "5", "8"])


def test_one_set_of_weights(run, logits):
    result = command.evaluate(run, dataset="digits", split=SPLIT, weights="ema")
    assert "eval" not in result
    labels = sources.load("digits", SPLIT).labels
    expected = metrics.classification(logits["ema"]["mean"], labels)["loss"]
    assert result["eval_ema"]["mean"]["loss"] == pytest.approx(expected, abs=1e-5)


def test_intervals_stand_under_what_they_are_of(run):
    result = command.evaluate(run, dataset="digits", split=SPLIT, bootstrap=50)
    for section in ("eval", "eval_ema"):
        for head, scores in result[section].items():
            ends = result["intervals"][section][head]
            assert ends.keys() == scores.keys()
            assert all(low <= high for low, high in ends.values())
            low, high = ends["loss"]
            assert low < scores["loss"] < high
    lines = summary.table(result).splitlines()
    heads = [line[:20].split() for line in lines[1:4]]
    assert heads == [["raw", "class"], ["from"], ["to"]]
    low, high = result["intervals"]["eval"]["class"]["loss"]
    assert lines[2].split()[1] == f"{low:.4f}" and lines[3].split()[1] == f"{high:.4f}"
    with pytest.raises(InputError, match="--bootstrap=-1: expected at least 0"):
        command.evaluate(run, bootstrap=-1)


@pytest.mark.slow
def test_a_run_gives_its_summary_again(digits_run):
    written = json.loads((digits_run / "summary.json").read_text())
    result = command.evaluate(digits_run)
    assert (result["dataset"], result["split"]) == ("digits", "test[:50]")
    for section in command.SECTIONS.values():
        for head in ("class", "distill", "mean"):
            assert result[section][head] == pytest.approx(written[section][head])


def folder_of_digits(path, digits, names):
    """test/<name>/*.png for each of `digits`; every class wants a train folder too."""
    source = sources.load("digits", "test[:100]")
    for digit, name in zip(digits, names, strict=True):
        for split in ("train", "test"):
            directory = path / split / name
            directory.mkdir(parents=True)
            for i in np.flatnonzero(source.labels == digit)[:3]:
                Image.fromarray(source.images[i]).save(directory / f"{i}.png")
    return f"folder:{path}"


@pytest.mark.slow
def test_classes_are_matched_by_name(tmp_path):
    names = ("nine", "one", "two", "zero")
    run_directories.make(tmp_path / "run", class_names=names)
    folder = folder_of_digits(tmp_path / "pictures", (0, 1, 9), ("zero", "one", "nine"))
    result = command.evaluate(tmp_path / "run", dataset=folder, split="val")
    assert "pictures/test is taken for val" in result["notes"][0]
    assert "matched by their names" in result["notes"][1]
    assert result["absent_classes"] == ["two"]
    # By hand: the labels are the model's numbers of these names.
    source = sources.load(folder, "test")
    images, labels = zip(*source.pil_images(range(len(source))), strict=True)
    number = {"nine": 0, "one": 1, "zero": 3}
    labels = np.array([number[source.class_names[label]] for label in labels])
    logits = trained_model.load(tmp_path / "run").logits(np.stack(images))
    expected = metrics.classification(logits["class"], labels)["loss"]
    assert result["eval"]["class"]["loss"] == pytest.approx(expected, abs=1e-5)


def test_other_names_are_compared_in_their_order_where_they_are_as_many():
    labels_of, notes = command.match_classes(["a", "b"], ["x", "y"], name="pets")
    assert labels_of.tolist() == [0, 1]
    assert "other names than the model's (x, y, ...)" in notes[0]
    labels_of, notes = command.match_classes(["x", "y"], ("x", "y"), name="pets")
    assert (labels_of.tolist(), notes) == ([0, 1], [])
    with pytest.raises(InputError, match="pets has 2 classes, the model 10"):
        command.match_classes(["a", "3"], run_directories.DIGITS, name="pets")


def test_a_converted_model_has_no_data_set(tmp_path):
    run_directories.make(tmp_path, "vit_nano_patch8_32")
    with pytest.raises(InputError, match="has no data set of its own"):
        command.evaluate(tmp_path)
    with pytest.raises(InputError, match="no moving average"):
        command.evaluate(tmp_path, dataset="digits", split="test[:3]", weights="ema")
    result = command.evaluate(tmp_path, dataset="digits", split="test[:3]")
    assert "eval_ema" not in result
    assert result["eval"].keys() == {"class"}


@pytest.mark.parametrize("text", ["", "[]", '{"dataset": {"name": 1}}'])
def test_a_damaged_config_is_named(tmp_path, text):
    run_directories.make(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        command.evaluate(tmp_path)


def test_the_mean_over_the_mirror_image(run, logits):
    source = sources.load("digits", SPLIT)
    mirrored = trained_model.load(run).logits(source.images[:, :, ::-1])
    result = command.evaluate(
        run, dataset="digits", split=SPLIT, weights="raw", batch_size=8, tta="flip"
    )
    for head, plain in logits["raw"].items():
        mean = (plain + mirrored[head]) / 2
        expected = metrics.classification(mean, source.labels)
        found = {name: result["eval"][head][name] for name in expected}
        assert found == pytest.approx(expected, abs=1e-5)
        alone = metrics.classification(plain, source.labels)
        assert abs(alone["loss"] - expected["loss"]) > 1e-3
    assert result["tta"] == "flip"
    note = "logits are the mean over each image and its mirror image"
    assert result["notes"] == [note]


@pytest.mark.slow
def test_classifiers_learn_from_each_token(run):
    settings = {"dataset": "digits", "split": SPLIT, "train_split": "train[:200]"}
    result = command.evaluate(run, **settings, knn=5, linear_probe=True)
    assert json.loads(json.dumps(result)) == result
    found = result["features"]
    assert (found["train_split"], found["train_images"]) == ("train[:200]", 200)
    train, test = sources.load("digits", "train[:200]"), sources.load("digits", SPLIT)
    model = trained_model.load(run, weights="ema")
    for token in HEADS:
        known, seen = (model.features(x.images, tokens=token) for x in (train, test))
        lengths = np.linalg.norm(known, axis=1) * np.linalg.norm(seen, axis=1)[:, None]
        nearest = train.labels[np.argsort(-(seen @ known.T) / lengths)[:, :5]]
        votes = np.array([np.bincount(row).argmax() for row in nearest])
        accuracies = found["eval_ema"][token]
        assert accuracies["knn"] == pytest.approx((votes == test.labels).mean())
        linear = probes.classifiers(knn=None, linear=True)["linear"]
        again = linear.fit(known, train.labels).score(seen, test.labels)
        assert accuracies["linear"] == again > 0.5  # at random 0.1
    assert found["eval"] != found["eval_ema"]


def test_features_are_measured_on_classes_that_no_head_knows(tmp_path):
    run_directories.make(tmp_path / "run", class_names=("cat", "dog"))
    settings = {"dataset": "digits", "split": SPLIT, "weights": "raw"}
    with pytest.raises(InputError, match="digits has 10 classes, the model 2"):
        command.evaluate(tmp_path / "run", **settings)
    settings |= {"knn": 3, "train_split": "train[:99]"}
    result = command.evaluate(tmp_path / "run", **settings)
    assert "the heads are not scored: digits has 10 classes" in result["notes"][0]
    assert "eval" not in result
    assert result["features"]["eval"]["class"].keys() == {"knn"}
    lines = summary.table(result["features"], command.PROBES).splitlines()
    assert lines[0].split()[2] == "k-NN"
    assert [line.split()[:2] for line in lines[1:]] == [["raw", h] for h in HEADS]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"knn": 0}, "--knn=0: expected at least 1"),
        ({"knn": 9, "train_split": "train[:8]"}, "there are 8 training images only"),
        ({"linear_probe": True, "train_split": "train[:1]"}, "are all of one class"),
        ({"knn": 1, "train_split": "trian"}, "trian"),
        ({"train_split": "train"}, "goes with --knn or --linear_probe"),
        ({"knn": 1}, r"training images would take .*--train_split='train\[:\d+%\]'"),
    ],
)
def test_refuses_what_no_classifier_can_learn(run, monkeypatch, settings, message):
    monkeypatch.setattr(probes, "LARGEST", 2**20)
    with pytest.raises(InputError, match=message):
        command.evaluate(run, dataset="digits", split=SPLIT, **settings)
