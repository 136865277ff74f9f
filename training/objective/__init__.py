"""The loss of a training step, and its terms that keep the score from length, layout and other variables."""
