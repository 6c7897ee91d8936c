"""timm's models of our variants, with random weights."""

import timm
import torch

from deit_jax.models.variants import VARIANTS


def randomise(model, seed=0):
    """Give every parameter, biases and norms included, a value that matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("token", "pos_embed")):
                parameter.copy_(0.5 * noise)
            elif parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(0.2 * noise)


def make(variant, **fields):
    """timm's model of a variant, with the sizes of our table.

    timm has no distilled DeiT III whose positions are those of the patches alone: here
    those of its tokens are 0.
    """
    ours = VARIANTS[variant]
    middle = "_distilled" if ours["distilled"] else ""
    sizes = {
        "img_size": ours["image_size"],
        "patch_size": ours["patch_size"],
        "embed_dim": ours["width"],
        "depth": ours["depth"],
        "num_heads": ours["num_heads"],
        "init_values": ours["init_values"],
        "no_embed_class": ours["no_embed_class"] and not ours["distilled"],
    }
    model = timm.create_model(f"deit_tiny{middle}_patch16_224", **sizes | fields)
    randomise(model)
    if ours["distilled"]:
        if ours["no_embed_class"]:
            with torch.no_grad():
                model.pos_embed[:, :2] = 0
        # In evaluation timm returns the mean of the heads, in training both. Its
        # rates of dropout and stochastic depth are 0, so nothing else differs.
        model.set_distilled_training(True)
    return model.train()


def to_torch(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def as_dict(logits):
    logits = logits if isinstance(logits, tuple) else (logits,)
    return dict(zip(("class", "distill"), logits, strict=False))
