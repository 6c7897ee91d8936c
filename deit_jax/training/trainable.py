"""Which parameters are trained, by their names; the others are frozen."""

import re

import jax

from deit_jax.distillation.features import PROJECTOR
from deit_jax.errors import InputError
from deit_jax.models.params import parameter_names

# Names for patterns. `attention` is `--attn-only` of facebookresearch/deit (Touvron et
# al. 2022, "Three things everyone should know about vision transformers", section 4),
# which trains the heads and the position embeddings too.
PATTERNS = {
    "all": "",
    "heads": "^head",
    "attention": "/attn/|^head|^pos_embed$",
}


def split(params, which: str) -> tuple[dict, dict]:
    """Splits parameters into the trained and the frozen ones.

    Args:
      which: A key of `PATTERNS`, or a regular expression to search for in the names
        (`parameter_names`). A projector is always trained.

    Returns:
      Two trees like `params`, each with None where the other has an array. None is no
      leaf for jax and optax: the frozen have no gradient and no optimizer state.

    Raises:
      InputError: `which` is no regular expression, or no name matches it.
    """
    try:
        pattern = re.compile(PATTERNS.get(which, which))
    except re.error as error:
        raise InputError(
            f"optimizer.trainable={which!r} is no regular expression: {error}. Give "
            f"one, or {', '.join(PATTERNS)}."
        ) from error
    names = parameter_names(params)
    trained = [bool(pattern.search(name)) for name in names]
    if not any(trained):
        kinds = dict.fromkeys(re.sub(r"^blocks_\d+", "blocks_N", n) for n in names)
        raise InputError(
            f"optimizer.trainable={which!r} matches no parameter. Their names are "
            f"{', '.join(kinds)}; or give {', '.join(PATTERNS)}."
        )
    trained = [
        t or n.startswith(PROJECTOR) for t, n in zip(trained, names, strict=True)
    ]
    mask = jax.tree.unflatten(jax.tree.structure(params), trained)
    return (
        jax.tree.map(lambda x, on: x if on else None, params, mask),
        jax.tree.map(lambda x, on: None if on else x, params, mask),
    )


def merge(trained, frozen):
    """Puts together what `split` has taken apart."""

    def either(one, other):
        return other if one is None else one

    return jax.tree.map(either, trained, frozen, is_leaf=lambda leaf: leaf is None)
