"""A model of a run directory, ready to be applied to images."""

import dataclasses
import functools
import os

import jax
import numpy as np
from PIL import Image

from deit_jax.data import crops
from deit_jax.models import model_card
from deit_jax.models.attention_maps import AttentionMaps, attention_maps
from deit_jax.models.vit import VisionTransformer
from deit_jax.training import inputs, metrics, saved_params, step


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model with its parameters.

    Attributes:
      card: Variant, classes and preprocessing.
      params: The parameters, on the default device.
      step: Of their checkpoint.
      weights: `raw` or `ema`.
    """

    card: model_card.ModelCard
    params: dict
    step: int
    weights: str

    @functools.cached_property
    def model(self) -> VisionTransformer:
        return self.card.create_model()

    def view(self, image: Image.Image) -> np.ndarray:
        """An RGB image as evaluation sees it: uint8 [S, S, 3]."""
        return crops.centre_view(image, self.card.image_size, self.card.crop_ratio)

    def logits(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The logits of every head and, with two, their `mean`: float32 [b, C] each.

        Args:
          images: uint8 [b, S, S, 3], of `view`. Every b compiles once.
        """
        return metrics.heads(jax.device_get(self._apply(self.params, images)))

    def attention(self, images: np.ndarray) -> tuple[AttentionMaps, dict]:
        """The attention maps of images as for `logits`, and the logits of the heads."""
        return jax.device_get(self._look(self.params, images))

    @functools.cached_property
    def _look(self):
        @jax.jit
        def look(params, images):
            normalised = inputs.normalise(images, self.card.mean, self.card.std)
            return attention_maps(self.model, params, normalised)

        return look

    @functools.cached_property
    def _apply(self):
        card = self.card
        return jax.jit(
            functools.partial(
                step.eval_step, model=self.model, mean=card.mean, std=card.std
            )
        )


def load(
    workdir: str | os.PathLike, *, weights: str = "raw", step: int | None = None
) -> TrainedModel:
    """Opens the model of a run directory.

    Args:
      weights: `raw`, or `ema` for their moving average.
      step: Of the checkpoint; None is the newest.

    Raises:
      InputError: `workdir` is no run directory, has no such checkpoint, or is damaged.
    """
    card = model_card.read(workdir)
    params, step = saved_params.load_params(
        workdir, card.create_model(), weights=weights, step=step
    )
    return TrainedModel(card, jax.device_put(params), step, weights)
