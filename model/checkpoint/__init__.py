"""Reads the reward-model checkpoints that exist, writes the one layout that every engine loads.

Read (a folder or a hub name): our own; any `*ForSequenceClassification` with one label, or several with
weights; OpenRLHF; a causal language model with a separate value head (LLaMA-Factory, TRL); a LoRA adapter
with its head over a base model. A head that is missing is refused: a freshly initialised one scores noise.
"""

from model.checkpoint.reading import read, read_backbone
from model.checkpoint.record import DTYPES, Checkpoint, CheckpointError
from model.checkpoint.writing import write, write_calibration, write_contract, write_heads

__all__ = [
    "DTYPES", "Checkpoint", "CheckpointError", "read", "read_backbone", "write", "write_calibration", "write_contract",
    "write_heads",
]  # fmt: skip
