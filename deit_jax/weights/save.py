"""Parameters and a model card, as files of timm or transformers."""

import json
from collections.abc import Mapping
from pathlib import Path

from deit_jax import files
from deit_jax.errors import InputError
from deit_jax.models import model_card
from deit_jax.models.model_card import ModelCard
from deit_jax.models.variants import VARIANTS
from deit_jax.weights import hugging_face, tensor_files, timm


def check(out: Path) -> None:
    """Raises InputError for the ending of a pickle, and for a run directory."""
    if out.suffix.lower() in (".pth", ".pt", ".bin"):
        raise InputError(
            f"--out={out}: expected a file that ends in .safetensors, which torch, "
            "timm and transformers read, or a directory."
        )
    if model_card.is_run(out):
        raise InputError(
            f"--out={out} holds a run, whose config.json would be lost. Give another."
        )


def save(out: Path, params: Mapping, card: ModelCard, *, layout: str) -> list[Path]:
    """Writes the weights; with what is needed to load and use them, if `out` allows.

    Args:
      out: A file that ends in .safetensors, or a directory, which is made:
        model.safetensors and config.json, and for `hf` preprocessor_config.json.
      layout: `timm` or `hf`.

    Returns:
      The files, each of which is whole at any moment.

    Raises:
      InputError: See `check`; or the program has no such model, or `out` cannot be
        written.
    """
    check(out)
    _check_model(card, layout)
    sizes = VARIANTS[card.variant]
    state_dict = timm.from_flax(params)
    if sizes["distilled"] and sizes["no_embed_class"]:
        state_dict = timm.with_token_positions(state_dict)
    if layout == "hf":
        state_dict = hugging_face.from_timm(state_dict)
    with files.writing(out):
        if out.suffix.lower() == ".safetensors":
            out.parent.mkdir(parents=True, exist_ok=True)
            tensor_files.write_safetensors(out, state_dict)
            return [out]
        out.mkdir(parents=True, exist_ok=True)
        tensor_files.write_safetensors(out / "model.safetensors", state_dict)
        configs = {"config.json": timm.config(card)}
        if layout == "hf":
            configs = {
                "config.json": hugging_face.config(card),
                "preprocessor_config.json": hugging_face.preprocessor_config(card),
            }
        for name, content in configs.items():
            files.replace_file(out / name, json.dumps(content, indent=1) + "\n")
        return [out / "model.safetensors", *(out / name for name in configs)]


def _check_model(card: ModelCard, layout: str) -> None:
    """Refuses a model that the other program cannot build."""
    sizes = VARIANTS[card.variant]
    program = {"timm": "timm", "hf": "transformers"}[layout]
    lacks = None
    if layout == "hf" and sizes["init_values"] is not None:
        lacks = "LayerScale"
    elif card.pool == "mean" and layout == "hf":
        lacks = "a head on the mean of the patches"
    elif card.pool == "mean" and sizes["distilled"]:
        lacks = "a head on the mean of the patches beside a distillation token"
    if lacks:
        advice = ": take --to=timm" if layout == "hf" else ""
        raise InputError(
            f"{program} has no ViT or DeiT with {lacks}, as {card.variant} here "
            f"is{advice}."
        )
