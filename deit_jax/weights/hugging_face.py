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

# Parts of timm's names and of theirs, without the `vit.` or `deit.` before the trunk's.
NAMES = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "norm.": "layernorm.",
    "blocks.": "encoder.layer.",
    ".norm1.": ".layernorm_before.",
    ".attn.qkv.": ".attention.attention.qkv.",
    ".attn.proj.": ".attention.output.dense.",
    ".norm2.": ".layernorm_after.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}
QKV = (".query.", ".key.", ".value.")  # one tensor in timm
# Of a file's names, and of those that transformers 5 has in memory.
TO_TIMM = {
    r"^(vit|deit)\.": "",
    r"^distillation_classifier\.": "head_dist.",
    r"^(cls_)?classifier\.": "head.",
    r"^layers\.": "encoder.layer.",
    r"\.attention\.q_proj\.": ".attention.attention.query.",
    r"\.attention\.k_proj\.": ".attention.attention.key.",
    r"\.attention\.v_proj\.": ".attention.attention.value.",
    r"\.attention\.o_proj\.": ".attention.output.dense.",
}
# Tensors that take no part in the logits: ViTModel's pooler, which only models without
# a classifier use, and the token of masked-image pretraining.
UNUSED = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.mask_token")


def is_layout(names: Iterable[str]) -> bool:
    """Whether these are names of transformers, rather than timm's."""
    return any(name.startswith(("vit.", "deit.", "embeddings.")) for name in names)


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


def from_timm(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict of transformers, in views, from one of timm.

    With a distillation token it is that of `DeiTForImageClassificationWithTeacher`,
    without that of `ViTForImageClassification`.
    """
    distilled = "dist_token" in state_dict
    result = {}
    for name, value in state_dict.items():
        if name.startswith("head"):
            head = "cls_classifier." if distilled else "classifier."
            name = name.replace("head_dist.", "distillation_classifier.")
            result[name.replace("head.", head)] = value
            continue
        for timms, theirs in NAMES.items():
            name = name.replace(timms, theirs)
        name = ("deit." if distilled else "vit.") + name
        if ".qkv." in name:
            for which, third in zip(QKV, np.split(value, 3), strict=True):
                result[name.replace(".qkv.", which)] = third
        else:
            result[name] = value
    return result


def to_timm(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `from_timm`, without `UNUSED`; other names stay as they are."""
    theirs = {}
    for name, value in state_dict.items():
        if not name.endswith(UNUSED):
            for pattern, replacement in TO_TIMM.items():
                name = re.sub(pattern, replacement, name)
            theirs[name] = value
    for query in [name for name in theirs if ".query." in name]:
        names = [query.replace(".query.", which) for which in QKV]
        thirds = [theirs[name] for name in names if name in theirs]
        if len(thirds) == 3 and len({third.shape for third in thirds}) == 1:
            theirs[query.replace(".query.", ".qkv.")] = np.concatenate(thirds)
            for name in names:
                del theirs[name]
    result = {}
    for name, value in theirs.items():
        for timms, published in NAMES.items():
            name = name.replace(published, timms)
        result[name] = value
    return result
