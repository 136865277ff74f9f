"""Figures of a reward model: accuracy, calibration, invariance, style, and published benchmarks."""
