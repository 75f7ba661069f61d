"""The training loop, its validation and checkpoints."""
