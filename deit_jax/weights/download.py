"""Weights from the network: timm's models and directories of the Hugging Face hub."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from deit_jax.errors import InputError
from deit_jax.weights import tensor_files


def timm_model(name: str) -> tuple[dict[str, tensor_files.Tensor], dict]:
    """A pretrained model of timm.

    Args:
      name: `timm.list_pretrained()` has them all.

    Returns:
      Its tensors, and its config as in a `config.json` of timm.

    Raises:
      InputError: timm is missing or knows no such model or weights, or the download
        fails.
    """
    try:
        import timm
        from timm.data import ImageNetInfo, resolve_model_data_config
    except ImportError as error:
        raise InputError(
            f"timm:{name} needs timm and torch: pip install timm. Or give a file."
        ) from error
    if not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models())
        raise InputError(
            f"timm:{name}: timm {timm.__version__} has no such model."
            + (f" Did you mean {' or '.join(close)}?" if close else "")
        )
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the network, the hub, a missing tag
        raise _cannot(f"timm:{name}", error) from error
    data = resolve_model_data_config(model)
    config = {
        "architecture": name.partition(".")[0],
        "pretrained_cfg": {
            field: data[field]
            for field in ("mean", "std", "crop_pct", "interpolation", "crop_mode")
        },
    }
    if model.num_classes == 1000:
        config["label_names"] = ImageNetInfo().label_descriptions()
    return tensor_files.from_state_dict(model.state_dict(), f"timm:{name}"), config


def hugging_face_directory(
    name: str, configs: Sequence[str], weights: Sequence[str]
) -> Path:
    """A local copy of a model of the Hugging Face hub.

    Args:
      name: As in its address: `facebook/deit-tiny-distilled-patch16-224`.
      configs: The files to copy, where they are there.
      weights: Of these the first that is there.

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
        for file in weights:
            directory = Path(snapshot_download(name, allow_patterns=[*configs, file]))
            if (directory / file).is_file():
                break
    except Exception as error:  # the network, the hub, a malformed name
        raise _cannot(f"hf:{name}", error) from error
    return directory


def _cannot(what: str, error: Exception) -> InputError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        f"{what} cannot be downloaded: {first} Look at the name and the network, or "
        "download the files elsewhere and give --src=DIR."
    )
