"""The training loop: the trained weights, steps, stages, step checkpoints and trackers."""
