"""The distillation losses and the cache of teacher logits."""
