"""A tiny policy, a tiny reward model, and how a score is recomputed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.checkpoints import CALIBRATION

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Nothing after the end token: there TRL, which scores what the template writes, and we read at the same place."""


class ByHand:
    """A plain float32 forward of transformers over what the template writes, one row at a time."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def raw(self, messages: list[dict[str, str]]) -> float:
        """The score at the last token."""
        return self.raw_of_ids(self.ids(messages))

    def ids(self, messages: list[dict[str, str]]) -> list[int]:
        """The conversation as the template writes it."""
        ids: Any = self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        return [int(i) for i in ids]

    def raw_of_ids(self, ids: list[int]) -> float:
        """The score at the last token of these."""
        with torch.no_grad():
            row = torch.tensor([ids])
            return float(self._model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, 0])


def normalized(raw: float) -> float:
    """`(raw - mean) / std` of the calibration that the tiny checkpoints have."""
    return (raw - CALIBRATION.mean) / CALIBRATION.std
