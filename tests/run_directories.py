"""Run directories without a training: random weights, as a run would save them."""

import jax
import numpy as np

from deit_jax.models import model_card
from deit_jax.models.params import abstract_params
from deit_jax.training import checkpoint, state

DIGITS = tuple("0123456789")


def make(
    path,
    variant="deit_nano_distilled_patch8_32",
    *,
    class_names=DIGITS,
    image_size=32,
    ema=False,
    seed=0,
    step=3,
    **fields,
):
    """Writes model.json and one checkpoint; returns the card and {weights: params}.

    `fields` are others of the `ModelCard`.
    """
    card = model_card.ModelCard(
        variant=variant,
        image_size=image_size,
        class_names=tuple(class_names),
        **{
            "mean": (0.5, 0.4, 0.3),
            "std": (0.3, 0.4, 0.5),
            "crop_ratio": 1.0,
            **fields,
        },
    )
    abstract = abstract_params(card.create_model())
    kinds = ("raw", "ema") if ema else ("raw",)
    params = {
        kind: _random(abstract, np.random.default_rng([seed, i]))
        for i, kind in enumerate(kinds)
    }
    path.mkdir(parents=True, exist_ok=True)
    model_card.write(path, card)
    checkpoints = checkpoint.Checkpoints(path, keep=2)
    checkpoints.save(
        state.TrainState(
            step=np.int32(step),
            params=params["raw"],
            opt_state=(),
            ema_params=params.get("ema"),
        ),
        {},
    )
    checkpoints.close()
    return card, params


def _random(abstract, generator):
    """Every parameter matters, and the logits stay near 1."""

    def one(leaf):
        fan_in = max(np.prod(leaf.shape[:-1]), 1)
        noise = generator.standard_normal(leaf.shape) / np.sqrt(fan_in)
        return noise.astype(np.float32)

    return jax.tree.map(one, abstract)
