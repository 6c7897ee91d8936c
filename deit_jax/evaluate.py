"""Evaluates the model of a run directory again, on any split or data set.

    python -m deit_jax.evaluate --workdir=runs/deit-digits
    python -m deit_jax.evaluate --workdir=runs/deit-digits --split=train --json
    python -m deit_jax.evaluate --workdir=runs/deit-digits --bootstrap=1000
    python -m deit_jax.evaluate --workdir=runs/deit-small --dataset=folder:pets
    python -m deit_jax.evaluate --workdir=runs/vit-cifar10 --dataset=cifar10_1/v6

Every image of the split counts once, for every head, with the raw parameters and, where
the run has one, their moving average: on the run's own split that gives its
summary.json again. With --bootstrap the confidence interval of every metric stands
under it: what 95 % of as many test images, drawn anew, would give.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from deit_jax import command, files
from deit_jax.errors import InputError

SPLIT = "test"  # of a data set that is not the run's own
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
) -> dict:
    """Computes all metrics of the model in `workdir`.

    Args:
      dataset: As `config.dataset.name`; None is the run's own.
      split: In TFDS syntax; None is the run's own, or `test` of another data set.
      data_dir: Where TFDS keeps its sets; None is the run's own, or TFDS's default.
      weights: `raw`, `ema` or `both`, which is `raw` where there is no average.
      step: Of the checkpoint; None is the newest.
      batch_size: Images at once, over all devices.
      workers: Processes that read images too large for memory.
      bootstrap: Resamples of the images for the intervals; 0 for none.

    Returns:
      `workdir`, `variant`, `step`, `dataset`, `split`, `images`, `notes` (a list of
      str) and, as in summary.json, `absent_classes`, `eval` and `eval_ema`; with
      `bootstrap` also `intervals`, {"eval": {head: {metric: [low, high]}}}.

    Raises:
      InputError: The run directory, the data set or a setting cannot work, the classes
        of the data set are not the model's, or several processes were started.
    """
    command.require_at_least(1, batch_size=batch_size)
    command.require_at_least(0, bootstrap=bootstrap)
    from deit_jax.data.pipeline import open_images
    from deit_jax.models import model_card
    from deit_jax.training import evaluation, processes

    processes.refuse("deit_jax.evaluate")
    card = model_card.read(workdir)
    source = _open_source(workdir, dataset, split, data_dir)
    labels_of, notes = match_classes(
        source.class_names, card.class_names, name=source.name
    )
    labels = source.labels if labels_of is None else labels_of[source.labels]
    trained = _load(workdir, weights, step)
    with open_images(
        source, size=card.image_size, workers=workers, crop_ratio=card.crop_ratio
    ) as images:
        results = _score(trained, images, batch_size, labels_of, bootstrap)
    return {
        "workdir": str(workdir),
        "variant": card.variant,
        "step": next(iter(trained.values())).step,
        "dataset": source.name,
        "split": source.split,
        "images": len(source),
        "notes": [*source.notes, *notes],
        "absent_classes": evaluation.absent_classes(labels, card.class_names),
        **results,
    }


def _load(workdir, weights: str, step: int | None) -> dict:
    """A `TrainedModel` for each section of the result."""
    from deit_jax import trained_model
    from deit_jax.training import saved_params

    kinds = [weights]
    if weights == "both":
        kinds = saved_params.weights_in(workdir, step=step)
    return {
        SECTIONS[kind]: trained_model.load(workdir, weights=kind, step=step)
        for kind in kinds
    }


def _score(trained, images, batch_size: int, labels_of, resamples: int) -> dict:
    """The metrics of each `TrainedModel` over all images."""
    import jax

    from deit_jax.training import evaluation
    from deit_jax.training.step import pmap_eval_step

    one, devices = next(iter(trained.values())), jax.local_devices()
    mean, std = one.card.mean, one.card.std
    return evaluation.evaluate(
        pmap_eval_step(devices, model=one.module, mean=mean, std=std),
        {section: model.params for section, model in trained.items()},
        images,
        batch_size=batch_size,
        devices=len(devices),
        labels_of=labels_of,
        resamples=resamples,
    )


def _open_source(workdir, dataset, split, data_dir):
    from deit_jax.data import sources

    if dataset is None:
        trained_on = _dataset_of(workdir)
        if trained_on is None:
            raise InputError(
                f"{workdir} was not trained here, so it has no data set of its own: "
                "say which, e.g. --dataset=imagenet2012 --split=validation"
            )
        dataset, its_split, its_data_dir = trained_on
        split, data_dir = split or its_split, data_dir or its_data_dir
    return sources.load(dataset, split or SPLIT, data_dir=data_dir or None)


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
        raise InputError(
            f"{name} has {len(data)} classes, the model {len(model)}, and the model "
            f"does not know {len(unknown)} of their names: {', '.join(unknown[:5])}"
            f"{', ...' * (len(unknown) > 5)}. Its own are {', '.join(model[:5])}"
            f"{', ...' * (len(model) > 5)}. Evaluate on the classes it was trained on."
        )
    return None, [
        f"the classes of {name} ({', '.join(data[:3])}, ...) bear other names than the "
        f"model's ({', '.join(model[:3])}, ...): they are compared in their order"
    ]


def _dataset_of(workdir: str | os.PathLike) -> tuple[str, str, str] | None:
    """Name, evaluation split and data_dir of a training run; None of other models."""
    from deit_jax.training.run_directory import CONFIG

    path = Path(workdir) / CONFIG
    if not path.exists():
        return None
    try:
        config = files.read_json(path)
        names = ("name", "eval_split", "data_dir")
        files.check(config, {"dataset": dict.fromkeys(names, str)})
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged: {error}. Say which data set (--dataset=...), and "
            "move the file away."
        ) from error
    return tuple(config["dataset"][name] for name in names)


def define_flags() -> None:
    command.define_model_flags(("both", "raw", "ema"))
    flags.DEFINE_string("dataset", None, "A name of docs/data.md; the run's own.")
    flags.DEFINE_string("split", None, "In TFDS syntax; the run's own if not given.")
    flags.DEFINE_string("data_dir", None, "Where TFDS keeps its sets.")
    flags.DEFINE_integer("batch_size", 256, "Images at once, over all devices.")
    flags.DEFINE_integer("workers", 4, "Processes that read streamed images.")
    flags.DEFINE_integer("bootstrap", 0, "Resamples for confidence intervals: 1000.")
    flags.DEFINE_bool("json", False, "JSON instead of a table.")


def main(_) -> None:
    command.require(workdir="runs/deit-digits")
    names = ("dataset", "split", "data_dir", "weights", "step", "batch_size", "workers")
    settings = command.values(*names, "bootstrap")
    result = evaluate(flags.FLAGS.workdir, **settings)
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
    print(summary.table(result))


if __name__ == "__main__":
    define_flags()
    command.run(main)
