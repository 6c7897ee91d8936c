"""Weights from the network: timm's models and directories of the Hugging Face hub."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deit_jax.errors import InputError
from deit_jax.weights import tensor_files

TIMEOUT = 5  # seconds, for the hub's first answer
# Fields of timm's `pretrained_cfg`.
PREPARATION = ("input_size", "mean", "std", "crop_pct", "interpolation", "crop_mode")


def timm_model(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """A pretrained model of timm, any of `timm.list_pretrained()`.

    Returns:
      Its tensors, and its config as in a `config.json` of timm.

    Raises:
      InputError: timm is missing or knows no such model or weights, or the download
        fails.
    """
    try:
        import timm
        from timm.data import (
            ImageNetInfo,
            infer_imagenet_subset,
            resolve_model_data_config,
        )
    except ImportError as error:
        raise InputError(
            f"timm:{name} needs timm and torch: pip install timm. Or give a file."
        ) from error
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(name, timm.list_models())
        raise InputError(
            f"timm:{name}: timm {timm.__version__} has no such model."
            + (f" Did you mean {' or '.join(close)}?" if close else "")
        )
    address = None
    try:
        address = timm.get_pretrained_cfg(name).hf_hub_id
        _ask_hub()
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the network, the hub, a missing tag
        raise _cannot(f"timm:{name}", address, error) from error
    data = resolve_model_data_config(model)
    config = {
        "architecture": architecture,
        "pretrained_cfg": {field: data[field] for field in PREPARATION},
    }
    if subset := infer_imagenet_subset(model):  # by the number of classes
        config["label_names"] = ImageNetInfo(subset).label_descriptions()
    return tensor_files.arrays(model.state_dict()), config


def hugging_face_directory(name: str, configs: Sequence[str]) -> Path:
    """A local copy of a model of the Hugging Face hub, its weights and `configs`.

    Args:
      name: As in its address: `facebook/deit-tiny-distilled-patch16-224`.

    Raises:
      InputError: huggingface_hub is missing, there is no such model, or the download
        fails.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(
            f"hf:{name} needs huggingface_hub: pip install huggingface_hub. Or copy "
            "the files of the model into a directory and give that."
        ) from error
    try:
        _ask_hub()
        for file in tensor_files.WHOLE:
            parts = file.replace(".", "-*-of-*.")
            patterns = [*configs, file, file + tensor_files.INDEX, parts]
            directory = Path(snapshot_download(name, allow_patterns=patterns))
            if any((directory / found).is_file() for found in patterns[-3:-1]):
                break
    except Exception as error:  # the network, the hub, a malformed name
        raise _cannot(f"hf:{name}", name, error) from error
    return directory


def _ask_hub() -> None:
    """Leaves a hub that does not answer alone: its cache serves, without retries."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception:  # whatever the library's HTTP client raises
        constants.HF_HUB_OFFLINE = True


def _cannot(what: str, address: str | None, error: Exception) -> InputError:
    from huggingface_hub import constants

    hub = constants.ENDPOINT
    first = first_line(error)
    if constants.HF_HUB_OFFLINE:
        first = (
            f"it is not in the local cache, and {hub} does not answer or "
            "HF_HUB_OFFLINE is set."
        )
    return InputError(
        f"{what} cannot be downloaded: {first} Look at the name and the network, or "
        f"download {f'the files of {hub}/{address}' if address else 'it'} by hand and "
        "give their file or directory in place of the name."
    )


def first_line(error: Exception) -> str:
    """What an error of a library says, without the paragraphs behind it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
