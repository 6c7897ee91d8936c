"""The weights that a run starts from: those of another run, or of a file."""

import os
from collections.abc import Sequence
from pathlib import Path

from deit_jax.errors import InputError
from deit_jax.models import transfer
from deit_jax.models.vit import VisionTransformer
from deit_jax.training import checkpoint, model_card


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
            "this recipe fine-tunes a trained model. Say which: --config.init_from="
            "DIR_OR_FILE, a run directory (runs/...) or a file of weights of timm or "
            "Hugging Face (.safetensors, .pth)."
        )
    if init_from and Path(init_from).resolve() == Path(workdir).resolve():
        raise InputError(
            f"init_from={init_from} is this run's own directory. A rerun of its "
            "command without init_from resumes it; to fine-tune its model, give "
            "another --workdir."
        )


def load(path: str | os.PathLike) -> tuple[dict, model_card.ModelCard, list[str]]:
    """Reads a trained model.

    Args:
      path: A run directory, of which the raw parameters of the newest checkpoint are
        taken, or what `weights.load.load` reads.

    Returns:
      The parameters as NumPy arrays, the card of their model, and what there is to
      say of the reading, in sentences.

    Raises:
      InputError: There is nothing at `path`, or no whole model.
    """
    if not Path(path).exists():
        raise InputError(
            f"init_from={path} does not exist. Expected a run directory (runs/...) or "
            "a file of weights (.safetensors, .pth)."
        )
    if (Path(path) / model_card.MODEL).is_file():
        card = model_card.read(path)
        params, step = checkpoint.load_params(path, card.create_model())
        return params, card, [f"its step is {step:,}"]
    from deit_jax.weights import load as weights

    loaded = weights.load(path)
    return loaded.params, loaded.card, list(loaded.notes)


def initial_params(
    path: str | os.PathLike,
    model: VisionTransformer,
    fresh: dict,
    *,
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    position_resize: str,
) -> tuple[dict, list[str]]:
    """The parameters at `path`, adapted to `model` by `models.transfer.adapt`.

    Heads are kept where the classes have the same names in the same order, or where
    the source only numbers as many classes, as files of weights do.

    Args:
      path: As in `load`.
      fresh: Initial parameters of `model`.
      class_names: Of the run.
      mean: Of the run's pixels, 0 .. 1.
      std: As `mean`.
      position_resize: As in `models.position.resize`.

    Returns:
      The parameters, and in sentences where they come from and what was changed.

    Raises:
      InputError: As in `load`, or the models do not go together.
    """
    params, card, notes = load(path)
    names, numbers = card.class_names, tuple(map(str, range(card.num_classes)))
    same = names == tuple(class_names)
    keep_heads = same or (names == numbers and len(names) == len(class_names))
    try:
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
    ]
    if same:
        lines.append("the classes are the same and the head stays")
    elif keep_heads:
        lines.append(
            f"the head stays: the source only numbers its {len(names)} classes, which "
            "are taken to be this run's"
        )
    for field, theirs, ours in (("mean", card.mean, mean), ("std", card.std, std)):
        if tuple(theirs) != tuple(ours):
            lines.append(
                f"pixels have another {field} than the source's: dataset.{field} is "
                f"{tuple(ours)}, the source's is {tuple(theirs)}"
            )
    return params, lines
