"""The training loop, on one process or many, its checkpoints and its Ray side."""
