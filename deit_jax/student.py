"""What a config says of the images that its student sees, for all commands."""

import dataclasses

from deit_jax.data.augment import recipes
from deit_jax.data.student_views import StudentViews
from deit_jax.models import variants


def student_views(config, source) -> StudentViews:
    """Of a `ConfigDict` as in configs/deit.py, and its training source.

    Images that have the model's size are padded and cropped at random; of others a
    random part is resized to it, and they are not padded on top (as in DeiT).

    Raises:
      InputError: The recipe, one of its fields, the model or its size do not exist.
    """
    model = variants.create(
        config.model.variant,
        num_classes=1,
        image_size=config.dataset.image_size or None,
    )
    settings = recipes.resolve(
        config.augment.recipe,
        {name: config.augment[name] for name in recipes.FIELDS},
        mean=config.dataset.mean,
        std=config.dataset.std,
    )
    size = model.image_size
    if source.image_shape != (size, size, 3):
        settings = dataclasses.replace(settings, crop_padding=0)
    return StudentViews(
        augment_seed=config.augment.seed,
        repeats=config.augment.repeats,
        size=size,
        settings=settings,
    )
