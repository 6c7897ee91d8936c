"""DeiT in JAX: train, distil, fine-tune, compare and ship image transformers."""
