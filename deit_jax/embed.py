"""Writes the features of images: what a model sees in them, as numbers.

    python -m deit_jax.embed --workdir=runs/deit-digits images/ --out=features.npz
    python -m deit_jax.embed --workdir=hf:facebook/deit-tiny-patch16-224 images/ \\
        --out=features.npz

The file holds `files`, str [N], and float32 [N, D] each: `class` and, of a distilled
model, `distill`, the two tokens, and `mean`, that of the patches, behind the last norm
or after the block `--layer`. Images are prepared as in the evaluation of the training
run. One batch of them is in memory at a time. A file that cannot be read is reported,
the others go on, and the exit code is 1.
"""

import os
from collections.abc import Sequence

import numpy as np
from absl import flags

from deit_jax import command, files, over_images
from deit_jax.errors import InputError


def embed(
    workdir: str | os.PathLike,
    paths: Sequence[str],
    out: str,
    *,
    weights: str = "raw",
    step: int | None = None,
    layer: int = -1,
    batch_size: int = 64,
) -> int:
    """Writes the features of every image at `paths`, sorted by name, into `out`.

    Args:
      workdir, weights, step: As for `trained_model.load`.
      paths: Images, and folders of images.
      out: An .npz file, as the module says.
      layer: As for `TrainedModel.features`.

    Returns:
      The number of files that could not be read.

    Raises:
      InputError: An argument cannot work, or nothing can be read or written.
    """
    command.require_at_least(1, batch_size=batch_size)
    over_images.check_npz(out, "--out")
    found = over_images.find(paths)
    from deit_jax import trained_model
    from deit_jax.patience import Patience

    trained = trained_model.load(workdir, weights=weights, step=step)
    tokens = (*trained.module.heads, "mean")
    compute = trained.features_of(*tokens, layer=layer)
    shape = len(found), trained.module.width
    kept, read = {token: np.empty(shape, np.float32) for token in tokens}, []
    results = over_images.each(trained, compute, found, batch_size=batch_size)
    for file, _, row in Patience("features", len(found)).over(results):
        if row is None:
            continue
        for token in tokens:
            kept[token][len(read)] = row[token]
        read.append(file)
    if not read:
        raise InputError(f"none of the {len(found):,} files can be read")
    features = {token: rows[: len(read)] for token, rows in kept.items()}
    with files.writing(out):
        np.savez(out, files=read, **features)
    print(f"{len(read):,} images, {', '.join(tokens)} of {shape[1]} numbers: {out}")
    return len(found) - len(read)


def define_flags() -> None:
    command.define_model_flags()
    flags.DEFINE_string("out", None, "The .npz file to write.")
    flags.DEFINE_integer("layer", -1, "The block; from the end where negative.")
    flags.DEFINE_integer("batch_size", 64, "Images at once.")


def main(argv) -> int:
    command.require(workdir="runs/deit-digits", out="features.npz")
    settings = command.values("out", "weights", "step", "layer", "batch_size")
    return min(1, embed(flags.FLAGS.workdir, argv[1:], **settings))


if __name__ == "__main__":
    define_flags()
    command.run(main, takes="images")
