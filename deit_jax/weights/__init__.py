"""Weights of other programs, timm's and Hugging Face's: reading and writing them."""
