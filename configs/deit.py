"""DeiT with a distillation token, taught by cached logits of a teacher.

    python -m deit_jax.main --config=configs/deit.py            # CIFAR-10
    python -m deit_jax.main --config=configs/deit.py:digits     # embedded, 2 minutes
    python -m deit_jax.main --config=configs/deit.py:imagenet
    python -m deit_jax.main --config=configs/deit.py:folder \\
        --config.dataset.name=folder:/path/to/images

All but digits want a cache of teacher logits first; README says how to make one, and
docs/results.md what was measured. Any field can be changed on the command line:
`--config.epochs=20`, `--config.distillation.kind=hard`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# What each data set changes in the recipe below.
DATASETS = {
    # 1,440 + 357 handwritten digits of 32 px, embedded in scikit-learn.
    "digits": {
        "epochs": 70.0,
        "batch_size": 32,
        "dataset": {"name": "digits", "mean": (0.305,) * 3, "std": (0.376,) * 3},
        "model": {
            "variant": "deit_nano_distilled_patch8_32",
            "position_std": 1.0,
            "drop_path": 0.0,
        },
        # A mirrored digit is no digit.
        "augment": {"recipe": "none", "crop_padding": 2},
        "loss": {"label_smoothing": 0.0},
        "distillation": {"logits_dir": "teacher/logits/digits"},
        "optimizer": {
            "learning_rate": 2e-3,
            "reference_batch_size": 0,
            "clip_norm": 1.0,
        },
        "ema": {"decay": 0.99},
        "checkpoint": {"every_steps": 500},
        "eval": {"every_epochs": 10.0},
        "log": {"every_steps": 100},
    },
    # 50,000 + 10,000 images of 32 px, through TFDS.
    "cifar10": {
        "epochs": 100.0,
        "batch_size": 128,
        "dataset": {
            "name": "cifar10",
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
        },
        "model": {"variant": "deit_tiny_distilled_patch4_32"},
        "optimizer": {
            "learning_rate": 1e-3,
            "reference_batch_size": 0,
            "clip_norm": 1.0,
        },
        "ema": {"decay": 0.999},
        "eval": {"every_epochs": 1.0},
    },
    # 1.28 million + 50,000 images, through TFDS. The paper's recipe, table 9, line by
    # line; what it has in common with the other data sets stands in `_base`: AdamW,
    # weight decay 0.05, 5 epochs of warm-up and half a cosine, label smoothing 0.1,
    # stochastic depth 0.1, no dropout, no clipping. Deviations from the paper and from
    # facebookresearch/deit:
    # - The model is DeiT-S, and the teacher whichever was exported (theirs is a
    #   RegNetY-16GF). It answers for 30 views, which come back every 30 epochs.
    # - The learning rate moves with every step; its cosine begins after the warm-up.
    #   Theirs moves once an epoch, an epoch late, along a cosine that begins at epoch
    #   0, so that it never reaches its peak.
    # - The distillation token has no weight decay, as in newer versions of timm.
    # - MixUp and CutMix are drawn for each pair and not for each batch, and an image
    #   has one partner in all its repeated views. Erasing comes before normalisation.
    # - Where kind=soft is asked for, tau is 3 and alpha 0.5. The paper has 3 and 0.1;
    #   the code has 1 and 0.5, and divides by the classes too (`reduction`).
    "imagenet": {
        "epochs": 300.0,
        "batch_size": 1024,
        "dataset": {"name": "imagenet2012", "eval_split": "validation"},
        "model": {"variant": "deit_small_distilled_patch16_224", "dtype": "bfloat16"},
        # RandAugment 9/0.5, erasing 0.25, MixUp 0.8, CutMix 1.0; repeated three times.
        "augment": {"recipe": "deit", "repeats": 3},
        # The paper's best: the teacher's decision, at equal weights (table 3).
        "distillation": {"kind": "hard", "alpha": 0.5, "num_views": 30},
        # 0.0005 x batch_size / 512.
        "optimizer": {"learning_rate": 5e-4, "reference_batch_size": 512},
        # Of the reference's code.
        "ema": {"decay": 0.99996},
        "checkpoint": {"every_steps": 5000},
    },
    # People's own images: train/<class>/* and val/<class>/*. The classes, the length
    # of an epoch and the number of steps follow from the folder.
    "folder": {
        "epochs": 100.0,
        "batch_size": 32,
        "dataset": {"name": "folder:", "eval_split": "val"},
        "model": {"variant": "deit_tiny_distilled_patch16_224"},
        "optimizer": {"clip_norm": 1.0},
        "ema": {"decay": 0.99},
    },
}


def get_config(dataset: str = "cifar10") -> ConfigDict:
    """The recipe for `dataset`."""
    if dataset not in DATASETS:
        raise ValueError(
            f"configs/deit.py knows no {dataset!r}. Known: {', '.join(DATASETS)}; any "
            "data set of TFDS by --config.dataset.name=..."
        )
    config = _base()
    config.distillation.logits_dir = f"runs/logits-{dataset}"
    config.update(DATASETS[dataset])
    return config.lock()


def _base() -> ConfigDict:
    config = ConfigDict()
    # Initialisation, order of the batches, dropout and stochastic depth.
    config.seed = 0
    # Passes over the training images; a fraction is fine.
    config.epochs = 100.0
    # Images a step, over all devices.
    config.batch_size = 128
    # Steps that a device is given at once, where nothing is due between them. More than
    # one can be worth while where a step takes only a few milliseconds.
    config.steps_per_dispatch = 1
    # Fine-tuning: the run directory or file of weights that training starts from;
    # empty: from scratch. Once the run has a checkpoint it is not read again.
    config.init_from = ""

    config.dataset = ConfigDict()
    # A name that deit_jax.data.sources knows.
    config.dataset.name = ""
    # Where TFDS keeps its sets, and hf: and tar: what they make of theirs; empty:
    # $TFDS_DATA_DIR or ~/tensorflow_datasets, and ~/.cache/deit_jax/images.
    config.dataset.data_dir = ""
    # In TFDS syntax, e.g. train[:1200].
    config.dataset.train_split = "train"
    # The last step is measured on it; nothing is chosen by it.
    config.dataset.eval_split = "test"
    # Pixels a side that the model sees; 0: those in the variant's name.
    config.dataset.image_size = 0
    # Processes that read images which differ in size or do not fit into memory; 0:
    # a thread of the main process. Each reads about 200 of ImageNet a second.
    config.dataset.workers = 4
    # Whether the devices hold all training images, which then are no part of a batch.
    # Unset: where they are of the model's size and up to 1 GiB, on GPUs, and on TPUs
    # with augment.place=device.
    config.dataset.on_device = placeholder(bool)
    # The centre view of an image that differs from image_size: its shorter side is
    # resized to size / ratio, 256 for 224 px and 438 for 384, as in the code of DeiT.
    config.dataset.eval_crop_ratio = 0.875
    # A value for each channel or one for all, for pixels in 0 .. 1.
    config.dataset.mean = IMAGENET_MEAN
    config.dataset.std = IMAGENET_STD

    config.model = ConfigDict()
    # A name of deit_jax/models/variants.py.
    config.model.variant = ""
    # Compute type, float32 or bfloat16; parameters stay in float32.
    config.model.dtype = "float32"
    # Rematerialisation: the backward pass computes each block again, for less memory
    # on GPUs and TPUs (none on CPUs, where XLA computes them too early).
    config.model.remat = False
    # auto, or xla; in bfloat16 also cudnn, NVIDIA's flash attention, and pallas, a
    # kernel for TPUs. auto takes them where they are.
    config.model.attention = "auto"
    # Stochastic depth: the rate of the last block, of all in deit3_* (Huang et al.
    # 2016).
    config.model.drop_path = 0.1
    # Initial standard deviation of the position embeddings, 0.02 in DeiT. Larger ones
    # are heard beside the patches from the start, which short schedules need.
    config.model.position_std = 0.02
    # What the class head reads: token, or mean, that of the patches (timm's
    # global_pool="avg"). The distillation head reads its token with either.
    config.model.pool = "token"
    # What LayerScale starts with, in the models that have it (deit3_*); unset: 1e-4.
    config.model.init_values = placeholder(float)
    # Dropout, 0 in DeiT.
    config.model.dropout = 0.0

    # What init_from's weights become; without init_from it has no effect.
    config.transfer = ConfigDict()
    # How init_from's position embeddings become those of another image size: bicubic,
    # as in the code of DeiT, so that its recipes start where theirs do, or
    # bicubic_antialias, as in timm.
    config.transfer.position_resize = "bicubic"
    # Whether init_from's heads are kept. Unset: where its classes have the names of
    # this run's, or are only numbered and as many.
    config.transfer.keep_heads = placeholder(bool)

    config.augment = ConfigDict()
    # Of the pairs (and of all augmentation): belongs to the identity of a cache.
    config.augment.seed = 0
    # Repeated augmentation: views of an image in one epoch.
    config.augment.repeats = 1
    # Where: device, in the train step, or host, by the cores of the CPU, ahead of it.
    # The images are the same. auto: host for TPUs, which are slow at RandAugment.
    config.augment.place = "auto"
    # What is done to an image, a name of deit_jax/data/augment/recipes.py: none,
    # crop_flip, seed_study, deit, three_augment. A field below that is set replaces
    # the recipe's.
    config.augment.recipe = "deit"
    # Random crops of images that differ from image_size: bounds of their share of
    # the image ...
    config.augment.crop_area = placeholder(tuple)
    # ... and of their width / height.
    config.augment.crop_aspect = placeholder(tuple)
    # Pixels around an image of image_size, which is cropped back; 0: none. Black, and
    # with three_augment reflected.
    config.augment.crop_padding = placeholder(int)
    # Mirror every second image, left to right.
    config.augment.flip = placeholder(bool)
    # Strengths of brightness, contrast, saturation and hue.
    config.augment.color_jitter = placeholder(tuple)
    # In timm's syntax, rand-m9-mstd0.5-inc1; empty: none.
    config.augment.randaugment = placeholder(str)
    # Grey, solarized or blurred (DeiT III), and padding by reflection.
    config.augment.three_augment = placeholder(bool)
    # Of RandAugment's warps: bicubic or bilinear.
    config.augment.interpolation = placeholder(str)
    # Random erasing: of how many images ...
    config.augment.erase_probability = placeholder(float)
    # ... which share of the image ...
    config.augment.erase_area = placeholder(tuple)
    # ... in which height / width ...
    config.augment.erase_aspect = placeholder(tuple)
    # ... filled with pixel (noise) or constant (the mean).
    config.augment.erase_mode = placeholder(str)
    # alpha of MixUp; 0: none.
    config.augment.mixup = placeholder(float)
    # alpha of CutMix; 0: none.
    config.augment.cutmix = placeholder(float)
    # That a pair is mixed at all ...
    config.augment.mix_probability = placeholder(float)
    # ... by CutMix and not MixUp, where both are on.
    config.augment.mix_switch_probability = placeholder(float)
    # The first epoch, from 0, without MixUp and CutMix, as timm's --mixup-off-epoch; 0:
    # none. Of a cache of view=same the last views, one an epoch, are for those epochs.
    config.augment.mix_off_epoch = 0

    config.loss = ConfigDict()
    # Of the labels: softmax (cross-entropy) or bce, a yes or no for each class (DeiT
    # III). The distillation is the same with both.
    config.loss.kind = "softmax"
    # Probability spread over all classes.
    config.loss.label_smoothing = 0.1
    # bce: smoothed and mixed targets above it become 1, the others 0; unset: neither.
    config.loss.bce_target_threshold = placeholder(float)
    # bce over the classes: mean, as DeiT III and timm have it, or sum, which beside a
    # distillation is about as large as a cross-entropy.
    config.loss.bce_reduction = "mean"
    # none, or balanced: labels of rare classes weigh more, by the number of training
    # images of each; the mean over the images is 1.
    config.loss.class_weights = "none"

    config.distillation = ConfigDict()
    # none, soft, hard, cosine (of probabilities), or features: soft, and beside it the
    # teacher's pooled features.
    config.distillation.kind = "soft"
    # What is compared with the teacher: token (distillation head) or class.
    config.distillation.head = "token"
    # Weight of the distillation; 1 - alpha for the labels.
    config.distillation.alpha = 0.5
    # Temperature.
    config.distillation.tau = 3.0
    # batchmean, or numel as facebookresearch/deit computes it (C times smaller).
    config.distillation.reduction = "batchmean"
    # Where the teacher's logits come from: cache (logits_dir), or live: the teacher is
    # asked in each train step, and no view comes back.
    config.distillation.source = "cache"
    # Teacher cache, made by teacher/export_logits.py.
    config.distillation.logits_dir = ""
    # The teacher itself, for source=live and verify_every: a run directory or a file of
    # weights, timm:NAME or hf:ID; several, separated by commas, are averaged. Behind a
    # bare state dict of torchvision: FILE?arch=resnet50&image_size=64.
    config.distillation.teacher = ""
    # Whether a live teacher may be near chance.
    config.distillation.allow_weak_teacher = False
    # Steps between two comparisons of the cache with the teacher; 0: none.
    config.distillation.verify_every = 0
    # What the teacher saw: same (the very images of the student) or plain (without
    # augmentation, one cached view that serves any recipe).
    config.distillation.view = "same"
    # Views of each image in the cache, of view=same: epoch e shows view e % num_views.
    # With source=live it has no meaning: each epoch has a view of its own.
    config.distillation.num_views = 20
    # Where pairs are mixed: exact (the teacher saw them mixed), or linear (its
    # probabilities are mixed like the labels; the cache is exported unmixed).
    config.distillation.mixing = "exact"
    config.distillation.features = ConfigDict()
    # Of kind=features. Weight of their distance, beside the two other losses.
    config.distillation.features.weight = 1.0
    # cosine or smooth_l1, to the teacher's features after a layer norm.
    config.distillation.features.distance = "cosine"
    # What of the student is projected on to them: token (that of distillation.head) or
    # mean (of its patches).
    config.distillation.features.student = "token"

    config.optimizer = ConfigDict()
    # adam, adamw, sgd, lamb, lion or muon (adamw for all but the blocks' matrices).
    config.optimizer.name = "adamw"
    # What is trained: all, heads, attention (with heads and position embeddings), or a
    # regular expression that is searched for in names as blocks_0/attn/qkv/kernel.
    config.optimizer.trainable = "all"
    # Peak, at the reference batch size.
    config.optimizer.learning_rate = 5e-4
    # The peak is scaled by batch_size / this; 0: taken as it is.
    config.optimizer.reference_batch_size = 512
    # On kernels only, not on bias, norm, tokens and position embeddings.
    config.optimizer.weight_decay = 0.05
    # Learning rate of each layer, as a share of that of the layer above it; the heads
    # have the whole. 1: the same for all, as in DeiT. For fine-tuning, 0.65 to 0.9.
    config.optimizer.layer_decay = 1.0
    # Two decay rates, of all but sgd; lion's second is usually 0.99.
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    # Nesterov momentum of sgd and muon; muon's is usually 0.95.
    config.optimizer.momentum = 0.9
    # Bound on the global gradient norm; 0: none.
    config.optimizer.clip_norm = 0.0
    # Parts in which a batch is computed, to save memory.
    config.optimizer.accumulation = 1
    # A step whose loss or gradient is not finite is skipped. After so many in a row the
    # run goes back to its last checkpoint, once, and then stops.
    config.optimizer.max_consecutive_skips = 10

    config.schedule = ConfigDict()
    # After the warm-up: half a cosine or linear, down to the end; constant; or wsd,
    # which is constant, and linear over its last cooldown_epochs.
    config.schedule.name = "cosine"
    # Linear warm-up.
    config.schedule.warmup_epochs = 5.0
    # Of wsd alone.
    config.schedule.cooldown_epochs = 0.0
    # Where the warm-up starts.
    config.schedule.warmup_learning_rate = 1e-6
    # Where cosine, linear and wsd end.
    config.schedule.min_learning_rate = 1e-5

    config.ema = ConfigDict()
    # Moving average of the parameters, evaluated beside them; 0: none.
    config.ema.decay = 0.9999

    config.checkpoint = ConfigDict()
    # Steps between checkpoints; 0: at the end only.
    config.checkpoint.every_steps = 1000
    # Newest checkpoints that stay.
    config.checkpoint.keep = 2

    config.eval = ConfigDict()
    # Epochs between evaluations; 0: at the end only.
    config.eval.every_epochs = 5.0
    # Images a step, over all devices.
    config.eval.batch_size = 256

    config.log = ConfigDict()
    # Steps between TensorBoard points and rows of metrics.jsonl, and at most between
    # lines on the terminal: a run of fewer than ten such spans prints about ten lines.
    config.log.every_steps = 50

    config.distributed = ConfigDict()
    # Several processes, each with its own devices. host:port of the first ...
    config.distributed.coordinator = ""
    # ... how many there are; 0: this one only, or as many as the launcher has started
    config.distributed.num_processes = 0
    # ... and which of them this is, from 0.
    config.distributed.process_id = -1
    # Whether JAX finds all three by itself. Unset: where Slurm, Open MPI or GKE say
    # that they have started several.
    config.distributed.auto = placeholder(bool)
    return config
