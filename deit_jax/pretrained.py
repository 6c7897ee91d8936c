"""The weights that a run starts from: those of another run, or of a file."""

import os
from collections.abc import Sequence
from pathlib import Path

from deit_jax.errors import InputError
from deit_jax.models import model_card, transfer
from deit_jax.models.vit import VisionTransformer
from deit_jax.training import checkpoint
from deit_jax.weights import load as weights

EXPECTED = (
    "a run directory (runs/...), a file of weights (.safetensors, .pth), timm:NAME or "
    "hf:ID"
)


def check(init_from: str | None, workdir: str | os.PathLike) -> None:
    """Refuses, before anything is read, what cannot be a start.

    Whether it exists is not asked: a run that resumes has its parameters already.

    Args:
      init_from: `config.init_from`; empty starts anew, None was left out of a recipe
        that fine-tunes.
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
    path: str | os.PathLike,
    model: VisionTransformer,
    fresh: dict,
    *,
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    position_resize: str,
    keep_heads: bool | None = None,
) -> tuple[dict, list[str]]:
    """The parameters at `path`, adapted to `model` by `models.transfer.adapt`.

    Args:
      path: A run directory, of which the raw parameters of the newest checkpoint are
        taken, or whatever `weights.load.load` reads.
      fresh: Initial parameters of `model`.
      class_names: Of the run.
      mean: Of the run's pixels, 0 .. 1.
      std: As `mean`.
      position_resize: As in `models.position.resize`.
      keep_heads: None keeps them where the classes have the same names in the same
        order, or where the source only numbers as many, as files of weights do.

    Returns:
      The parameters, and in sentences where they come from and what was changed.

    Raises:
      InputError: There is nothing at `path`, or no whole model, or one that does not
        go together with `model`.
    """
    try:
        params, card, notes = _load(str(path))
        keep_heads, why = _keep_heads(keep_heads, card.class_names, tuple(class_names))
        params, changes = transfer.adapt(
            params,
            fresh,
            source=card.create_model(),
            target=model,
            keep_heads=keep_heads,
            position_resize=position_resize,
        )
    except InputError as error:
        raise InputError(f"init_from={path}: {error}") from error
    lines = [
        f"starts from {path}: {card.variant}, {card.image_size} px, "
        f"{card.num_classes} classes",
        *notes,
        *changes,
        *([f"the head stays: {why}"] if keep_heads else []),
    ]
    theirs, ours = (card.mean, card.std), (tuple(mean), tuple(std))
    if theirs != ours:
        lines.append(
            "pixels are normalised with mean {} and std {}, the source's were with {} "
            "and {}: see dataset.mean and .std".format(*ours, *theirs)
        )
    return params, lines


def _load(path: str) -> tuple[dict, model_card.ModelCard, list[str]]:
    """The parameters, the card, and sentences on the reading."""
    if not path.startswith(("timm:", "hf:")) and not Path(path).exists():
        raise InputError(f"it does not exist. Expected {EXPECTED}.")
    if any((Path(path) / name).exists() for name in (model_card.MODEL, "checkpoints")):
        card = model_card.read(path)
        params, step = checkpoint.load_params(path, card.create_model())
        return params, card, [f"its parameters are those of step {step:,}"]
    loaded = weights.load(path)
    return loaded.params, loaded.card, list(loaded.notes)


def _keep_heads(
    wanted: bool | None, source: tuple[str, ...], run: tuple[str, ...]
) -> tuple[bool, str]:
    """Whether the heads for the classes `source` answer for those of `run`, and why."""
    if wanted and len(source) != len(run):
        raise InputError(
            f"model.keep_heads=True, but it has {len(source):,} classes and this run "
            f"{len(run):,}. Leave keep_heads unset, or set it to False, for new heads."
        )
    if wanted is not None:
        return wanted, "model.keep_heads=True"
    if source == run:
        return True, "the classes are the same"
    numbered = source == tuple(map(str, range(len(run))))
    return numbered, f"the source only numbers its {len(source):,} classes"
