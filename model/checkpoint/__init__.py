"""Read reward-model checkpoints of several layouts, and write the one layout that every engine loads.

Layouts that are read (from a folder or a hub name): ours; any `*ForSequenceClassification` with one label, or several with
weights; OpenRLHF; a causal language model with a separate value head (LLaMA-Factory, TRL); a LoRA adapter
with its head over a base model. A missing head is an error: a freshly initialised one would score noise.
"""

from rewardserve.model.checkpoint.exporting import (
    choose_pad,
    exported_template,
    exported_tokenizer,
    with_openrlhf_note,
    with_whole_tokenization,
    without_bias,
)
from rewardserve.model.checkpoint.reading import (
    has_own_weights,
    load_weights,
    read,
    read_backbone,
    read_without_weights,
    source_digests,
)
from rewardserve.model.checkpoint.record import AUDIT_JUDGE, DTYPES, Checkpoint, CheckpointError, ReadOptions
from rewardserve.model.checkpoint.writing import write, write_calibration, write_contract, write_heads, write_labels

__all__ = [
    "AUDIT_JUDGE",
    "DTYPES",
    "Checkpoint",
    "CheckpointError",
    "ReadOptions",
    "choose_pad",
    "exported_template",
    "exported_tokenizer",
    "has_own_weights",
    "load_weights",
    "read",
    "read_backbone",
    "read_without_weights",
    "source_digests",
    "with_openrlhf_note",
    "with_whole_tokenization",
    "without_bias",
    "write",
    "write_calibration",
    "write_contract",
    "write_heads",
    "write_labels",
]  # fmt: skip
