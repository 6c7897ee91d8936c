"""What a model costs to compute."""


def forward_flops(model) -> int:
    """Floating-point operations of one image's forward pass.

    It counts the matrix products by their shapes, two operations for each
    multiplication with its addition: the same for every device and version of JAX.
    Norms, softmax and GELU add 12 % to the nano model, 6 % to the tiny one and less to
    larger ones. Papers often count multiplications with additions as one, which is half
    of this (DeiT-Ti: 1.3 G there, 2.5 G here). A training step costs about three times
    as much.

    Args:
      model: A `VisionTransformer`.
    """
    patches = (model.image_size // model.patch_size) ** 2
    tokens = patches + len(model.heads)
    width, hidden = model.width, int(model.width * model.mlp_ratio)
    embedding = patches * 3 * model.patch_size**2 * width
    projections = tokens * width * (4 * width + 2 * hidden)
    attention = 2 * tokens**2 * width
    heads = len(model.heads) * width * model.num_classes
    return 2 * (embedding + model.depth * (projections + attention) + heads)
