"""The study that this project grew from: three models, CIFAR-10, one setting.

    python -m deit_jax.main --config=configs/study.py:vit
    python -m deit_jax.main --config=configs/study.py:deit
    python -m deit_jax.main --config=configs/study.py:deit_augment

20 epochs with Adam at 1e-3 and batches of 64, tiny models with patches of 4 px.
Deviation: of the study's augmentation `deit_augment` has crop and flip so far; its
colour jitter, erasing, MixUp and CutMix are not in this project yet.
"""

from ml_collections import ConfigDict

from configs import deit, vit

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
    if model != "deit_augment":
        config.augment.crop_padding = 0
        config.augment.flip = False
    return config
