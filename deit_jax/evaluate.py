"""Evaluates the model of a run directory again, on any split or data set.

    python -m deit_jax.evaluate --workdir=runs/deit-digits
    python -m deit_jax.evaluate --workdir=runs/deit-digits --split=train --json
    python -m deit_jax.evaluate --workdir=runs/deit-digits --bootstrap=1000
    python -m deit_jax.evaluate --workdir=runs/deit-small --dataset=folder:pets
    python -m deit_jax.evaluate --workdir=runs/vit-cifar10 --dataset=cifar10_1/v6
    python -m deit_jax.evaluate --workdir=runs/deit-digits --tta=flip
    python -m deit_jax.evaluate --workdir=runs/deit-digits --knn=20 --linear_probe

Every image of the split counts once, for every head, with the raw parameters and, where
the run has one, their moving average: on the run's own split that gives its
summary.json again. With --tta=flip the logits are the mean of those of the image and of
its mirror image. With --bootstrap the confidence interval of every metric stands under
it: what 95 % of as many test images, drawn anew, would give.

--knn and --linear_probe measure the features behind the heads: classifiers learn from
them on the training split, its images as in evaluation, and are scored on the other.
The classes of the data set may then be others than the model's.
"""

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from deit_jax import command, files
from deit_jax.errors import InputError

SPLIT, TRAIN_SPLIT = "test", "train"  # of a data set that is not the run's own
OWN = ("name", "eval_split", "train_split", "data_dir")  # of a run's config.dataset
SECTIONS = {"raw": "eval", "ema": "eval_ema"}  # in summary.json and here


def evaluate(
    workdir: str | os.PathLike,
    *,
    dataset: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    weights: str = "both",
    step: int | None = None,
    batch_size: int = 256,
    workers: int = 4,
    bootstrap: int = 0,
    tta: str | None = None,
    knn: int | None = None,
    linear_probe: bool = False,
    train_split: str | None = None,
) -> dict:
    """Computes all metrics of a model.

    Args:
      workdir: A run directory, or weights as `trained_model.load` reads them.
      dataset: As `config.dataset.name`; None is the run's own.
      split: In TFDS syntax; None is the run's own, or `test` of another data set.
      data_dir: Where TFDS keeps its sets; None is the run's own, or TFDS's default.
      weights: `raw`, `ema` or `both`, which is `raw` where there is no average.
      step: Of the checkpoint; None is the newest.
      batch_size: Images at once, over all devices.
      workers: Processes that read images too large for memory.
      bootstrap: Resamples of the images for the intervals; 0 for none.
      tta: `flip` takes the mean of the logits of every image and its mirror image.
      knn: The number of neighbours that vote (`probes.nearest`); None for no vote.
      linear_probe: Whether to fit one (`probes.linear`).
      train_split: What `knn` and `linear_probe` learn from, in TFDS syntax; None is the
        run's own, or `train` of another data set.

    Returns:
      `workdir`, `variant`, `step`, `dataset`, `split`, `images`, `notes` (a list of
      str), `tta` and, as in summary.json, `absent_classes`, `eval` and `eval_ema`,
      which are missing where features are measured on other classes. With `knn` or
      `linear_probe` there is `features`: `train_split`, `train_images` and
      {"eval": {token: {"knn": accuracy, "linear": accuracy}}}; with `bootstrap` also
      `intervals`, {"eval": {head: {metric: [low, high]}}}.

    Raises:
      InputError: The model, the data set or a setting cannot work, the classes of the
        data set are not the model's, the training features would take too much memory,
        or several processes were started.
    """
    command.require_at_least(1, batch_size=batch_size)
    command.require_at_least(0, bootstrap=bootstrap)
    if knn is not None:
        command.require_at_least(1, knn=knn)
    probing = knn is not None or linear_probe
    if train_split is not None and not probing:
        raise InputError("--train_split goes with --knn or --linear_probe.")
    from deit_jax.training import processes

    processes.refuse("deit_jax.evaluate")
    trained = _load(workdir, weights, step)
    one = next(iter(trained.values()))
    data = _dataset(workdir, dataset, data_dir, split=split, train_split=train_split)
    source = _open(data, "split")
    train = _open_train(data, trained, knn, linear_probe) if probing else None
    settings = {"batch_size": batch_size, "workers": workers}
    result = {
        "workdir": str(workdir),
        "variant": one.card.variant,
        "step": one.step,
        "dataset": source.name,
        "split": source.split,
        "images": len(source),
        "notes": [*one.notes, *source.notes],
        "tta": tta,
    }
    try:
        scored, remarks = _score(trained, source, tta, bootstrap, settings)
    except OtherClasses as error:
        if not probing:
            raise
        scored, remarks = {}, [f"the heads are not scored: {error}"]
    result["notes"] += remarks
    result |= scored
    if probing:
        result["features"] = _probe(trained, train, source, knn, linear_probe, settings)
    return result


class OtherClasses(InputError):
    """The heads say nothing about the classes of a data set."""


def _load(workdir, weights: str, step: int | None) -> dict:
    """A `TrainedModel` for each section of the result."""
    from deit_jax import trained_model
    from deit_jax.models import model_card
    from deit_jax.training import saved_params

    kinds = [weights]
    if weights == "both":
        run = model_card.is_run(workdir)
        kinds = saved_params.weights_in(workdir, step=step) if run else ["raw"]
    return {
        SECTIONS[kind]: trained_model.load(workdir, weights=kind, step=step)
        for kind in kinds
    }


def _score(
    trained: dict, source, tta: str | None, resamples: int, settings: dict
) -> tuple[dict, list[str]]:
    """The metrics of each `TrainedModel` over all images, and notes."""
    import jax

    from deit_jax.training import evaluation
    from deit_jax.training.step import pmap_eval_step

    one = next(iter(trained.values()))
    names = one.card.class_names
    labels_of, notes = match_classes(source.class_names, names, name=source.name)
    statics = {"model": one.module, "mean": one.card.mean, "std": one.card.std}
    eval_step = pmap_eval_step(jax.local_devices(), **statics)
    if tta == "flip":
        eval_step = functools.partial(_with_mirror_image, eval_step)
        notes.append("logits are the mean over each image and its mirror image")
    labels = source.labels if labels_of is None else labels_of[source.labels]
    more = {"labels_of": labels_of, "resamples": resamples}
    results = _over(source, evaluation.evaluate, eval_step, trained, settings, **more)
    absent = evaluation.absent_classes(labels, names)
    return {"absent_classes": absent, **results}, notes


def _with_mirror_image(eval_step, params, images) -> dict:
    """The mean of the logits of images [d, b, H, W, 3] and their mirror images."""
    import jax

    both = eval_step(params, images), eval_step(params, images[..., ::-1, :])
    return jax.tree.map(lambda one, other: (one + other) / 2, *both)


def _open_train(data: dict, trained: dict, knn: int | None, linear_probe: bool):
    """What `_probe` learns from, if there is not too much or too little of it."""
    from deit_jax.training import probes

    module, train = next(iter(trained.values())).module, _open(data, "train_split")
    probes.check(
        train.labels,
        len(train.class_names),
        numbers=len(module.heads) * len(trained) * module.width,
        width=module.width,
        k=knn,
        linear=linear_probe,
    )
    return train


def _probe(trained, train, test, knn, linear_probe: bool, settings: dict) -> dict:
    """What classifiers learn from the tokens of each `TrainedModel`, each apart."""
    import jax

    from deit_jax.training import evaluation, probes

    one = next(iter(trained.values()))
    tokens = one.module.heads
    compute = jax.pmap(one.features_of(*tokens), in_axes=(None, 0))
    (learned, labels), (seen, test_labels) = (
        _over(source, evaluation.collect_logits, compute, trained, settings)
        for source in (train, test)
    )
    found = {"train_split": train.split, "train_images": len(train)}
    for section in trained:
        found[section] = {token: {} for token in tokens}
        for token, accuracies in found[section].items():
            split = (learned[section][token], labels, seen[section][token], test_labels)
            if knn is not None:
                accuracies["knn"] = probes.nearest(*split, k=knn)
            if linear_probe:
                accuracies["linear"] = probes.linear(*split)
    return found


def _over(source, function, eval_step, trained: dict, settings: dict, **more):
    """What a `function` of `evaluation` makes of the images and each `TrainedModel`."""
    import jax

    from deit_jax.data.pipeline import open_images

    card = next(iter(trained.values())).card
    with open_images(
        source,
        size=card.image_size,
        workers=settings["workers"],
        crop_ratio=card.crop_ratio,
    ) as images:
        return function(
            eval_step,
            {section: model.params for section, model in trained.items()},
            images,
            batch_size=settings["batch_size"],
            devices=len(jax.local_devices()),
            **more,
        )


def _open(data: dict, split: str):
    from deit_jax.data import sources

    return sources.load(data["name"], data[split], data_dir=data["data_dir"] or None)


def _dataset(workdir, name: str | None, data_dir: str | None, **splits) -> dict:
    """`name`, `data_dir`, `split` and `train_split`: those given, or the run's own."""
    own = dict.fromkeys(OWN)
    if name is None:
        own = _dataset_of(workdir)
        if own is None:
            raise InputError(
                f"{workdir} was not trained here, so it has no data set of its own: "
                "say which, e.g. --dataset=imagenet2012 --split=validation"
            )
    return {
        "name": name or own["name"],
        "data_dir": data_dir or own["data_dir"],
        "split": splits["split"] or own["eval_split"] or SPLIT,
        "train_split": splits["train_split"] or own["train_split"] or TRAIN_SPLIT,
    }


def match_classes(
    data: Sequence[str], model: Sequence[str], *, name: str
) -> tuple[np.ndarray | None, list[str]]:
    """Which class of the model each class of a data set is.

    By name, where the model knows all of the names: the data set may then have fewer
    classes, in any order. Otherwise by position, where the numbers of classes agree.

    Returns:
      The model's class for each of the data set's, int [C], None where they are the
      same; and notes.

    Raises:
      InputError: Neither fits.
    """
    if tuple(data) == tuple(model):
        return None, []
    position = {class_name: i for i, class_name in enumerate(model)}
    if set(data) <= position.keys():
        notes = [f"the {len(data)} classes of {name} are matched by their names"]
        return np.array([position[class_name] for class_name in data]), notes
    unknown = [class_name for class_name in data if class_name not in position]
    if len(data) != len(model):
        raise OtherClasses(
            f"{name} has {len(data)} classes, the model {len(model)}, and the model "
            f"does not know {len(unknown)} of their names: {', '.join(unknown[:5])}"
            f"{', ...' * (len(unknown) > 5)}. Its own are {', '.join(model[:5])}"
            f"{', ...' * (len(model) > 5)}. Evaluate on the classes it was trained on."
        )
    return None, [
        f"the classes of {name} ({', '.join(data[:3])}, ...) bear other names than the "
        f"model's ({', '.join(model[:3])}, ...): they are compared in their order"
    ]


def _dataset_of(workdir: str | os.PathLike) -> dict[str, str] | None:
    """What a training run's config says of its data; None of other models."""
    from deit_jax.training.run_directory import CONFIG

    path = Path(workdir) / CONFIG
    if not path.exists():
        return None
    try:
        config = files.read_json(path)
        files.check(config, {"dataset": dict.fromkeys(OWN, str)})
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged: {error}. Say which data set (--dataset=...), and "
            "move the file away."
        ) from error
    return config["dataset"]


def define_flags() -> None:
    command.define_model_flags(("both", "raw", "ema"))
    flags.DEFINE_string("dataset", None, "A name of docs/data.md; the run's own.")
    flags.DEFINE_string("split", None, "In TFDS syntax; the run's own if not given.")
    flags.DEFINE_string("data_dir", None, "Where TFDS keeps its sets.")
    flags.DEFINE_integer("batch_size", 256, "Images at once, over all devices.")
    flags.DEFINE_integer(
        "workers", 4, "Processes that read streamed images.", lower_bound=0
    )
    flags.DEFINE_integer("bootstrap", 0, "Resamples for confidence intervals: 1000.")
    flags.DEFINE_enum("tta", None, ["flip"], "The mean over an image and its mirror.")
    flags.DEFINE_integer("knn", None, "Measure features by so many neighbours: 20.")
    flags.DEFINE_bool("linear_probe", False, "Measure features by a linear classifier.")
    flags.DEFINE_string("train_split", None, "What these learn from; the run's own.")
    flags.DEFINE_bool("json", False, "JSON instead of a table.")


def main(_) -> None:
    command.require(workdir="runs/deit-digits")
    names = ("dataset", "split", "data_dir", "weights", "step", "batch_size", "workers")
    probing = ("bootstrap", "tta", "knn", "linear_probe", "train_split")
    result = evaluate(flags.FLAGS.workdir, **command.values(*names, *probing))
    if flags.FLAGS.json:
        print(json.dumps(result, indent=1))
        return
    from deit_jax.training import summary

    for note in result["notes"]:
        print(f"note: {note}")
    print(
        f"{result['variant']} of {result['workdir']}, step {result['step']:,}, on "
        f"{result['dataset']} ({result['split']}, {result['images']:,} images)"
    )
    if "eval" in result or "eval_ema" in result:
        print(summary.table(result))
    if "features" in result:
        print(_features_table(result["features"], result["dataset"]))


def _features_table(found: dict, dataset: str) -> str:
    """A line for each set of parameters and each token."""
    title = {"knn": "k-NN", "linear": "linear probe"}
    rows = [
        (kind, token, values)
        for kind, section in SECTIONS.items()
        for token, values in found.get(section, {}).items()
    ]
    heads = "".join(f"{title[name]:>14}" for name in rows[0][2])
    lines = [
        f"features of {found['train_images']:,} images of {dataset} "
        f"({found['train_split']}), top-1:",
        f"{'weights':<10}{'token':<10}{heads}",
    ]
    for kind, token, values in rows:
        cells = "".join(f"{value:>14.2%}" for value in values.values())
        lines.append(f"{kind:<10}{token:<10}{cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    define_flags()
    command.run(main)
