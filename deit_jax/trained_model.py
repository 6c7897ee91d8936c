"""A trained model, ready to be applied to images.

    >>> import deit_jax
    >>> model = deit_jax.load("runs/deit-digits")
    >>> model.predict("seven.png")[0]
    {'class': ..., 'name': '...', 'probability': 0...}

The images of a call are a path, a Pillow image or an array for one, and a sequence of
these or an array with one more axis for many. Of many each result has a first axis (or
is a list) of n images, in their order; of one it has not.

    >>> logits = model.logits(["seven.png", "seven.png"])
    >>> {head: values.shape for head, values in logits.items()}
    {'class': (2, 10), 'distill': (2, 10), 'mean': (2, 10)}
    >>> model.features("seven.png", tokens="patches").shape
    (16, 96)

`model.module`, a Flax module, and `model.params` are for those who go on in Flax. It
takes views in 0 .. 1, less `model.card.mean`, by `model.card.std`.

    >>> model.module.depth, model.params["norm"]["scale"].shape
    (4, (96,))
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from deit_jax import pretrained
from deit_jax.data import crops
from deit_jax.data.batches import prefetch
from deit_jax.data.sources import decode, image_files
from deit_jax.errors import InputError
from deit_jax.models import features, model_card
from deit_jax.models.attention_maps import AttentionMaps, attention_maps
from deit_jax.models.vit import VisionTransformer
from deit_jax.training import inputs, metrics, step

BATCH = 64  # images at once, unless a call says otherwise


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model with its parameters.

    Its methods take paths (str or `os.PathLike`) of image files, Pillow images of any
    mode, or uint8 arrays [H, W, 3], of many [n, H, W, 3]. Each is brought to the
    model's size S as in the evaluation of the training run (`view`); an array that is
    [S, S, 3] already is taken as it is. `batch_size` images are computed at once. The
    last batch is filled up, and fewer images are to a power of two, so that few shapes
    are compiled, each once.

    They raise InputError for a file that cannot be read, an array of another type or
    shape, and no images at all.

    Attributes:
      card: Variant, classes and preprocessing.
      params: The parameters, on the default device.
      step: Of their checkpoint; 0 of weights that were not trained here.
      weights: `raw` or `ema`.
      notes: What was assumed of weights that were not trained here.
    """

    card: model_card.ModelCard
    params: dict
    step: int
    weights: str
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def module(self) -> VisionTransformer:
        return self.card.create_model()

    def predict(
        self, images, *, top: int | None = None, batch_size: int = BATCH
    ) -> list:
        """Names what is in images, by the mean of both heads' logits, as DeiT does.

        Returns:
          The `top` classes (None: all), the most probable first, as `rank` gives them;
          of many images a list of such lists.
        """
        logits = self.logits(images, batch_size=batch_size)
        logits = logits.get("mean", logits["class"])
        ranked = [rank(x, self.card.class_names)[:top] for x in np.atleast_2d(logits)]
        return ranked[0] if logits.ndim == 1 else ranked

    def logits(self, images, *, batch_size: int = BATCH) -> dict[str, np.ndarray]:
        """The logits of every head and, with two, their `mean`: float32 [n, C] each."""
        return self._of_all(self.logits_of, images, batch_size)

    def features(
        self,
        images,
        *,
        layer: int = -1,
        tokens: str = "class",
        batch_size: int = BATCH,
    ) -> np.ndarray:
        """The tokens after a block of the model, float32.

        Args:
          layer: A block, 0 .. depth - 1, or from the end. Behind the last comes the
            final norm, as in timm's `forward_features`; see `models.features.tokens`.
          tokens: `class`, `distill`, or `mean`, that of the patches: [n, D]; `patches`,
            row by row, or `all`, before them the class and the distillation token:
            [n, N, D].

        Raises:
          InputError: Also for a layer or a token that the model does not have.
        """
        compute = self.features_of(tokens, layer=layer)
        return self._of_all(compute, images, batch_size)[tokens]

    def attention(
        self, images, *, batch_size: int = 1
    ) -> tuple[AttentionMaps, dict[str, np.ndarray]]:
        """The attention maps, float32, and the logits of the heads.

        A ViT-B at 384 px has 48 million weights in the maps of one image.
        """
        return self._of_all(self.attention_of, images, batch_size)

    def view(self, image) -> np.ndarray:
        """An image as evaluation sees it: uint8 [S, S, 3]."""
        size = self.card.image_size
        if isinstance(image, str | os.PathLike):
            image = image_files.read(os.fspath(image))
        elif isinstance(image, Image.Image):
            image = decode.open_rgb(image, "the image")
        else:
            image = _checked(np.asarray(image))
            if image.shape == (size, size, 3):
                return image
            image = Image.fromarray(image)
        return crops.centre_view(image, size, self.card.crop_ratio)

    def each(
        self, compute: Callable, images: Sequence, *, batch_size: int = BATCH
    ) -> Iterator[tuple[np.ndarray | InputError, Any]]:
        """Applies `compute` to many images, one batch in memory after the other.

        Args:
          compute: `logits_of`, `attention_of` or what `features_of` gives: (params,
            uint8 [b, S, S, 3]) -> arrays [b, ...] in dicts or tuples.

        Yields:
          The view of every image and its rows of what `compute` gives; the error and
          None for one that cannot be read.
        """
        size = min(batch_size, 1 << (len(images) - 1).bit_length())
        # The next images are decoded while the model looks at these.
        with contextlib.closing(prefetch(self._views(images, size), size=1)) as blocks:
            for views in blocks:
                good = [view for view in views if not isinstance(view, InputError)]
                if good:
                    filled = np.stack(good + good[-1:] * (size - len(good)))
                    found = jax.device_get(compute(self.params, filled))
                numbers = itertools.count()
                for view in views:
                    if isinstance(view, InputError):
                        yield view, None
                    else:
                        row = next(numbers)
                        yield view, jax.tree.map(lambda x, row=row: x[row], found)

    def _views(self, images: Sequence, size: int) -> Iterator[list]:
        """Yields blocks of `size` views, or the errors in their place."""

        def view(image):
            try:
                return self.view(image)
            except InputError as error:
                return error

        # Threads suffice: Pillow decodes and resizes without Python's lock.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for first in range(0, len(images), size):
                yield list(pool.map(view, images[first : first + size]))

    def _of_all(self, compute: Callable, images, batch_size: int):
        """What `compute` gives, stacked; of one image without the first axis."""
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: expected at least 1.")
        one, images = _listed(images)
        rows = []
        results = self.each(compute, images, batch_size=batch_size)
        with contextlib.closing(results):
            for view, row in results:
                if isinstance(view, InputError):
                    raise view
                rows.append(row)
        return rows[0] if one else jax.tree.map(lambda *x: np.stack(x), *rows)

    def logits_of(self, params, images) -> dict:
        """A `compute` for `each`: the logits of every head and their `mean`."""
        return _logits(params, images, self.card)

    def attention_of(self, params, images) -> tuple:
        """A `compute` for `each`: `attention_maps`."""
        return _attention(params, images, self.card)

    def features_of(self, *tokens: str, layer: int = -1) -> Callable:
        """A `compute` for `each`: {token: array} of these `features.TOKENS`.

        Raises:
          InputError: The model has no such token or layer.
        """
        for token in tokens:
            if token not in features.TOKENS:
                choices = ", ".join(features.TOKENS)
                raise InputError(f"tokens={token!r}: expected one of {choices}.")
            if token == "distill" and not self.module.distilled:
                raise InputError(
                    f"tokens='distill': {self.card.variant} has no distillation token. "
                    "Take 'class', 'mean', 'patches' or 'all'."
                )
        depth = self.module.depth
        if not -depth <= layer < depth:
            raise InputError(
                f"layer={layer}: {self.card.variant} has {depth} blocks, so expected "
                f"{-depth} .. {depth - 1}."
            )
        return functools.partial(_features, card=self.card, tokens=tokens, layer=layer)


@functools.partial(jax.jit, static_argnames="card")
def _logits(params, images, card) -> dict[str, jax.Array]:
    model = card.create_model()
    return metrics.heads(
        step.eval_step(params, images, model=model, mean=card.mean, std=card.std)
    )


@functools.partial(jax.jit, static_argnames="card")
def _attention(params, images, card) -> tuple[AttentionMaps, dict[str, jax.Array]]:
    normalised = inputs.normalise(images, card.mean, card.std)
    return attention_maps(card.create_model(), params, normalised)


@functools.partial(jax.jit, static_argnames=("card", "tokens", "layer"))
def _features(params, images, card, tokens, layer) -> dict[str, jax.Array]:
    model = card.create_model()
    normalised = inputs.normalise(images, card.mean, card.std)
    x = features.tokens(model, params, normalised, layer)
    return features.select(x, tokens, model)


def _listed(images) -> tuple[bool, Sequence]:
    """Whether this is one image, and the images as a sequence."""
    if isinstance(images, str | os.PathLike | Image.Image):
        return True, [images]
    if hasattr(images, "ndim"):
        images = np.asarray(images)
        one = images.ndim == 3
        images = images[None] if one else images
        _checked(images[0] if images.ndim == 4 and len(images) else images)
        return one, images
    images = list(images)
    if not images:
        raise InputError("no images were given")
    return False, images


def _checked(array: np.ndarray) -> np.ndarray:
    """Refuses what is no uint8 [H, W, 3]."""
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
        return array
    raise InputError(
        f"an array of {array.dtype} {list(array.shape)} is no image. Expected uint8 "
        "[H, W, 3], or [n, H, W, 3] of many."
    )


def rank(logits: np.ndarray, class_names: Sequence[str]) -> list[dict]:
    """All classes, the most probable first; of equals the one with the lower number.

    Args:
      logits: float [C].

    Returns:
      {"class": its number, "name": str, "probability": 0 .. 1} of each.
    """
    weights = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = weights / weights.sum()
    ranked = np.argsort(-probabilities, kind="stable").tolist()
    return [
        {"class": c, "name": class_names[c], "probability": float(probabilities[c])}
        for c in ranked
    ]


def load(
    source: str | os.PathLike, *, weights: str = "raw", step: int | None = None
) -> TrainedModel:
    """Opens a trained model.

    Args:
      source: A run directory; a file or directory of weights of DeiT's authors, timm
        or transformers (safetensors and npz need nothing more, files of `torch.save`
        torch); `timm:NAME`, which needs timm, torch and a network; or `hf:ID`, which
        needs huggingface_hub and a network.
      weights: `raw`, or `ema` for their moving average.
      step: Of the checkpoint of a run directory; None is the newest.

    Raises:
      InputError: There is no model at `source`, no such step or average, a library is
        missing, or something is damaged.
    """
    params, card, step, notes = pretrained.read(source, weights=weights, step=step)
    return TrainedModel(card, jax.device_put(params), step or 0, weights, notes)
