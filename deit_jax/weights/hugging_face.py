"""The names of Hugging Face transformers for ViT and DeiT.

    ViTForImageClassification               vit.*, classifier
    DeiTForImageClassification              deit.*, classifier
    DeiTForImageClassificationWithTeacher   deit.*, cls_classifier,
                                            distillation_classifier

These are the names of published files, which transformers 4 and 5 write. In memory
transformers 5 has others; a file that torch.save wrote has those, and is read too. A
DeiT there always has the distillation token, so that a plain DeiT becomes a ViT.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from deit_jax.models.model_card import ModelCard
from deit_jax.models.variants import VARIANTS

# Ours (timm's) on the left, theirs on the right, without `.weight` and `.bias`.
TRUNK = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
QKV = ("query", "key", "value")
# The names that transformers 5 uses in memory, and those of its files.
IN_MEMORY = (
    (r"^(vit|deit)\.layers\.", r"\1.encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
# Tensors that take no part in the logits: ViTModel's pooler, which only models without
# a classifier use, and the token of masked-image pretraining.
UNUSED = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.mask_token")


def is_layout(names: Iterable[str]) -> bool:
    """Whether these are names of transformers, rather than timm's."""
    return any(name.startswith(("vit.", "deit.", "embeddings.")) for name in names)


def published_name(name: str) -> str:
    """The name in a published file of a tensor that may have its name in memory."""
    for pattern, replacement in IN_MEMORY:
        name = re.sub(pattern, replacement, name)
    return name


def config(card: ModelCard) -> dict:
    """The `config.json` with which `from_pretrained` has the model."""
    sizes = VARIANTS[card.variant]
    distilled = sizes["distilled"]
    return {
        "architectures": [
            "DeiTForImageClassificationWithTeacher"
            if distilled
            else "ViTForImageClassification"
        ],
        "model_type": "deit" if distilled else "vit",
        "image_size": card.image_size,
        "patch_size": sizes["patch_size"],
        "num_channels": 3,
        "hidden_size": sizes["width"],
        "intermediate_size": 4 * sizes["width"],
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": sizes["num_heads"],
        "qkv_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,  # transformers' own default is 1e-12
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": {str(i): name for i, name in enumerate(card.class_names)},
        "label2id": {name: i for i, name in enumerate(card.class_names)},
    }


def preprocessor_config(card: ModelCard) -> dict:
    """The `preprocessor_config.json` of `card`.

    It names BiT's image processor: only its kind resizes the shorter side and crops the
    centre in every version; those of ViT and DeiT squash an image to a square. Where
    the margin is odd its centre can lie one pixel beside ours: it rounds down, timm
    and torchvision to the even neighbour.
    """
    side = card.image_size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": int(side / card.crop_ratio)},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(card.mean),
        "image_std": list(card.std),
    }


def roles(names: Iterable[str]) -> dict[str, str]:
    """As `timm.ROLES`."""
    names = set(names)
    model = "deit." if any(name.startswith("deit.") for name in names) else "vit."
    teacher = any(name.startswith("cls_classifier.") for name in names)
    return {
        "patches": f"{model}embeddings.patch_embeddings.projection.weight",
        "positions": f"{model}embeddings.position_embeddings",
        "distillation token": f"{model}embeddings.distillation_token",
        "head": "cls_classifier.weight" if teacher else "classifier.weight",
        "blocks": f"{model}encoder.layer.",
    }


def from_timm(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict of transformers, in views, from one of timm.

    With a distillation token it is that of `DeiTForImageClassificationWithTeacher`,
    without that of `ViTForImageClassification`.
    """
    distilled = "dist_token" in state_dict
    model = "deit." if distilled else "vit."
    heads = (
        {"head": "cls_classifier", "head_dist": "distillation_classifier"}
        if distilled
        else {"head": "classifier"}
    )
    result = {}
    for name, value in state_dict.items():
        stem, _, kind = name.rpartition(".")
        if not stem:  # a token, or the positions
            result[model + TRUNK[name]] = value
        elif stem in heads:
            result[f"{heads[stem]}.{kind}"] = value
        elif stem in TRUNK:
            result[f"{model}{TRUNK[stem]}.{kind}"] = value
        else:
            _, index, part = stem.split(".", maxsplit=2)
            layer = f"{model}encoder.layer.{index}."
            if part == "attn.qkv":
                for which, third in zip(QKV, np.split(value, 3), strict=True):
                    result[f"{layer}attention.attention.{which}.{kind}"] = third
            else:
                result[f"{layer}{BLOCK[part]}.{kind}"] = value
    return result


def to_timm(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `from_timm`; `state_dict` has just the names that it gives."""
    stems = {theirs: ours for ours, theirs in TRUNK.items()} | {
        "classifier": "head",
        "cls_classifier": "head",
        "distillation_classifier": "head_dist",
    }
    parts = {theirs: ours for ours, theirs in BLOCK.items()}
    result = {}
    for full_name, value in state_dict.items():
        name = re.sub(r"^(vit|deit)\.", "", full_name)
        stem, _, kind = name.rpartition(".")
        if name in stems:
            result[stems[name]] = value
        elif stem in stems:
            result[f"{stems[stem]}.{kind}"] = value
        else:
            _, _, index, part = stem.split(".", maxsplit=3)
            if part in parts:
                result[f"blocks.{index}.{parts[part]}.{kind}"] = value
            elif part.endswith(".query"):
                thirds = [full_name.replace(".query.", f".{which}.") for which in QKV]
                result[f"blocks.{index}.attn.qkv.{kind}"] = np.concatenate(
                    [state_dict[third] for third in thirds]
                )
    return result
