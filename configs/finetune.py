"""Fine-tuning of a trained model, at another resolution or on another data set.

    python -m deit_jax.main --config=configs/finetune.py:folder \\
        --config.dataset.name=folder:/path/to/images --config.init_from=DIR_OR_FILE
    python -m deit_jax.main --config=configs/finetune.py:cifar10 --config.init_from=...
    python -m deit_jax.main --config=configs/finetune.py:imagenet384 \\
        --config.init_from=...

Each trains a model without a teacher; `folder_distilled`, `cifar10_distilled` and
`imagenet384_distilled` train a DeiT with a cache of teacher logits, which is made with
the same --config. The source of either may have a distillation token or not. What is
changed for the run (heads, positions, token) is said when it starts.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from deit_jax.configs import deit, vit

SUFFIX = "_distilled"

# The recipe of configs/deit.py that each starts with, and what it changes there.
RECIPES = {
    # From 224 to 384 px, with all the augmentation of the training, as in the README of
    # facebookresearch/deit: --lr 5e-6 --min-lr 5e-6 --weight-decay 1e-8 --epochs 30,
    # and 512 images a step. After its warm-up the learning rate is constant. Deviation:
    # the model is DeiT-S, theirs DeiT-B. Distilled, it learns from labels and teacher,
    # which sees 384 px too (paper, "fine-tuning with distillation").
    "imagenet384": (
        "imagenet",
        {
            "epochs": 30.0,
            "batch_size": 512,
            "model": {
                "variant": "deit_small_distilled_patch16_384",
                # The code of DeiT fine-tunes in eval mode, in which its --drop-path of
                # 0.1 does nothing (confirmed in facebookresearch/deit, issue 177).
                "drop_path": 0.0,
            },
            # The same classes, whatever a file calls them: TFDS has WordNet's ids.
            "transfer": {"keep_heads": True},
            "optimizer": {"learning_rate": 5e-6, "weight_decay": 1e-8},
            "schedule": {"min_learning_rate": 5e-6},
        },
    ),
    # Small images scaled up to 224 px, with the settings that the authors give for
    # CIFAR-10 and Cars (facebookresearch/deit, issue 45): SGD, no erasing, no
    # stochastic depth, all else as on ImageNet. Assumed, since it is not said: that
    # 0.01 is the rate for these 768 images, not for 512. 1000 epochs want many GPUs;
    # `folder` with --config.dataset.name=cifar10 is the short way.
    "cifar10": (
        "imagenet",
        {
            "epochs": 1000.0,
            "batch_size": 768,
            "dataset": {"name": "cifar10", "eval_split": "test"},
            "model": {"drop_path": 0.0},
            "augment": {"erase_probability": 0.0},
            "optimizer": {
                "name": "sgd",
                "learning_rate": 1e-2,
                "reference_batch_size": 0,
                "weight_decay": 1e-4,
            },
        },
    ),
    # People's own images, in an hour and not in a week. Ours, not the paper's: few
    # epochs, so little augmentation, and a lower learning rate for the lower layers,
    # whose features need to change least.
    "folder": (
        "folder",
        {
            "epochs": 30.0,
            "augment": {"recipe": "crop_flip"},
            "optimizer": {
                "learning_rate": 5e-4,
                "reference_batch_size": 0,
                "layer_decay": 0.75,
            },
            "schedule": {"warmup_epochs": 2.0, "min_learning_rate": 1e-6},
            "checkpoint": {"every_steps": 500},
        },
    ),
}


def get_config(recipe: str = "folder") -> ConfigDict:
    """One of `RECIPES`, with `SUFFIX` its distilled form."""
    name = recipe.removesuffix(SUFFIX)
    if name not in RECIPES:
        raise ValueError(
            f"configs/finetune.py knows no {recipe!r}. Known: {', '.join(RECIPES)}, "
            f"each with {SUFFIX} too."
        )
    base, changes = RECIPES[name]
    config = deit.get_config(base)
    config.distillation.logits_dir = f"runs/logits-finetune-{name}"
    config.update(changes)
    # None until it is given: without it, nothing would be fine-tuned.
    with config.unlocked():
        config.init_from = placeholder(str)
    return config if recipe.endswith(SUFFIX) else vit.without_teacher(config)
