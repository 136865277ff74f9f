"""Token ids of responses: those of the served model's tokenizer, because wires count tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from gym.streams.replay import END_ID, Tokenize
from rewardserve.model.default.base_model import BASE_MODEL_DIGESTS, ensure_base_model


def tokenizer_of(checkpoint: str = "") -> Tokenize:
    """Load the tokenizer of a checkpoint folder; empty: that of the default model, whose base model is unpacked if needed."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folder = Path(checkpoint) if checkpoint else ensure_base_model(max(BASE_MODEL_DIGESTS))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def tokenize(texts: Sequence[str]) -> list[tuple[int, ...]]:
        encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [tuple([token + 1 + END_ID for token in each.ids]) for each in encoded]

    return tokenize
