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

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from deit_jax import command, files
from deit_jax.errors import InputError, listed
from deit_jax.training import probes

# Of a data set that is not the run's own; named as in a run's config.dataset.
ANOTHER = {"data_dir": "", "eval_split": "test", "train_split": "train"}
SECTIONS = {"raw": "eval", "ema": "eval_ema"}  # in summary.json and here
PROBES = (("knn", "k-NN", ".2%"), ("linear", "linear", ".2%"))  # for `summary.table`


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
    """Computes all metrics of a model, as the flags of the same names say.

    Returns:
      `workdir`, `variant`, `step`, `dataset`, `split`, `images`, `notes` (a list of
      str), `tta` and, as in summary.json, `absent_classes`, `eval` and `eval_ema`, but
      not where features are measured on other classes. With `knn` or `linear_probe`
      `features`: `train_split`, `train_images` and {"eval": {token: {"knn": accuracy,
      "linear": accuracy}}}; with `bootstrap` `intervals`: {"eval": {head: {metric:
      [low, high]}}}.

    Raises:
      InputError: The model, the data set or a setting cannot work, or the classes of
        the data set are not the model's.
    """
    command.require_at_least(1, batch_size=batch_size, knn=1 if knn is None else knn)
    command.require_at_least(0, bootstrap=bootstrap)
    classifiers = probes.classifiers(knn=knn, linear=linear_probe)
    if train_split is not None and not classifiers:
        raise InputError("--train_split goes with --knn or --linear_probe.")
    model = _load(workdir, weights, step, batch_size, workers)
    data = {"name": dataset} | ANOTHER if dataset else _dataset_of(workdir)
    given = {"data_dir": data_dir, "eval_split": split, "train_split": train_split}
    data |= {name: value for name, value in given.items() if value}
    source = _open(data, "eval_split")
    probed = _probe(model, data, source, classifiers) if classifiers else {}
    scored = _score(model, source, tta, bootstrap, required=not classifiers)
    result = {"workdir": str(workdir), **model.about(source), "tta": tta}
    result["notes"] += scored.pop("notes")
    return result | scored | probed


@dataclasses.dataclass(frozen=True)
class Model:
    """A `TrainedModel` for each section of the result, and how images come to it."""

    trained: dict
    batch_size: int
    workers: int

    @property
    def one(self):
        return next(iter(self.trained.values()))

    def about(self, source) -> dict:
        return {
            "variant": self.one.card.variant,
            "step": self.one.step,
            "dataset": source.name,
            "split": source.split,
            "images": len(source),
            "notes": [*self.one.notes, *source.notes],
        }

    def outputs(self, compute: Callable, source) -> tuple[dict, np.ndarray]:
        """What `compute` gives for all images, by section, and the labels."""
        import jax

        from deit_jax.data.pipeline import open_images
        from deit_jax.training import evaluation

        card = self.one.card
        with open_images(
            source,
            size=card.image_size,
            workers=self.workers,
            crop_ratio=card.crop_ratio,
        ) as images:
            return evaluation.collect_logits(
                compute,
                {section: model.params for section, model in self.trained.items()},
                images,
                batch_size=self.batch_size,
                devices=len(jax.local_devices()),
            )


def _load(workdir, weights: str, step: int | None, batch_size: int, workers: int):
    from deit_jax import trained_model
    from deit_jax.models import model_card
    from deit_jax.training import processes, saved_params

    processes.refuse("deit_jax.evaluate")
    kinds = [weights]
    if weights == "both":
        run = model_card.is_run(workdir)
        kinds = saved_params.weights_in(workdir, step=step) if run else ["raw"]
    trained = {
        SECTIONS[kind]: trained_model.load(workdir, weights=kind, step=step)
        for kind in kinds
    }
    return Model(trained, batch_size, workers)


def _score(
    model: Model, source, tta: str | None, resamples: int, *, required: bool
) -> dict:
    """The metrics over all images, and `notes`; these alone of classes unknown.

    Raises:
      InputError: The heads do not know the classes, and `required` is set.
    """
    import jax

    from deit_jax.training import evaluation
    from deit_jax.training.step import pmap_eval_step

    card = model.one.card
    try:
        found = match_classes(source.class_names, card.class_names, name=source.name)
    except InputError as error:
        if required:
            raise
        return {"notes": [f"the heads are not scored: {error}"]}
    labels_of, notes = found
    statics = {"model": model.one.module, "mean": card.mean, "std": card.std}
    compute = pmap_eval_step(jax.local_devices(), **statics)
    if tta == "flip":
        compute = functools.partial(_with_mirror_image, compute)
        notes.append("logits are the mean over each image and its mirror image")
    outputs, labels = model.outputs(compute, source)
    labels = labels_of[labels]
    absent = evaluation.absent_classes(labels, card.class_names)
    results, _ = evaluation.score(outputs, labels, everything=True)
    if resamples:
        results["intervals"] = evaluation.intervals(
            outputs, labels, resamples=resamples
        )
    return {"notes": notes, "absent_classes": absent, **results}


def _with_mirror_image(eval_step, params, images) -> dict:
    """The mean of the logits of images [d, b, H, W, 3] and their mirror images."""
    import jax

    both = eval_step(params, images), eval_step(params, images[..., ::-1, :])
    return jax.tree.map(lambda one, other: (one + other) / 2, *both)


def _probe(model: Model, data: dict, test, classifiers: dict) -> dict:
    """What classifiers learn from the tokens of each set of parameters, each apart."""
    import jax

    train, module = _open(data, "train_split"), model.one.module
    probes.check(
        classifiers,
        train.labels,
        numbers=len(module.heads) * len(model.trained) * module.width,
        more=module.width + 2 * len(train.class_names),
    )
    compute = jax.pmap(model.one.features_of(*module.heads), in_axes=(None, 0))
    learned, labels = model.outputs(compute, train)
    seen, test_labels = model.outputs(compute, test)
    found = {"train_split": train.split, "train_images": len(train)}
    for section in model.trained:
        found[section] = {token: {} for token in module.heads}
        for token, accuracies in found[section].items():
            for name, classifier in classifiers.items():
                classifier.fit(learned[section][token], labels)
                top1 = classifier.score(seen[section][token], test_labels)
                accuracies[name] = float(top1)
    return {"features": found}


def _open(data: dict, split: str):
    from deit_jax.data import sources

    return sources.load(data["name"], data[split], data_dir=data["data_dir"] or None)


def _dataset_of(workdir: str | os.PathLike) -> dict[str, str]:
    """What a training run's config says of its data."""
    from deit_jax.training.run_directory import CONFIG

    path = Path(workdir) / CONFIG
    if not path.exists():
        raise InputError(
            f"{workdir} was not trained here, so it has no data set of its own: say "
            "which, e.g. --dataset=imagenet2012 --split=validation"
        )
    try:
        config = files.read_json(path)
        files.check(config, {"dataset": dict.fromkeys(["name", *ANOTHER], str)})
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged: {error}. Say which data set: --dataset=..."
        ) from error
    return config["dataset"]


def match_classes(
    data: Sequence[str], model: Sequence[str], *, name: str
) -> tuple[np.ndarray, list[str]]:
    """Which class of the model each class of a data set is.

    By name, where the model knows all of the names: the data set may then have fewer
    classes, in any order. Otherwise by position, where the numbers of classes agree.

    Returns:
      The model's class for each of the data set's, int [C], and notes.

    Raises:
      InputError: Neither fits.
    """
    if list(data) == list(model):
        return np.arange(len(data)), []
    position = {class_name: i for i, class_name in enumerate(model)}
    unknown = [class_name for class_name in data if class_name not in position]
    if not unknown:
        notes = [f"the {len(data)} classes of {name} are matched by their names"]
        return np.array([position[class_name] for class_name in data]), notes
    if len(data) != len(model):
        raise InputError(
            f"{name} has {len(data)} classes, the model {len(model)}, and the model "
            f"does not know {len(unknown)} of their names: {listed(unknown)}. Its own "
            f"are {listed(model)}. Evaluate on the classes it was trained on."
        )
    return np.arange(len(data)), [
        f"the classes of {name} ({', '.join(data[:3])}, ...) bear other names than the "
        f"model's ({', '.join(model[:3])}, ...): they are compared in their order"
    ]


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
    if "absent_classes" in result:
        print(summary.table(result))
    if found := result.get("features"):
        print(
            f"features of {found['train_images']:,} images of {result['dataset']} "
            f"({found['train_split']}), top-1:\n{summary.table(found, PROBES)}"
        )


if __name__ == "__main__":
    define_flags()
    command.run(main)
