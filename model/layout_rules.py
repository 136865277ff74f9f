"""Table of the rules of each checkpoint layout: the ending of a row, and the token at which its trainer reads the score.

A checkpoint with a written contract follows its contract; a checkpoint without one follows the rule of its layout.
Standard library only; knows no tokenizer and no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ending = Literal["template", "template_or_eos", "template_and_eos", "end_token", "eos"]
"""Text that closes a row after the response:

- `template`: all that the chat template writes, and nothing else. Without a template: EOS.
- `template_or_eos`: the same, and EOS where the template writes no control token after the response.
- `template_and_eos`: all that the template writes, and EOS.
- `end_token`: the text of the template up to its last control token. EOS where it writes none.
- `eos`: newlines at the end of the rendering are removed; a space and EOS follow unless it ends with EOS.
"""

CLOSES_ANY_TAIL: frozenset[Ending] = frozenset({"template", "eos"})
"""Endings that are a function of the rendering alone, for any text at its end."""

ReadsAt = Literal["last", "last_non_pad"]
"""`last`: the last token of the row. `last_non_pad`: the last token whose id is not `pad_token_id` of config.json."""

BosWithoutTemplate = Literal["tokenizer", "none"]
"""Special tokens before text without a chat template: those that the tokenizer adds, or none. A chat template writes them."""


Tokenizes = Literal["whole", "slots"]
"""Tokenisation of a rendering: as one text, or each slot of each turn separately, as LLaMA-Factory does (`slots`)."""


@dataclass(frozen=True, slots=True)
class LayoutRule:
    """One row of the table. `reason` completes "..., because"."""

    ending: Ending
    reads_at: ReadsAt
    bos_without_template: BosWithoutTemplate
    tokenizes: Tokenizes
    reason: str


LAYOUT_RULES: dict[str, LayoutRule] = {
    "rewardserve": LayoutRule(
        "end_token", "last", "tokenizer", "whole",
        "the layout is RewardServe's, whose training reads the score at the token that ends a turn",
    ),
    "language_model": LayoutRule(
        "end_token", "last", "tokenizer", "whole",
        "rewardserve train reads the score at the token that ends a turn",
    ),
    "sequence_classification": LayoutRule(
        "template", "last_non_pad", "tokenizer", "whole",
        "the layout is transformers' sequence classification, whose class reads the last token that is not pad_token_id",
    ),
    "adapter": LayoutRule(
        "template", "last_non_pad", "tokenizer", "whole",
        "the layout is PEFT's adapter of a sequence classifier, whose class reads the last token that is not pad_token_id",
    ),
    "openrlhf": LayoutRule(
        "eos", "last", "none", "whole",
        "the layout is OpenRLHF's, whose dataset removes newlines at the end and makes EOS the last token",
    ),
    "llama_factory": LayoutRule(
        "template_or_eos", "last", "tokenizer", "slots",
        "the layout is LLaMA-Factory's, whose trainer reads the last token of the rendering",
    ),
    "trl_value_head": LayoutRule(
        "template_or_eos", "last", "tokenizer", "whole",
        "the layout is TRL's value head among the weights, whose value is read at the last token",
    ),
}  # fmt: skip
"""Layout -> rule. Sources: transformers `GenericForSequenceClassification.forward`; TRL `RewardTrainer._prepare_dataset`
(EOS is appended to text without a template, and the tokenizer adds its special tokens); OpenRLHF
`datasets/reward_dataset.py` and `models/model.py`; LLaMA-Factory `data/template.py` (slots are tokenised separately),
`data/processor/pairwise.py` (`efficient_eos`) and `train/rm/trainer.py` (`attention_mask.sum() - 1`)."""
