"""Random weights for a timm model, and their copy in the layout of deit_jax."""

import numpy as np
import torch
from flax import traverse_util


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


def flax_params(model):
    """The parameters of a timm ViT or DeiT as the nested dict that Flax takes."""
    flat = {}
    for name, tensor in model.state_dict().items():
        value = tensor.numpy()
        path = name.replace("blocks.", "blocks_").split(".")
        if path[-1] == "weight":
            path[-1] = "scale" if value.ndim == 1 else "kernel"
            # A linear layer's [out, in], or the patch convolution's [out, in, p, p].
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        flat[tuple(path)] = np.ascontiguousarray(value)
    return traverse_util.unflatten_dict(flat)
