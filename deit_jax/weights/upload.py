"""Weights into the Hugging Face hub."""

import os
from collections.abc import Sequence
from pathlib import Path

from deit_jax.errors import InputError
from deit_jax.weights.download import first_line


def check(name: str, directory: Path) -> None:
    """Raises InputError, before anything is written, where `push` could not work."""
    if directory.suffix.lower() == ".safetensors":
        raise InputError(f"--push={name} wants a directory: --out={directory.stem}")
    try:
        from huggingface_hub import get_token
        from huggingface_hub.utils import HFValidationError, validate_repo_id
    except ImportError as error:
        raise InputError(
            f"--push={name} needs huggingface_hub: pip install huggingface_hub."
        ) from error
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"--push={name}: expected org/name. {error}") from error
    if get_token() is None:
        raise InputError(
            f"--push={name} needs a token of the hub that may write: hf auth login, or "
            "set HF_TOKEN."
        )


def push(directory: str | os.PathLike, files: Sequence[Path], name: str) -> str:
    """Uploads files of a directory as one commit; makes a public repository if need be.

    Args:
      name: `org/name`.

    Returns:
      The address of the commit.

    Raises:
      InputError: The hub does not answer, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        repository = api.create_repo(name, exist_ok=True).repo_id
        return api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            allow_patterns=[file.name for file in files],
            commit_message="Weights from deit_jax",
        ).commit_url
    except Exception as error:  # the network, the hub, the token's rights
        first = first_line(error).rstrip(".")
        raise InputError(
            f"--push={name}: {first}. The files are in {directory}: the "
            f"same command tries again, or: hf upload {name} {directory}"
        ) from error
