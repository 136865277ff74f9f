"""Longest row that a backbone reads: from the fields of its configuration, and from the size of its position tables.

Works on the meta device. Knows no weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

DEFAULT_MAX_TOKENS = 4096
"""Tokens, for models whose configuration names no longest position and that have none (recurrent ones, some with ALiBi)."""

_NAMES = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "max_seq_length", "seq_length", "seq_len",
    "n_ctx", "context_length", "model_max_length", "max_target_positions", "max_decoder_position_embeddings",
    "max_text_positions",
)  # fmt: skip
"""Fields for the longest row, the most reliable first. Configurations map some of them to others (`attribute_map`)."""

_TABLE = re.compile(r"(?:^|[._])(?:wpe|pos|positions?|positional)(?:[._]|$)")
_OTHER_TABLE = re.compile(r"rel|vision|image|audio|encoder\.")


def max_row_tokens(backbone: Any) -> int | None:
    """Longest row in tokens; None where the configuration names none and the model has no position table."""
    text = backbone.config.get_text_config()
    numbers = (getattr(text, name, None) for name in _NAMES)
    named = next((int(n) for n in numbers if isinstance(n, int | float) and n > 0), None)
    found = [n for n in (named, position_table_size(backbone)) if n is not None]
    return min(found, default=None)


def position_table_size(backbone: Any) -> int | None:
    """Number of positions of the smallest learned position table; None where there is no table."""
    return min(_sizes(backbone), default=None)


def _sizes(backbone: Any) -> Iterator[int]:
    is_multimodal = backbone.config.get_text_config() is not backbone.config
    for path, module in backbone.named_modules():
        if not isinstance(module, nn.Embedding) or not _TABLE.search(path.rpartition(".")[2]):
            continue
        if _OTHER_TABLE.search(path) or (is_multimodal and not re.search(r"text|language", path)):
            continue
        # Positions of OPT, BART and BioGPT begin at 2; those of RoBERTa and its variants one after the padding index.
        unused = int(getattr(module, "offset", 0)) + (0 if module.padding_idx is None else module.padding_idx + 1)
        yield module.num_embeddings - unused
