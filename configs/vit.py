"""ViT: the recipe of configs/deit.py without a teacher and without its token.

    python -m deit_jax.main --config=configs/vit.py             # CIFAR-10
    python -m deit_jax.main --config=configs/vit.py:digits
    python -m deit_jax.main --config=configs/vit.py:folder \\
        --config.dataset.name=folder:/path/to/images
"""

from ml_collections import ConfigDict

from deit_jax.configs import deit


def get_config(dataset: str = "cifar10") -> ConfigDict:
    """The recipe for `dataset`."""
    return without_teacher(deit.get_config(dataset))


def without_teacher(config: ConfigDict) -> ConfigDict:
    """Makes a recipe of a distilled DeiT that of a ViT, in place."""
    config.model.variant = config.model.variant.replace("deit_", "vit_", 1).replace(
        "_distilled", ""
    )
    config.distillation.kind = "none"
    config.distillation.head = "class"
    config.distillation.logits_dir = ""
    return config
