"""Makes a model of a run directory one file, for programs without this package.

    python -m deit_jax.export --workdir=runs/deit-digits --out=digits-model
    python -m deit_jax.export --workdir=runs/deit-digits --out=digits-onnx --format=onnx
    python digits-model/predict.py seven.png three.jpg

The directory `--out` is all that is needed:

- `model.stablehlo`, the model with its parameters, as `jax.export` serialises it: for
  CPU, CUDA, ROCm and TPU alike. A newer JAX reads it for at least six months; beyond,
  and with an older JAX than it was made with (`model.json` has the version), export
  again. Or `model.onnx`, always float32, as jax2onnx writes it: for ONNX Runtime and
  what else reads ONNX.
- `model.json`: the `ModelCard`, the names of the input and the outputs, and what the
  parameters are.
- `predict.py`: how to use it, with this package's decoding of images.

The input is uint8 [b, S, S, 3] for any b, normalised inside. The outputs are the logits
of every head, with two heads their `mean`, and the `probabilities` of the mean or of
the one head, each float32 [b, C]. Resizing is outside, in `predict.py`: the model was
trained on pixels that Pillow's bicubic had made, in rounded integers, and neither
StableHLO nor ONNX has that operation.
"""

import dataclasses
import importlib.util
import inspect
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from absl import flags

from deit_jax import command, files
from deit_jax.errors import InputError

INPUT = "images"
FILES = {"stablehlo": "model.stablehlo", "onnx": "model.onnx"}  # by format
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
PREDICT = Path(__file__).parent / "artifact" / "predict.py"


def export(
    workdir: str | os.PathLike,
    out: str | os.PathLike,
    *,
    weights: str = "raw",
    step: int | None = None,
    format: str = "stablehlo",
) -> str:
    """Writes the artifact directory `out`, whole or not at all.

    Args:
      workdir: A run directory.
      out: Does not exist, or is empty.
      weights, step: As for `trained_model.load`.
      format: A key of `FILES`.

    Returns:
      What was written, in words.

    Raises:
      InputError: `workdir` holds no such model, `out` holds something or cannot be
        written, or what writes the format is not installed.
    """
    out = Path(out).absolute()
    _check_flags(out, format)
    # Flags are refused without waiting for JAX.
    import jax

    from deit_jax import trained_model

    trained = trained_model.load(workdir, weights=weights, step=step)
    if format == "onnx":  # ONNX Runtime has no bfloat16 on the CPU
        card = dataclasses.replace(trained.card, dtype="float32")
        trained = dataclasses.replace(trained, card=card)
    model = stablehlo(trained) if format == "stablehlo" else onnx(trained)
    about = dataclasses.asdict(trained.card) | {
        "format": format,
        "file": FILES[format],
        "input": INPUT,
        "outputs": output_names(trained.module.heads),
        "weights": trained.weights,
        "step": trained.step,
        "jax": jax.__version__,
    }
    _write_directory(
        out,
        {
            FILES[format]: model,
            "model.json": (json.dumps(about, indent=1) + "\n").encode(),
            PREDICT.name: _program().encode(),
        },
    )
    return (
        f"{trained.card.variant}, {trained.weights} parameters of step {trained.step}, "
        f"{len(model):,} bytes of {format}: {out}\n"
        f"try it: python {out / PREDICT.name} IMAGE ..."
    )


def _program() -> str:
    """`predict.py`, with what it imports of this package written into it."""
    text = PREDICT.read_text(encoding="utf-8")
    while line := re.search(r"^from (deit_jax\S*) import .*\n", text, re.MULTILINE):
        module = inspect.getsource(importlib.import_module(line[1]))
        text = text.replace(line[0], f"{module}\n")
    return text


def stablehlo(trained) -> bytes:
    """A `TrainedModel` as `jax.export.deserialize` reads it, for all `PLATFORMS`."""
    import jax
    import jax.export

    # Otherwise the file would hold the path of every source file of this machine.
    limit = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        # The default checks stay on: they refuse custom calls without a promise of
        # compatibility.
        exported = jax.export.export(
            jax.jit(_predict_function(trained)), platforms=PLATFORMS
        )(_symbolic_images(trained.card.image_size))
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)
    return bytes(exported.serialize())


def onnx(trained) -> bytes:
    """A `TrainedModel` as an ONNX file, its dtype float32."""
    # They tell of converters that do not load and of types that are not written, none
    # of them a ViT's.
    for chatty in ("jax2onnx", "onnx_ir"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    import jax2onnx

    model = jax2onnx.to_onnx(
        _predict_function(trained),
        [_symbolic_images(trained.card.image_size)],
        model_name=trained.card.variant,
        input_names=[INPUT],
        output_names=output_names(trained.module.heads),
    )
    return model.SerializeToString()


def output_names(heads: tuple[str, ...]) -> list[str]:
    """The names of an artifact's outputs, in JAX's order of a dict."""
    mean = ("mean",) if len(heads) == 2 else ()
    return sorted((*heads, *mean, "probabilities"))


def _predict_function(trained) -> Callable:
    """`TrainedModel.logits` and the probabilities, with the parameters as constants."""
    import jax

    from deit_jax.training import metrics
    from deit_jax.training.step import eval_step

    params, card, model = jax.device_get(trained.params), trained.card, trained.module

    def predict(images):
        logits = metrics.heads(
            eval_step(params, images, model=model, mean=card.mean, std=card.std)
        )
        decisive = logits.get("mean", logits["class"])
        return logits | {"probabilities": jax.nn.softmax(decisive)}

    return predict


def _symbolic_images(size: int):
    """The abstract input: uint8 [b, size, size, 3] for any b."""
    import jax
    import jax.export

    (b,) = jax.export.symbolic_shape("b")
    return jax.ShapeDtypeStruct((b, size, size, 3), "uint8")


def _check_flags(out: Path, format: str) -> None:
    what = ""
    with files.writing(out):
        if out.is_dir():
            what = "is not empty" if any(out.iterdir()) else ""
        elif out.exists():
            what = "is a file"
    if what:
        raise InputError(f"--out={out} {what}. Give a new or an empty directory.")
    if format not in FILES:
        raise InputError(f"--format={format}: expected {' or '.join(FILES)}.")
    if format == "onnx" and importlib.util.find_spec("jax2onnx") is None:
        raise InputError(
            "--format=onnx needs jax2onnx, which is not installed: "
            "pip install jax2onnx onnxruntime"
        )


def _write_directory(out: Path, contents: dict[str, bytes]) -> None:
    """Makes `out` with these files: a kill leaves all of it or none."""
    with files.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as partial:
            # Inside, because a temporary directory itself is closed to others.
            whole = Path(partial) / out.name
            whole.mkdir()
            for name, content in contents.items():
                (whole / name).write_bytes(content)
            whole.rename(out)


def define_flags() -> None:
    command.define_model_flags()
    flags.DEFINE_string("out", None, "The directory to write; new or empty.")
    flags.DEFINE_enum("format", "stablehlo", list(FILES), "The format of the model.")


def main(_) -> None:
    command.require(workdir="runs/deit-digits", out="digits-model")
    settings = command.values("workdir", "out", "weights", "step", "format")
    print(export(**settings))


if __name__ == "__main__":
    define_flags()
    command.run(main)
