"""What each size and grid costs, as a table: docs/performance.md has it.

    python -m benchmarks.variants

Nothing is run or compiled, and the figures are the same everywhere. The parameters are
those with 1,000 classes, of ViT, DeiT and DeiT III; the rest is that of DeiT, with its
distillation token. FLOPs are those of the products of an image's forward pass; a train
step has three times as many. The state is what stays on a device: parameters, their
moving average and AdamW's two moments, in float32. Kept is what JAX keeps of an image
for the backward pass, in bfloat16 with fused attention.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from deit_jax.models import cost, variants
from deit_jax.models.params import abstract_params, count_parameters

HEADER = (
    "model | tokens | ViT, M | DeiT, M | DeiT III, M | GFLOP | state, GB | kept, MB"
)
STATE = 16  # bytes a parameter


def rows(match: str = "") -> Iterator[str]:
    """The lines of the table, of names with `match` in them."""
    for size, grids in variants.GRIDS.items():
        for patch, side in sorted(grids, key=lambda grid: grid[1] // grid[0]):
            if match in (name := f"{size}_patch{patch}_{side}"):
                yield f"| `{name}` | {' | '.join(_cells(name))} |"


def _cells(name: str) -> list[str]:
    size, _, grid = name.partition("_")
    names = f"vit_{name}", f"deit_{size}_distilled_{grid}", f"deit3_{name}"
    models = [variants.create(each, num_classes=1000) for each in names]
    counts = [
        by_depth(lambda m: count_parameters(abstract_params(m)), m) for m in models
    ]
    deit = models[1]
    fused = deit.clone(dtype=jnp.bfloat16, attention="pallas")
    return [
        f"{(deit.image_size // deit.patch_size) ** 2 + len(deit.heads):,}",
        *(f"{count / 1e6:.2f}" for count in counts),
        f"{cost.forward_flops(deit) / 1e9:.2f}",
        f"{STATE * counts[1] / 1e9:.2f}",
        f"{by_depth(kept, fused) / 1e6:.1f}",
    ]


def by_depth(figure: Callable, model) -> int:
    """A figure of a model that each of its blocks adds the same to."""
    one, two = (figure(model.clone(depth=depth)) for depth in (1, 2))
    return one + (model.depth - 1) * (two - one)


def kept(model) -> int:
    """Bytes of an image that the backward pass needs: what grows with the batch."""
    variables = {"params": abstract_params(model)}

    def pull_back(variables, images):
        return jax.vjp(lambda v: model.apply(v, images), variables)[1]

    sizes = []
    for batch in (1, 2):
        shape = (batch, model.image_size, model.image_size, 3)
        images = jax.ShapeDtypeStruct(shape, jnp.float32)
        residuals = jax.tree.leaves(jax.eval_shape(pull_back, variables, images))
        sizes.append(sum(x.size * x.dtype.itemsize for x in residuals))
    return sizes[1] - sizes[0]


def main() -> None:
    print(f"| {HEADER} |\n|---{'|---:' * HEADER.count('|')}|")
    for row in rows():
        print(row, flush=True)


if __name__ == "__main__":
    main()
