"""DeiT in JAX: train, distil, fine-tune, compare and ship image transformers.

`deit_jax.load` opens a trained model, see `deit_jax.trained_model`.
"""

__version__ = "0.1.0"
__all__ = ["load"]


def __dir__():
    return [*globals(), *__all__]


def __getattr__(name: str):
    # JAX takes a second to import: not before a model is asked for.
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from deit_jax.trained_model import load

    return load
