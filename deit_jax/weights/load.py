"""Weights of timm, DeiT's authors or transformers, as parameters and a model card."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from deit_jax import files
from deit_jax.errors import InputError
from deit_jax.models import variants
from deit_jax.models.model_card import MODEL, ModelCard
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
    """Tensors, and what the files beside them say."""

    weights: tensor_files.Weights
    config: dict = dataclasses.field(default_factory=dict)
    preprocessor: dict = dataclasses.field(default_factory=dict)

    @property
    def where(self) -> str:
        return self.weights.where

    @property
    def is_hugging_face(self) -> bool:
        return hugging_face.is_layout(self.weights.tensors)


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
        variants.create(variant, num_classes=1)  # explains an unknown one
    notes = []
    source = _published(_open(str(path), average=weights == "ema"), notes)
    found = _architecture(source)
    chosen = _choose(found, variant, source, notes)
    _check_config(chosen, found.pool, source, notes)
    given = {"mean": mean, "std": std, "crop_ratio": crop_ratio}
    placed = _preprocessing(source, chosen, given, notes)
    if found.image_size != VARIANTS[chosen]["image_size"]:
        notes.append(f"the weights are for {found.image_size} px, as {chosen} resized")
    card = ModelCard(
        variant=chosen,
        image_size=found.image_size,
        class_names=_class_names(source, found.num_classes, class_names, notes),
        mean=placed.mean,
        std=placed.std,
        crop_ratio=placed.crop_ratio,
        origin=str(path),
        pool=found.pool,
    )
    return Loaded(_read_params(source, card), card, tuple(notes))


def _open(path: str, *, average: bool) -> _Source:
    what = "ViT or DeiT of timm or transformers: no patch_embed.proj.weight or the like"
    kind, _, name = path.partition(":")
    if kind == "timm":
        tensors, config = download.timm_model(name)
        file = tensor_files.Weights(path, tensors)
        return _Source(
            one_model.choose(file, NAME.fullmatch, what, average=average), config
        )
    place = path
    if kind == "hf":
        place = download.hugging_face_directory(name, (CONFIG, PREPROCESSOR))
    elif Path(path, MODEL).is_file():
        raise InputError(
            f"{path} is a run directory of this package. Expected weights of timm or "
            "transformers; commands take a run directory as it is."
        )
    file = tensor_files.find(place)
    weights = one_model.choose(
        tensor_files.open_file(file), NAME.fullmatch, what, average=average
    )
    config = _read_json(file.with_name(CONFIG))
    source = _Source(weights, config, _read_json(file.with_name(PREPROCESSOR)))
    if not (
        config.get("model_type") in ("vit", "deit")
        if source.is_hugging_face
        else "architecture" in config
    ):
        config.clear()  # of something else that lies in the same folder
    return source


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        content = files.read_json(path)
        files.check(content, {})
        return content
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged: {error}. Fix or remove it; "
            "without it defaults are assumed and printed."
        ) from error


def _published(source: _Source, notes: list[str]) -> _Source:
    """The same under the names of published files, without what no logit needs."""
    if source.weights.note:
        notes.append(f"{source.weights.note} (convert's --weights chooses)")
    naming = hugging_face if source.is_hugging_face else timm
    unused, tensors = [], {}
    for name, tensor in source.weights.tensors.items():
        published = naming.published_name(name)
        if name.endswith(naming.UNUSED):
            unused.append(name)
        elif published in tensors:
            raise InputError(f"{source.where} has {published} twice, also as {name}.")
        else:
            tensors[published] = tensor
    if unused:
        notes.append(f"{', '.join(unused)}: left out, the logits do not need them")
    if not source.is_hugging_face and timm.ROLES["layer scale"] in tensors:
        _drop_token_positions(tensors, source.where)
    weights = tensor_files.Weights(source.where, tensors)
    return dataclasses.replace(source, weights=weights)


def _drop_token_positions(tensors: dict, where: str) -> None:
    """Makes the positions those of the patches, as DeiT III has them.

    timm can have a distillation token beside LayerScale only with positions of the
    tokens; those of 0 are none (`timm.with_token_positions`).
    """
    name = timm.ROLES["positions"]
    count = 1 + (timm.ROLES["distillation token"] in tensors)
    found = tensors.get(name)
    if found is None or len(found.shape) != 3 or found.shape[1] <= count:
        return  # `architecture.infer` says what is wrong
    patches = found.shape[1] - count
    if math.isqrt(patches) ** 2 != patches:
        return
    positions = found.read()
    if positions[:, :count].any():
        raise InputError(
            f"{where}: {name} has {found.shape[1]:,} entries, and beside LayerScale a "
            f"learned position of the class token: expected {patches:,}, those of the "
            "patches alone (no_embed_class, as in DeiT III)."
        )
    patches = positions[:, count:]
    tensors[name] = tensor_files.Tensor(patches.shape, found.dtype, lambda: patches)


def _architecture(source: _Source) -> architecture.Architecture:
    """What the shapes of the tensors say of the model."""
    shapes = {name: tensor.shape for name, tensor in source.weights.tensors.items()}
    roles = hugging_face.roles(shapes) if source.is_hugging_face else timm.ROLES
    if roles["distillation token"] in shapes and "classifier.weight" in shapes:
        raise InputError(
            f"{source.where} is a DeiTForImageClassification: it has the distillation "
            "token without its head. Expected a "
            "DeiTForImageClassificationWithTeacher."
        )
    return architecture.infer(shapes, roles, where=source.where)


def _choose(found, variant: str | None, source: _Source, notes: list[str]) -> str:
    """The name of the variant; remarks on the choice go to `notes`."""
    if variant is not None:
        if variant not in found.variants:
            raise InputError(
                f"--variant={variant}: the weights of {source.where} are "
                f"{' or '.join(found.variants)} ({found.words})."
            )
        return variant
    if len(found.variants) == 1:
        return found.variants[0]
    named = source.config.get("architecture")
    family = str(named).partition("_")[0]
    if source.is_hugging_face or family == "vit":
        family = "vit"
    elif family != "deit":
        family = "deit"
        notes.append(
            f"{' and '.join(found.variants)} are one architecture, and timm prepares "
            "images differently for them: deit_* is taken (convert's --variant says "
            "otherwise)"
        )
    return next(name for name in found.variants if name.startswith(family + "_"))


def _check_config(chosen: str, pool: str, source: _Source, notes: list[str]) -> None:
    """What shapes do not show: heads, pooling, the activation, the norms' epsilon."""
    theirs, config = source.is_hugging_face, source.config
    arguments = config if theirs else _section(config, "model_args")
    expected = VARIANTS[chosen]["num_heads"]
    name = "num_attention_heads" if theirs else "num_heads"
    if arguments.get(name, expected) != expected:
        raise InputError(
            f"{source.where}: {CONFIG} has {name}={arguments[name]}, but {chosen} has "
            f"{expected} attention heads. Such a model is not in this package."
        )
    if not theirs:
        ours = {"token": "token", "mean": "avg"}[pool]
        if (theirs := config.get("global_pool", ours)) != ours:
            raise InputError(
                f"{source.where}: {CONFIG} has global_pool={theirs!r}, but the head "
                f"behind {'fc_norm' if pool == 'mean' else 'norm'} reads "
                f"{ours!r} in models of this package."
            )
        return
    if (activation := config.get("hidden_act", "gelu")) != "gelu":
        raise InputError(
            f"{source.where}: {CONFIG} has hidden_act={activation!r}; models of this "
            "package have 'gelu' only, the exact one."
        )
    epsilon = config.get("layer_norm_eps", EPSILON)
    if epsilon != EPSILON:
        notes.append(
            f"{CONFIG} has layer_norm_eps={epsilon}, here it is {EPSILON}, as in timm; "
            "logits can differ a little"
        )


def _preprocessing(
    source: _Source, chosen: str, given: Mapping, notes: list[str]
) -> preprocessing.Preprocessing:
    """What is `given`; for the rest what the files say, or the variant."""
    if source.is_hugging_face and source.preprocessor:
        found = preprocessing.from_hugging_face(source.preprocessor)
    elif not source.is_hugging_face and source.config:
        # Older files have one level only.
        found = preprocessing.from_timm(
            _section(source.config, "pretrained_cfg") or source.config
        )
    else:
        found = preprocessing.of_variant(chosen)
    given = {name: value for name, value in given.items() if value is not None}
    found = preprocessing.check(dataclasses.replace(found, **given), source.where)
    if len(given) < 3:
        notes += found.notes
    return found


def _class_names(
    source: _Source, count: int, given: Sequence[str] | None, notes: list[str]
) -> tuple[str, ...]:
    """One a class: those `given`, or those of the files, or numbers."""
    if given is not None:
        if len(given) != count:
            raise InputError(
                f"{len(given):,} class names for {count:,} classes of {source.where}. "
                "Expected one a class, in the order of the logits."
            )
        return tuple(given)
    field, words = "id2label", {}
    names = source.config.get(field)
    if not source.is_hugging_face:
        field = "label_names"
        inner = _section(source.config, "pretrained_cfg")
        names = source.config.get(field) or inner.get(field)
        words = _section(source.config, "label_descriptions") or _section(
            inner, "label_descriptions"
        )
    if not names:
        notes.append(
            f"no class names were found: the classes are called 0 .. {count - 1} "
            "(convert's --class_names=FILE says otherwise)"
        )
        return tuple(map(str, range(count)))
    if isinstance(names, dict):
        names = [names.get(str(index)) for index in range(len(names))]
    if (
        not isinstance(names, list)
        or len(names) != count
        or not all(isinstance(name, str) for name in names)
    ):
        raise InputError(
            f"{source.where}: {field} of {CONFIG} is no list of names for {count:,} "
            "classes. Give --class_names=FILE, one a line."
        )
    return tuple(str(words.get(name, name)) for name in names)


def _section(config: Mapping, name: str) -> dict:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _read_params(source: _Source, card: ModelCard) -> dict:
    """Reads the tensors when all shapes are those of the card's model."""
    state_dict = timm.from_flax(_placeholders(card))
    if source.is_hugging_face:
        state_dict = hugging_face.from_timm(state_dict)
    one_model.check(source.weights, state_dict, card.variant)
    state_dict = {n: tensor.read() for n, tensor in source.weights.tensors.items()}
    for name, value in state_dict.items():
        if not np.isfinite(value).all():
            raise InputError(f"{source.where}: {name} has values that are not finite.")
    if source.is_hugging_face:
        state_dict = hugging_face.to_timm(state_dict)
    return timm.to_flax(state_dict)


def _placeholders(card: ModelCard) -> dict:
    """Arrays with the shapes of the model's parameters, and next to no memory."""
    zero = np.zeros((), np.float32)
    return jax.tree.map(
        lambda leaf: np.broadcast_to(zero, leaf.shape),
        abstract_params(card.create_model()),
    )
