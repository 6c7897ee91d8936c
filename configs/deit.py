"""DeiT with a distillation token, taught by cached logits of a ResNet-50.

    python -m deit_jax.main --config=configs/deit.py:digits

`digits` (embedded, no download): see docs/results.md for what to expect.

Any field can be changed on the command line: `--config.epochs=20`,
`--config.distillation.kind=hard`.
"""

from ml_collections import ConfigDict

DATASETS = ("digits",)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def get_config(dataset: str = "digits") -> ConfigDict:
    """The recipe for `dataset`."""
    if dataset not in DATASETS:
        raise ValueError(
            f"configs/deit.py knows no {dataset!r}. Known: {', '.join(DATASETS)}."
        )
    config = ConfigDict()
    # Initialisation, order of the batches, dropout and stochastic depth.
    config.seed = 0
    # Passes over the training images; a fraction is fine.
    config.epochs = 60.0
    # Images a step, over all devices.
    config.batch_size = 32

    config.dataset = ConfigDict()
    # A name that deit_jax.data.sources knows.
    config.dataset.name = dataset
    # In TFDS syntax, e.g. train[:1200].
    config.dataset.train_split = "train"
    # The last step is measured on it; nothing is chosen by it.
    config.dataset.eval_split = "test"
    # Pixels a side that the model sees.
    config.dataset.image_size = 32
    # Of the channels, for pixels in 0 .. 1.
    config.dataset.mean = IMAGENET_MEAN
    config.dataset.std = IMAGENET_STD

    config.model = ConfigDict()
    # A name of deit_jax/models/variants.py.
    config.model.variant = "deit_nano_distilled_patch8_32"
    # Compute type, float32 or bfloat16; parameters stay in float32.
    config.model.dtype = "float32"
    # Stochastic depth: the rate of the last block (Huang et al. 2016).
    config.model.drop_path = 0.0
    # Dropout, 0 in DeiT.
    config.model.dropout = 0.0

    config.augment = ConfigDict()
    # Of the pairs (and of all augmentation): belongs to the identity of a cache.
    config.augment.seed = 0
    # Repeated augmentation: views of an image in one epoch.
    config.augment.repeats = 1

    config.loss = ConfigDict()
    # Probability spread over all classes.
    config.loss.label_smoothing = 0.0

    config.distillation = ConfigDict()
    # none, soft, hard or cosine.
    config.distillation.kind = "soft"
    # What is compared with the teacher: token (distillation head) or class.
    config.distillation.head = "token"
    # Weight of the distillation; 1 - alpha for the labels.
    config.distillation.alpha = 0.5
    # Temperature.
    config.distillation.tau = 3.0
    # batchmean, or numel as facebookresearch/deit computes it (C times smaller).
    config.distillation.reduction = "batchmean"
    # Teacher cache, made by teacher/export_logits.py.
    config.distillation.logits_dir = f"teacher/logits/{dataset}"
    # What the teacher saw: plain (the image without augmentation).
    config.distillation.view = "plain"

    config.optimizer = ConfigDict()
    # adam, adamw or sgd.
    config.optimizer.name = "adamw"
    # Peak, at the reference batch size.
    config.optimizer.learning_rate = 2e-3
    # The peak is scaled by batch_size / this; 0: taken as it is.
    config.optimizer.reference_batch_size = 0
    # On kernels only, not on bias, norm, tokens and position embeddings.
    config.optimizer.weight_decay = 0.05
    # Adam's two decay rates.
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    # Nesterov momentum of sgd.
    config.optimizer.momentum = 0.9
    # Bound on the global gradient norm; 0: none.
    config.optimizer.clip_norm = 1.0
    # Parts in which a batch is computed, to save memory.
    config.optimizer.accumulation = 1

    config.schedule = ConfigDict()
    # Linear warm-up, then half a cosine.
    config.schedule.warmup_epochs = 5.0
    # Where the warm-up starts.
    config.schedule.warmup_learning_rate = 1e-6
    # Where the cosine ends.
    config.schedule.min_learning_rate = 1e-5

    config.ema = ConfigDict()
    # Moving average of the parameters, evaluated beside them; 0: none.
    config.ema.decay = 0.99

    config.checkpoint = ConfigDict()
    # Steps between checkpoints; 0: at the end only.
    config.checkpoint.every_steps = 500
    # Newest checkpoints that stay.
    config.checkpoint.keep = 2

    config.eval = ConfigDict()
    # Epochs between evaluations; 0: at the end only.
    config.eval.every_epochs = 10.0
    # Images a step, over all devices.
    config.eval.batch_size = 256

    config.log = ConfigDict()
    # Steps between lines, TensorBoard points and rows of metrics.jsonl.
    config.log.every_steps = 100
    return config
