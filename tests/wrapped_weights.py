"""State dicts as training scripts store them, for students and teachers."""

import argparse
import pathlib

import numpy as np
import pytest


def any_of(tensors):
    return next(iter(tensors.values()))


def under(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


def other(tensors):
    return {
        name: value + 1 if value.is_floating_point() else value
        for name, value in tensors.items()
    }


def parameters(tensors):
    parameter = pytest.importorskip("torch").nn.Parameter
    return {n: parameter(x, x.is_floating_point()) for n, x in tensors.items()}


def script(tensors):
    """As DeiT's, timm's and torch's examples do it."""
    return {
        "arch": "some net",
        "state_dict": under("module.", tensors),
        "optimizer": {"state": {0: {"exp_avg": any_of(tensors)}}, "named": tensors},
        "args": argparse.Namespace(lr=0.1, out=pathlib.PosixPath("x")),
        "best": np.float64(0.5),
        "epoch": 3,
    }


def lightning(tensors):
    return {
        "pytorch-lightning_version": "2.5",
        "state_dict": under("model.", tensors) | {"loss.weight": any_of(tensors)},
        "callbacks": {},
        "hyper_parameters": {"lr": 0.1},
    }


# What a file holds of a state dict, and what is said of the choice.
WRAPPED = {
    "bare": (lambda x: x, None),
    "parameters": (parameters, None),
    "script": (script, None),
    "net": (lambda x: {"net": x}, None),
    "model_state_dict": (lambda x: {"model_state_dict": x, "epoch": 3}, None),
    "compiled": (lambda x: under("_orig_mod.", x), None),
    "compiled, parallel": (lambda x: under("module._orig_mod.", x), None),
    "lightning": (lightning, None),
    "backbone": (lambda x: {"state_dict": under("backbone.", x)}, None),
    "wrapper vit": (lambda x: {"model": under("vit.", x)}, None),
    "AveragedModel": (
        lambda x: under("module.", x) | {"n_averaged": any_of(x)},
        None,
    ),
    "raw and ema": (
        lambda x: {"model_ema": {"module": other(x)}, "model": x},
        r"the raw weights of model are taken, not those of model_ema\.module",
    ),
    "raw and ema, flat": (
        lambda x: x | under("ema_model.", other(x)),
        r"raw weights of the top level are taken, not those of ema_model",
    ),
    "lightning's ema": (
        lambda x: {"state_dict": under("net.", x) | under("ema.module.", other(x))},
        r"raw weights of state_dict\.net are taken, not .* state_dict\.ema\.module",
    ),
    "ema only": (
        lambda x: {"state_dict_ema": x},
        r"averaged weights of state_dict_ema are taken, there are no raw ones",
    ),
    "ema twice": (lambda x: {"ema": {"ema": x}}, r"averaged weights of ema\.ema are"),
}
