"""ViT and DeiT as Flax Linen modules, and the table of their variants."""
