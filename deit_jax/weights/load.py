"""Weights of timm, DeiT's authors or transformers, as parameters and a model card."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from deit_jax import files
from deit_jax.errors import InputError
from deit_jax.models import variants
from deit_jax.models.model_card import ModelCard, is_run
from deit_jax.models.params import abstract_params
from deit_jax.models.variants import VARIANTS
from deit_jax.weights import (
    architecture,
    download,
    hugging_face,
    one_model,
    preprocessing,
    tensor_files,
    timm,
)

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
EPSILON = 1e-6  # of our layer norms
# Names of timm's and transformers' models; wrappers can be called `vit.` or `encoder.`.
NAME = re.compile(
    r"(cls_token|dist_token|pos_embed|blocks\.\d+\.(gamma_[12]|ls[12]\.gamma)"
    r"|(patch_embed\.proj|blocks\.\d+\..+|norm|fc_norm|head|head_dist"
    r"|((vit|deit)\.)?(embeddings|encoder\.layer|layers\.\d+|layernorm|pooler)\b.*"
    r"|(cls_|distillation_)?classifier)\.(weight|bias)"
    r"|((vit|deit)\.)?embeddings\.\w+)"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A model that another program has trained.

    Attributes:
      params: Those of `card.create_model()`: nested dicts of float32 NumPy arrays.
      card: Variant, classes and preprocessing.
      notes: What a user should be told: assumptions, and what is not quite the same.
    """

    params: dict
    card: ModelCard
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Source:
    """Arrays under timm's names, and what the files beside them say."""

    where: str
    tensors: dict[str, np.ndarray]
    is_hugging_face: bool
    config: dict
    preprocessor: dict


def load(
    path: str | os.PathLike,
    *,
    weights: str = "raw",
    variant: str | None = None,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_ratio: float | None = None,
) -> Loaded:
    """Reads a file of weights, or a directory of timm or transformers.

    Args:
      path: A file or directory (`tensor_files.open_file`); `timm:NAME` or `hf:ID`,
        which are downloaded. A `config.json` and `preprocessor_config.json` of timm or
        transformers beside the file count too.
      weights: `raw`, or `ema` for their moving average, of a file that holds both.
      variant: What it is to be; None finds it out.
      class_names: One a class; None takes those of `config.json`, or numbers.
      mean: Of the channels, for pixels in 0 .. 1; None takes that of the files, or
        what is usual for the variant. So do `std` and `crop_ratio`.

    Raises:
      InputError: The weights cannot be read, are those of no model of this package or
        of another than `variant`, or what stands beside them contradicts them.
    """
    if variant is not None:
        variants.resolve_image_size(variant)  # explains an unknown one
    notes = []
    source = _open(str(path), weights == "ema", notes)
    fitting, image_size = architecture.infer(source.tensors, source.where)
    chosen = _choose(fitting, variant, source, notes)
    if VARIANTS[chosen]["no_embed_class"]:
        _drop_token_positions(source, image_size // VARIANTS[chosen]["patch_size"])
    pool = "mean" if "fc_norm.weight" in source.tensors else "token"
    _check_config(chosen, pool, source, notes)
    given = {"mean": mean, "std": std, "crop_ratio": crop_ratio}
    prepared = _preprocessing(source, chosen, given, notes)
    if image_size != VARIANTS[chosen]["image_size"]:
        notes.append(f"the weights are for {image_size} px, as {chosen} resized")
    card = ModelCard(
        variant=chosen,
        image_size=image_size,
        class_names=_class_names(source, class_names, notes),
        **prepared,
        origin=str(path),
        pool=pool,
    )
    return Loaded(_params(source, card), card, tuple(notes))


def _open(path: str, average: bool, notes: list[str]) -> _Source:
    kind, _, name = path.partition(":")
    config, preprocessor = {}, {}
    if kind == "timm":
        tensors, config = download.timm_model(name)
        file = tensor_files.Weights(path, tensors)
    else:
        if kind == "hf":
            place = download.hugging_face_directory(name, (CONFIG, PREPROCESSOR))
        elif is_run(path):
            raise InputError(
                f"{path} is a run directory of this package. Expected weights of timm "
                "or transformers; commands take a run directory as it is."
            )
        else:
            place = path
        place = tensor_files.find(place)
        file = tensor_files.open_file(place)
        config = read_config(place.with_name(CONFIG))
        preprocessor = read_config(place.with_name(PREPROCESSOR))
    what = "ViT or DeiT of timm or transformers: no patch_embed.proj.weight or the like"
    model = one_model.choose(file, NAME.fullmatch, what, average=average)
    if model.note:
        notes.append(f"{model.note} (convert's --weights chooses)")
    theirs = hugging_face.is_layout(model.tensors)
    if theirs:
        tensors = hugging_face.to_timm(model.tensors)
        if unused := [n for n in model.tensors if n.endswith(hugging_face.UNUSED)]:
            notes.append(f"{', '.join(unused)}: left out, the logits do not need them")
    else:
        tensors = {timm.published_name(n): x for n, x in model.tensors.items()}
        # Older files have one level only.
        config = (config.get("pretrained_cfg") or {}) | config
    if ("model_type" if theirs else "architecture") not in config:
        config = {}  # of something else that lies in the same folder
    return _Source(model.where, tensors, theirs, config, preprocessor)


def read_config(path: Path) -> dict:
    """A JSON object; {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = files.read_json(path)
        files.check(content, {})
        return content
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}. Fix or remove it.") from error


def _drop_token_positions(source: _Source, grid: int) -> None:
    """Makes the positions those of the patches, as DeiT III has them."""
    positions = source.tensors["pos_embed"]
    tokens, patches = np.split(positions, [positions.shape[1] - grid**2], axis=1)
    if tokens.any():
        raise InputError(
            f"{source.where}: beside LayerScale pos_embed has a learned position of "
            "the class token. Expected those of the patches alone (no_embed_class, as "
            "in DeiT III)."
        )
    source.tensors["pos_embed"] = patches


def _choose(
    fitting: Sequence[str], variant: str | None, source: _Source, notes: list[str]
) -> str:
    """The name of the variant; remarks on the choice go to `notes`."""
    if variant is not None:
        if variant not in fitting:
            raise InputError(
                f"--variant={variant}: the weights of {source.where} are "
                f"{' or '.join(fitting)}."
            )
        return variant
    if len(fitting) == 1:
        return fitting[0]
    family = str(source.config.get("architecture")).partition("_")[0]
    if source.is_hugging_face or family == "vit":
        family = "vit"
    elif family != "deit":
        family = "deit"
        notes.append(
            f"{' and '.join(fitting)} are one architecture, and timm prepares "
            "images differently for them: deit_* is taken (convert's --variant says "
            "otherwise)"
        )
    return next(name for name in fitting if name.startswith(family + "_"))


def _check_config(chosen: str, pool: str, source: _Source, notes: list[str]) -> None:
    """What shapes do not show: heads, pooling, the activation, the norms' epsilon."""
    if source.is_hugging_face:
        arguments = source.config
        expected = {
            "num_attention_heads": VARIANTS[chosen]["num_heads"],
            "hidden_act": "gelu",
        }
    else:
        arguments = source.config | source.config.get("model_args", {})
        expected = {
            "num_heads": VARIANTS[chosen]["num_heads"],
            "global_pool": {"token": "token", "mean": "avg"}[pool],
        }
    for name, ours in expected.items():
        if (theirs := arguments.get(name, ours)) != ours:
            raise InputError(
                f"{source.where}: {CONFIG} has {name}={theirs!r}, but {chosen} with "
                f"these tensors has {ours!r}. Such a model is not in this package."
            )
    epsilon = arguments.get("layer_norm_eps", EPSILON)
    if epsilon != EPSILON:
        notes.append(
            f"{CONFIG} has layer_norm_eps={epsilon}, here it is {EPSILON}, as in timm; "
            "logits can differ a little"
        )


def _preprocessing(
    source: _Source, chosen: str, given: Mapping, notes: list[str]
) -> dict:
    """What is `given`; for the rest what the files say, or the variant."""
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) == 3:
        notes = []  # what the files say does not count
    if source.is_hugging_face and source.preprocessor:
        found = preprocessing.from_hugging_face(source.preprocessor, notes)
    elif not source.is_hugging_face and source.config:
        found = preprocessing.from_timm(source.config, notes)
    else:
        found = preprocessing.of_variant(chosen, notes)
    return preprocessing.check(found | given, source.where)


def _class_names(
    source: _Source, given: Sequence[str] | None, notes: list[str]
) -> tuple[str, ...]:
    """One a class: those `given`, or those of the files, or numbers."""
    count = source.tensors["head.weight"].shape[0]
    if given is not None:
        if len(given) != count:
            raise InputError(
                f"{len(given):,} class names for {count:,} classes of {source.where}. "
                "Expected one a class, in the order of the logits."
            )
        return tuple(given)
    field = "id2label" if source.is_hugging_face else "label_names"
    names = source.config.get(field)
    if not names:
        notes.append(
            f"no class names were found: the classes are called 0 .. {count - 1} "
            "(convert's --class_names=FILE says otherwise)"
        )
        return tuple(map(str, range(count)))
    if isinstance(names, dict):
        names = [names.get(str(index)) for index in range(len(names))]
    if len(names) != count or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"{source.where}: {field} of {CONFIG} is no list of names for {count:,} "
            "classes. Give --class_names=FILE, one a line."
        )
    words = source.config.get("label_descriptions") or {}
    return tuple(str(words.get(name, name)) for name in names)


def _params(source: _Source, card: ModelCard) -> dict:
    """The parameters, if all shapes are those of the card's model."""
    if "dist_token" in source.tensors and "head_dist.weight" not in source.tensors:
        raise InputError(
            f"{source.where} has the distillation token without its head: of "
            "transformers take a DeiTForImageClassificationWithTeacher."
        )
    zero = np.zeros((), np.float32)
    expected = jax.tree.map(
        lambda leaf: np.broadcast_to(zero, leaf.shape),  # next to no memory
        abstract_params(card.create_model()),
    )
    one_model.check(
        tensor_files.Weights(source.where, source.tensors),
        timm.from_flax(expected),
        card.variant,
    )
    for name, value in source.tensors.items():
        if not np.isfinite(value).all():
            raise InputError(f"{source.where}: {name} has values that are not finite.")
    return timm.to_flax(source.tensors)
