"""Makes a model of a run directory one file, for programs without this package.

    python -m deit_jax.export --workdir=runs/deit-digits --out=digits-model
    python -m deit_jax.export --workdir=runs/deit-digits --out=digits-onnx --format=onnx
    python digits-model/predict.py seven.png three.jpg

The directory `--out` is all that is needed:

- `model.stablehlo`, the model with its parameters, as `jax.export` serialises it: for
  CPU, CUDA, ROCm and TPU alike. A newer JAX reads it for at least six months, an older
  one than `model.json` names does not. Or `model.onnx`, always float32, as jax2onnx
  writes it.
- `model.json`: the `ModelCard`, and the names of the input and the outputs.
- `predict.py`: how to use it, with this package's decoding and resizing of images,
  for which neither StableHLO nor ONNX has an operation.

The input is uint8 [b, S, S, 3] for any b, normalised inside. The outputs are the logits
of every head, with two heads their `mean`, and the `probabilities` of the mean or of
the one head, each float32 [b, C].
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
      workdir, weights, step: As for `trained_model.load`.
      out: Does not exist, or is empty.
      format: A key of `FILES`.

    Returns:
      What was written, in words.

    Raises:
      InputError: There is no such model, `out` holds something or cannot be written, or
        what writes the format is not installed.
    """
    out = Path(out).absolute()
    _check(out, format)
    # Flags are refused without waiting for JAX.
    from deit_jax import trained_model

    trained = trained_model.load(workdir, weights=weights, step=step)
    if format == "onnx":  # ONNX Runtime has no bfloat16 on the CPU
        card = dataclasses.replace(trained.card, dtype="float32")
        trained = dataclasses.replace(trained, card=card)
    model = {"stablehlo": stablehlo, "onnx": onnx}[format](trained)
    contents = {
        FILES[format]: model,
        "model.json": (json.dumps(_about(trained, format), indent=1) + "\n").encode(),
        PREDICT.name: _program().encode(),
    }
    _write_directory(out, contents)
    return (
        f"{trained.card.variant}, {trained.weights} parameters of step {trained.step}, "
        f"{len(model):,} bytes of {format}: {out}\n"
        f"try it: python {out / PREDICT.name} IMAGE ..."
    )


def _about(trained, format: str) -> dict:
    import jax

    return dataclasses.asdict(trained.card) | {
        "format": format,
        "file": FILES[format],
        "input": INPUT,
        "outputs": output_names(trained.module.heads),
        "weights": trained.weights,
        "step": trained.step,
        "jax": jax.__version__,
    }


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
        # Its checks refuse custom calls without a promise of compatibility.
        exported = jax.export.export(
            jax.jit(_predict_function(trained)), platforms=PLATFORMS
        )(_symbolic_images(trained.card.image_size))
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)
    return bytes(exported.serialize())


def onnx(trained) -> bytes:
    """A `TrainedModel` as an ONNX file, its dtype float32."""
    # They tell of converters and types that no ViT needs.
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

    params = jax.device_get(trained.params)

    def predict(images):
        logits = trained.logits_of(params, images)
        decisive = logits.get("mean", logits["class"])
        return logits | {"probabilities": jax.nn.softmax(decisive)}

    return predict


def _symbolic_images(size: int):
    """The abstract input: uint8 [b, size, size, 3] for any b."""
    import jax
    import jax.export

    shape = jax.export.symbolic_shape(f"b, {size}, {size}, 3")
    return jax.ShapeDtypeStruct(shape, "uint8")


def _check(out: Path, format: str) -> None:
    with files.writing(out):
        full = any(out.iterdir()) if out.is_dir() else out.exists()
    if full:
        raise InputError(
            f"--out={out} is a file or not empty. Give a new or an empty directory."
        )
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
