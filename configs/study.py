"""The study that this project grew from: three models, CIFAR-10, one setting.

    python -m deit_jax.main --config=configs/study.py:vit
    python -m deit_jax.main --config=configs/study.py:deit
    python -m deit_jax.main --config=configs/study.py:deit_augment

20 epochs with Adam at 1e-3 and batches of 64, tiny models with patches of 4 px. 1e-3 is
the peak of the schedule of configs/deit.py: the learning rate rises to it over 5 epochs
and falls to 1e-5 along half a cosine. The first two see the images as they are, and the
teacher does too; `deit_augment` has crop, flip, colour jitter, random erasing, MixUp or
CutMix of every pair (the study mixed 1 % of its batches), and 20 cached views of its
teacher, one an epoch.
"""

from ml_collections import ConfigDict

from deit_jax.configs import deit, vit

MODELS = ("vit", "deit", "deit_augment")


def get_config(model: str = "deit") -> ConfigDict:
    """The setting for one of `MODELS`."""
    if model not in MODELS:
        raise ValueError(
            f"configs/study.py knows no {model!r}. Known: {', '.join(MODELS)}."
        )
    config = (vit if model == "vit" else deit).get_config("cifar10")
    config.epochs = 20.0
    config.batch_size = 64
    config.model.drop_path = 0.0
    config.loss.label_smoothing = 0.0
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.ema.decay = 0.0
    config.augment.recipe = "none"
    config.distillation.view = "plain"
    if model == "deit_augment":
        config.augment.recipe = "seed_study"
        config.distillation.view = "same"
        config.distillation.num_views = 20
    if model != "vit":
        config.distillation.logits_dir = f"runs/logits-study-{model}"
    return config
