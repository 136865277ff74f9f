"""Trainer of reward models: from preference pairs to a checkpoint with its contract, calibration and report."""
