"""The workflow of training, from a recipe to a checkpoint: `run.train` is the whole of it, from top to bottom.

The only package that depends on all the others of training but the commands.
"""

from rewardserve.training.workflow.checkpoints import (
    average_checkpoints,
    calibrate_checkpoint,
    evaluate_checkpoint,
    score_benchmark,
)
from rewardserve.training.workflow.fitting import features, fit, initialise_heads, network_and_rows
from rewardserve.training.workflow.processes import n_processes
from rewardserve.training.workflow.run import export_last_step, train
from rewardserve.training.workflow.start import load_start, print_not_adapted
from rewardserve.training.workflow.tables import encode

__all__ = [
    "average_checkpoints",
    "calibrate_checkpoint",
    "encode",
    "evaluate_checkpoint",
    "export_last_step",
    "features",
    "fit",
    "initialise_heads",
    "load_start",
    "n_processes",
    "network_and_rows",
    "print_not_adapted",
    "score_benchmark",
    "train",
]
