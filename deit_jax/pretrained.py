"""Loads weights: those of a run, or of a file. Training starts from them."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from deit_jax.errors import InputError, listed
from deit_jax.models import model_card, transfer
from deit_jax.models.model_card import ModelCard
from deit_jax.models.vit import VisionTransformer
from deit_jax.training import saved_params
from deit_jax.weights import load as weights_of

EXPECTED = (
    "a run directory (runs/...), a file of weights (.safetensors, .pth), timm:NAME or "
    "hf:ID"
)


@dataclasses.dataclass(frozen=True)
class Start:
    """What training starts from.

    Attributes:
      path: A run directory, or what `weights.load.load` reads.
      position_resize: A method of `models.position.resize`.
      keep_heads: Whether the heads are kept class by class in their order; None matches
        classes by name.
    """

    path: str
    position_resize: str
    keep_heads: bool | None


def check(init_from: str | None, workdir: str | os.PathLike) -> None:
    """Refuses what cannot be a start, before anything is read.

    A run that resumes has its parameters already, so `init_from` need not exist.

    Args:
      init_from: `config.init_from`; empty is a random start, None was left out of a
        recipe that fine-tunes.
      workdir: The run directory.

    Raises:
      InputError: `init_from` is missing, or is the run directory itself.
    """
    if init_from is None:
        raise InputError(
            "this recipe fine-tunes a trained model, which is not given. Set "
            f"--config.init_from to {EXPECTED}."
        )
    if init_from and Path(init_from).resolve() == Path(workdir).resolve():
        raise InputError(
            f"init_from={init_from} is this run's own directory. A rerun of its "
            "command resumes it; to fine-tune its model, give another --workdir."
        )


def initial_params(
    start: Start, model: VisionTransformer, fresh: dict, card: ModelCard
) -> tuple[dict, list[str]]:
    """Loads parameters and adapts them to `model` (`models.transfer.adapt`).

    Args:
      start: Of a run directory, the raw parameters of the newest checkpoint are loaded.
      fresh: Initial parameters of `model`.
      card: The run's classes and normalisation.

    Returns:
      The parameters, and sentences on where they come from and what was changed.

    Raises:
      InputError: There is no whole model at `start.path`, or it does not fit `model`.
    """
    try:
        params, theirs, step, notes = read(start.path)
        classes, about_head = _match(
            start.keep_heads, theirs.class_names, card.class_names, model
        )
        params, changes = transfer.adapt(
            params,
            fresh,
            source=theirs.create_model(),
            target=model,
            classes=classes,
            position_resize=start.position_resize,
        )
    except InputError as error:
        raise InputError(f"init_from={start.path}: {error}") from error
    lines = [
        f"starts from {start.path}: {theirs.variant}, {theirs.image_size} px, "
        f"{theirs.num_classes} classes",
        *([f"its parameters are those of step {step:,}"] if step is not None else []),
        *notes,
        *changes,
        about_head,
    ]
    if (theirs.mean, theirs.std) != (card.mean, card.std):
        lines.append(
            f"images are normalised with mean {card.mean} and std {card.std}, the "
            f"source's were with {theirs.mean} and {theirs.std}: see dataset.mean and "
            ".std"
        )
    return params, lines


def read(
    path: str | os.PathLike, *, weights: str = "raw", step: int | None = None
) -> tuple[dict, ModelCard, int | None, tuple[str, ...]]:
    """Reads the parameters of a run directory, or weights of another program.

    Args: As of `trained_model.load`.

    Returns:
      The parameters as NumPy arrays, the card, their step (None of other weights), and
      what a user should be told.

    Raises:
      InputError: There is no whole model at `path`, or no such step or average.
    """
    path = str(path)
    if model_card.is_run(path):
        card = model_card.read(path)
        model = card.create_model()
        params, step = saved_params.load_params(path, model, weights=weights, step=step)
        return params, card, step, ()
    # `timm:`, `hf:` and addresses have a colon.
    if ":" not in path and not Path(path).exists():
        raise InputError(f"{path} does not exist. Expected {EXPECTED}.")
    if weights not in saved_params.WEIGHTS:
        choices = " or ".join(saved_params.WEIGHTS)
        raise InputError(f"weights={weights!r}: expected {choices}.")
    if step is not None:
        raise InputError(
            f"step={step}: {path} is no run directory, so it has no steps."
        )
    loaded = weights_of.load(path, weights=weights)
    return loaded.params, loaded.card, None, loaded.notes


def _match(
    keep: bool | None,
    theirs: Sequence[str],
    ours: Sequence[str],
    model: VisionTransformer,
) -> tuple[list[int | None], str]:
    """For each of our classes the source's (None: new), and a sentence about it."""
    same_order = list(range(len(ours)))
    if keep and len(theirs) != len(ours):
        raise InputError(
            f"transfer.keep_heads=True, but it has {len(theirs):,} classes and this "
            f"run {len(ours):,}. Leave keep_heads unset for new heads."
        )
    if keep:
        return same_order, "the head stays: transfer.keep_heads=True"
    heads = "heads are" if model.distilled else "head is"
    new = f"the {heads} new: {len(ours)} classes, not {len(theirs)}"
    if len(theirs) == len(ours):
        new = f"the {heads} new: {len(ours)} other classes"
    if keep is False:
        return [None] * len(ours), new
    if tuple(theirs) == tuple(ours):
        return same_order, "the head stays: the classes are the same"
    place = {name: number for number, name in enumerate(theirs)}
    classes = [place.get(name) for name in ours]
    if None not in classes:
        return classes, "the head stays, its classes put into this run's order by name"
    if tuple(theirs) == tuple(map(str, range(len(ours)))):
        return same_order, "the head stays: the source only numbers its classes"
    known = [name for name in ours if name in place]
    if not known:
        return classes, new
    names = listed(known)
    return classes, (
        f"the head keeps the rows of {len(known):,} known classes ({names}); "
        f"{len(ours) - len(known):,} are new"
    )
