"""The torchvision teacher: train it, and cache its logits for the student."""
