"""What a model costs to compute."""


def forward_flops(model) -> int:
    """Floating-point operations of one image's forward pass of a `VisionTransformer`.

    It counts the matrix products by their shapes, two operations for each
    multiplication with its addition: twice what papers call FLOPs (DeiT-Ti: 1.3 G
    there, 2.5 G here). Norms, softmax and GELU add 12 % to the nano model, 6 % to the
    tiny one and less to larger ones. A training step costs about three times as much.
    """
    patches = (model.image_size // model.patch_size) ** 2
    tokens = patches + len(model.heads)
    width, hidden = model.width, int(model.width * model.mlp_ratio)
    embedding = patches * 3 * model.patch_size**2 * width
    projections = tokens * width * (4 * width + 2 * hidden)
    attention = 2 * tokens**2 * width
    heads = len(model.heads) * width * model.num_classes
    return 2 * (embedding + model.depth * (projections + attention) + heads)


# Numbers in the residual stream of a part: its hidden layer then takes 3 MB.
CACHED = 200_000


def parts(model, images: int, unit: int = 1) -> int:
    """Parts in which a CPU computes so many images fastest, one after the other.

    The activations of a large batch fall out of its caches: DeiT-Ti at 224 px does most
    images a second four at a time (docs/performance.md). Every part is a multiple of
    `unit`.
    """
    patches = (model.image_size // model.patch_size) ** 2
    best = CACHED / ((patches + len(model.heads)) * model.width)
    sizes = [n for n in range(unit, images + 1, unit) if images % n == 0]
    # As near as the batch allows, by the ratio; half or twice as many are still good.
    size = min(sizes, key=lambda n: max(n / best, best / n))
    return images // size if best / 2 <= size < images else 1
