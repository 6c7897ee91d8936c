"""Files that an accident has changed: one message that names the file, never a crash.

Nothing here stands against an author who means harm, but for pickles: a file of weights
comes from anywhere, and no code in it runs.
"""

import json
import os
import pickle
import shutil
from pathlib import Path

import caches
import numpy as np
import pytest
import run_directories
from PIL import Image

from deit_jax.data import sources
from deit_jax.data.sources.decode import open_rgb
from deit_jax.distillation import teacher_cache
from deit_jax.errors import InputError
from deit_jax.models import model_card
from deit_jax.reporting import runs
from deit_jax.training import saved_params, summary
from deit_jax.weights.load import load
from deit_jax.weights.tensor_files import open_file, write_safetensors

VARIANT = "deit_nano_distilled_patch8_32"
FACTS = {
    "variant": VARIANT,
    "dataset": "digits",
    "eval_split": "test",
    "eval_images": 30,
    "steps": 3,
    "seconds": 2.5,
    "images_per_sec": 12.5,
    "eval": {"class": {"loss": 1.0, "top1": 0.5}},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One of each kind of file that a command reads."""
    import torch

    root = tmp_path_factory.mktemp("whole")
    run_directories.make(root, VARIANT)
    config = {"seed": 0, "dataset": {"name": "digits", "eval_split": "test"}}
    config["dataset"]["data_dir"] = ""
    (root / "config.json").write_text(json.dumps(config))
    summary.write(root, FACTS)
    tensors = {"head.weight": np.ones((3, 200), np.float32)}
    write_safetensors(root / "w.safetensors", tensors)
    state_dict = {name: torch.from_numpy(value) for name, value in tensors.items()}
    torch.save(state_dict, root / "w.pth")
    source = sources.load("digits", f"train[:{caches.LENGTH}]")
    caches.write(root / "cache", source, views=2)
    Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(root / "a.png")
    return root


def load_checkpoint(root):
    model = model_card.read(root).create_model()
    return saved_params.load_params(root, model)


def read_weights(path):
    return open_file(path).tensors


READERS = {
    "model.json": model_card.read,
    "config.json": lambda root: runs.read([root]),
    "summary.json": summary.read,
    "w.safetensors": lambda root: read_weights(root / "w.safetensors"),
    "w.pth": lambda root: read_weights(root / "w.pth"),
    "a.png": lambda root: open_rgb((root / "a.png").read_bytes(), root / "a.png"),
    "cache/manifest.json": lambda root: teacher_cache.open_cache(root / "cache"),
    "cache/view-001.npy": lambda root: teacher_cache.open_cache(root / "cache"),
    "cache/examples-002.npz": lambda root: teacher_cache.open_cache(
        root / "cache"
    ).examples(),
    "checkpoints/3/state/_METADATA": load_checkpoint,
    "checkpoints/3/state/manifest.ocdbt": load_checkpoint,
    "checkpoints/3/digests/metadata": load_checkpoint,
}
DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "random": lambda content: np.random.default_rng(0).bytes(500),
    "another type": lambda content: b"[1, 2, 3]",
    "a pickle": lambda content: pickle.dumps({"a": 1}),
}


@pytest.fixture
def copied(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "root"))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_refused_by_name(copied, name, damage):
    READERS[name](copied)
    (copied / name).write_bytes(DAMAGES[damage]((copied / name).read_bytes()))
    with pytest.raises(InputError) as refused:
        READERS[name](copied)
    named = "checkpoints/3" if name.startswith("checkpoints") else name
    assert named in str(refused.value)


@pytest.mark.parametrize("name", sorted(READERS.keys() - {"a.png"}))
def test_a_directory_in_its_place_is_refused(copied, name):
    (copied / name).unlink()
    (copied / name).mkdir()
    with pytest.raises(InputError):
        READERS[name](copied)


class Touches(str):
    """Pickled, it makes this file when it is loaded."""

    def __reduce__(self):
        return os.system, (f"touch {self}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("nested", [False, True])
def test_code_in_a_pickle_never_runs(tmp_path, protocol, nested):
    canary = tmp_path / "ran"
    payload = Touches(canary)
    content = {"model": {"head.weight": payload}} if nested else payload
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(content, protocol))
    for read in (read_weights, load):
        with pytest.raises(InputError, match=r"w\.pth"):
            read(path)
    np.save(tmp_path / "view-000.npy", np.array([payload], object))
    encoding = teacher_cache.Encoding(10)
    with pytest.raises(InputError, match=r"view-000\.npy"):
        teacher_cache.open_view(tmp_path, 0, encoding, 1)
    assert not canary.exists()
