"""Weights of timm and transformers into a run directory, and back.

    python -m deit_jax.convert --src=deit_tiny.pth --out=runs/deit-tiny
    python -m deit_jax.convert --src=timm:deit_tiny_patch16_224 --out=runs/deit-tiny
    python -m deit_jax.convert --src=hf:facebook/deit-tiny-distilled-patch16-224 \\
        --out=runs/deit-tiny
    python -m deit_jax.convert --workdir=runs/deit-digits --to=hf --out=exported
    python -m deit_jax.convert --workdir=runs/deit-digits --to=hf --out=exported \\
        --push=me/deit-digits

A directory `--out` gets a README.md too: the model's page on the Hugging Face hub.
What is not said by the files, and what is not quite the same here, is told in lines
that start with `note:`.
"""

import os
from pathlib import Path

from absl import flags

from deit_jax import command, files
from deit_jax.errors import InputError

LAYOUTS = ("timm", "hf")
# Which flags go with --src only and which with --workdir only.
IMPORT = ("variant", "class_names", "mean", "std", "crop_ratio")
EXPORT = ("to", "step", "push", "license")
PAGE = "README.md"


def import_weights(src: str | os.PathLike, out: str | os.PathLike, **overrides) -> str:
    """Makes the run directory `out`, with a checkpoint of step 0, from weights.

    Arguments are those of `weights.load.load`; returns what was made, in words.

    Raises:
      InputError: The weights cannot be read or are not those of a model of this
        package, or `out` holds a run already or cannot be written.
    """
    # Flags are refused without waiting for JAX.
    import numpy as np

    from deit_jax.models import model_card
    from deit_jax.models.params import count_parameters
    from deit_jax.training.checkpoint import CONVERTED_FROM, Checkpoints
    from deit_jax.training.state import TrainState
    from deit_jax.weights.load import load

    out = Path(out)
    if model_card.is_run(out):
        raise InputError(
            f"--out={out} holds a run already. Delete it, or give another directory."
        )
    loaded = load(src, **overrides)
    card = loaded.card
    state = TrainState(
        step=np.zeros((), np.int32), params=loaded.params, opt_state=(), ema_params=None
    )
    with files.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(out, keep=1)
        checkpoints.save(state, {CONVERTED_FROM: card.origin})
        checkpoints.close()
        model_card.write(out, card)  # last: with it the run directory is whole
    mean, std = (", ".join(f"{x:g}" for x in row) for row in (card.mean, card.std))
    lines = [
        f"{card.variant}: {count_parameters(loaded.params):,} parameters, "
        f"{card.num_classes:,} classes, {card.image_size} px",
        f"mean {mean}, std {std}, crop ratio {card.crop_ratio:g}",
        *(f"note: {note}" for note in loaded.notes),
        f"run directory {out}",
    ]
    return "\n".join(lines)


def export_weights(
    workdir: str | os.PathLike,
    out: str | os.PathLike,
    *,
    layout: str,
    weights: str = "raw",
    step: int | None = None,
    push: str | None = None,
    license: str | None = None,
) -> str:
    """Writes the model of a run directory for timm or transformers.

    Args:
      out: A file that ends in .safetensors, or a directory, which gets a page
        README.md too, unless it has one.
      layout: `timm` or `hf`.
      weights, step: As for `trained_model.load`.
      push: `org/name` on the Hugging Face hub, where a directory is uploaded.
      license: Of the page; None is this package's for what was trained here.

    Returns:
      What was written, in words.

    Raises:
      InputError: The run directory has no such checkpoint, `out` cannot be written or
        is a run directory itself, or the hub cannot be reached or refuses.
    """
    from deit_jax.models import model_card
    from deit_jax.training import saved_params
    from deit_jax.weights import save, upload

    out = Path(out)
    save.check(out)
    if push is not None:
        upload.check(push, out)
    card = model_card.read(workdir)
    params, step = saved_params.load_params(
        workdir, card.create_model(), weights=weights, step=step
    )
    written = save.save(out, params, card, layout=layout)
    lines = [f"{card.variant}, {weights} parameters of step {step}"]
    if len(written) == 1:
        lines.append(
            "note: class names and preprocessing are in a directory only: --out=DIR"
        )
    else:
        page = out / PAGE
        about = {"layout": layout, "weights": weights, "license": license}
        if page.exists():
            lines.append(f"note: {page} was there already and stays as it is")
        else:
            name = push or out.absolute().name
            _write_page(page, card, params, workdir, step, name=name, **about)
        written.append(page)
    if push is not None:
        lines.append(f"pushed: {upload.push(out, written, push)}")
    return "\n".join([*lines, *map(str, written)])


def _write_page(path: Path, card, params, workdir, step: int, *, license, **about):
    """Writes the page of exported weights: see `hub_page.text`."""
    from deit_jax.models.params import count_parameters
    from deit_jax.training import summary
    from deit_jax.weights import hub_page

    measured = summary.read(Path(workdir))
    text = hub_page.text(
        card,
        license=license or ("apache-2.0" if card.origin == "training" else "other"),
        parameters=count_parameters(params),
        summary=measured if measured and measured["steps"] == step else None,
        **about,
    )
    with files.writing(path.parent):
        files.replace_file(path, text)


def read_class_names(path: str | os.PathLike) -> list[str]:
    """Reads one name a line; refuses a file without lines, or with an empty one."""
    try:
        names = [line.strip() for line in Path(path).read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--class_names={path} cannot be read: {error}.") from error
    if not names or not all(names):
        raise InputError(
            f"--class_names={path}: expected one name a line and no empty lines."
        )
    return names


def define_flags() -> None:
    flags.DEFINE_string(
        "src", None, "Weights to convert: a file, a directory, timm:NAME or hf:ID."
    )
    flags.DEFINE_string("workdir", None, "Or: the run directory to export.")
    flags.DEFINE_string(
        "out", None, "A run directory; with --workdir FILE.safetensors or a directory."
    )
    flags.DEFINE_string("variant", None, "With --src: what the weights are to be.")
    flags.DEFINE_string(
        "class_names", None, "With --src: a text file with one name a line."
    )
    flags.DEFINE_list("mean", None, "With --src: of the channels, pixels in 0 .. 1.")
    flags.DEFINE_list("std", None, "With --src: as --mean.")
    flags.DEFINE_float(
        "crop_ratio", None, "With --src: image size / size of the shorter side."
    )
    flags.DEFINE_enum("to", None, LAYOUTS, "With --workdir: for timm or transformers.")
    flags.DEFINE_string(
        "push", None, "With --workdir: org/name on the Hugging Face hub; uploads --out."
    )
    flags.DEFINE_string(
        "license", None, "With --workdir: of the page; apache-2.0 for what was trained."
    )
    flags.DEFINE_enum("weights", "raw", ["raw", "ema"], "Or their moving average.")
    flags.DEFINE_integer("step", None, "With --workdir: of the checkpoint; the newest.")


def main(_) -> None:
    values = flags.FLAGS
    if (values.src is None) == (values.workdir is None):
        raise InputError(
            "give either --src, weights to make a run directory of, or --workdir, a "
            "run directory to export"
        )
    if values.out is None:
        raise InputError("say where to write: --out")
    importing = values.src is not None
    for name in EXPORT if importing else IMPORT:
        if values[name].value is not None:
            with_, there = ("--workdir", "--src")[:: 1 if importing else -1]
            raise InputError(f"--{name} goes with {with_}, not with {there}")
    if importing:
        overrides = command.values(*IMPORT)
        if values.class_names is not None:
            overrides["class_names"] = read_class_names(values.class_names)
        for name in ("mean", "std"):
            example = "0.5,0.5,0.5 for pixels in 0 .. 1"
            overrides[name] = command.numbers(name, overrides[name], float, example)
        overrides["weights"] = values.weights
        print(import_weights(values.src, values.out, **overrides))
        return
    if values.to is None:
        raise InputError("say for which program: --to=timm or --to=hf")
    chosen = command.values("step", "push", "license")
    chosen |= {"layout": values.to, "weights": values.weights}
    print(export_weights(values.workdir, values.out, **chosen))


if __name__ == "__main__":
    define_flags()
    command.run(main)
