"""Reward models: checkpoints, encoding, scoring engines and the reward pipeline. Knows no HTTP, no metrics, no optimizer."""
