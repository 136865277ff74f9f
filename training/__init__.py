"""The trainer: pairs of responses in, a checkpoint with its contract, calibration and report out."""
