"""The train step and what it needs: state, optimizer, checkpoints, metrics."""
