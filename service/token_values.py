"""The value of each head at each token of a response: where in the text the reward rises and falls.

A row is scored at its last token, so the value at a token is the score of the row that ends there. The rows are prefixes of one
another: an engine that shares prefixes computes each token once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from rewardserve.model.backends import SampleEncoder
from rewardserve.model.conversation import Sample, SampleError
from rewardserve.model.encoding import Encoded
from rewardserve.model.scorer import DISTANCE, HeadScores
from rewardserve.service.admission import Admission
from rewardserve.service.errors import NoValues
from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.encode_pool import EncodePool
from rewardserve.service.inference.outcomes import RowScored

MAX_VALUES = 1_024
"""Longest response, in tokens, whose values are computed."""


class TokenValue(NamedTuple):
    """A token of the response: its text (empty where a later token completes its character) and the value of each head."""

    text: str
    heads: HeadScores


class TokenValues(NamedTuple):
    """Values at the tokens of a response, in order; the last ones are the score. `version` is that of the model."""

    version: int
    tokens: list[TokenValue]


class TokenScorer:
    """Compute the values of samples with one model."""

    def __init__(
        self,
        version: int,
        admission: Admission,
        encode_pool: EncodePool,
        encoder: SampleEncoder,
        batcher: Batcher,
        *,
        shares_prefixes: bool,
    ) -> None:
        self._version = version
        self._admission = admission
        self._encode_pool = encode_pool
        self._encoder = encoder
        self._batcher = batcher
        self._shares_prefixes = shares_prefixes

    async def values(self, sample: Sample) -> TokenValues:
        """The values of one sample. Raise `NoValues` and the errors of admission and batcher."""
        (encoded,) = await self._encode_pool.encode([sample])
        if not isinstance(encoded, Encoded):
            raise NoValues(_reason(encoded))
        n = len(encoded.ids) - encoded.n_prompt
        if n > MAX_VALUES:
            raise NoValues(f"the response has {n} tokens; values are computed of at most {MAX_VALUES}")
        rows = [encoded.ids[:end] for end in range(max(1, encoded.n_prompt + 1), len(encoded.ids) + 1)]
        n_tokens = len(encoded.ids) if self._shares_prefixes else sum(map(len, rows))
        with self._admission.acquire(1, n_tokens):
            outcomes = await self._batcher.score(rows, math.inf, use_cache=False)
        texts = pieces(self._encoder, encoded.ids, len(encoded.ids) - len(rows))
        tokens = []
        for text, outcome in zip(texts, outcomes, strict=True):
            if not isinstance(outcome, RowScored):
                raise NoValues(_reason(outcome))
            tokens.append(TokenValue(text, outcome.heads))
        return TokenValues(self._version, tokens)


def pieces(encoder: SampleEncoder, ids: tuple[int, ...], first: int) -> list[str]:
    """The text of each token from `first` on. The token that completes a character has it; those before it have none.

    A token is decoded behind those before it: alone, many tokenizers drop its space, or mark it as the rest of a word.
    """
    found: list[str] = []
    begin, start = max(0, first - _CONTEXT), first
    for end in range(first + 1, len(ids) + 1):
        before, text = encoder.decode(ids[begin:start]), encoder.decode(ids[begin:end])
        is_incomplete = text.endswith("\ufffd") and end - start < _MOST_TOKENS_OF_A_CHARACTER and end < len(ids)
        found.append("" if is_incomplete else text[len(before) :])
        if not is_incomplete:
            begin, start = start, end  # a whole character, as half of one would spoil the next
    return found


_CONTEXT = 4
"""Tokens of the prompt before the first one."""

_MOST_TOKENS_OF_A_CHARACTER = 4


def finite_heads(heads: HeadScores) -> dict[str, float]:
    """The finite values: a head that does not count in the reward may be anything, and the distance is no head."""
    return {name: value for name, value in heads.items() if name != DISTANCE and math.isfinite(value)}


def _reason(failure: Exception | SampleError) -> str:
    return f"the sample cannot be scored: {getattr(failure, 'message', '') or failure}"
