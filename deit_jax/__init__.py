"""DeiT in JAX: train, distil, fine-tune, compare and ship image transformers."""

__version__ = "0.1.0"
