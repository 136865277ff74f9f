"""A model without weights, for tests, load generators and drills.

Bytes are tokens and the score is a fixed function of the ids, so every reply can be checked. The model name carries the
option: `echo:delay_ms=5` sleeps that long a batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from zlib import crc32

from rewardserve.model.backends import Identity, LoadedModel, LoadError, ModelSpec, encode_each
from rewardserve.model.calibration import Calibration
from rewardserve.model.common_prefix import row_key
from rewardserve.model.contract import ContractReport, ScoringContract
from rewardserve.model.conversation import (
    EmptyResponse,
    InputTooLong,
    Sample,
    SampleError,
    TokenOutOfVocabulary,
    check_text,
)
from rewardserve.model.encoding import Encoded
from rewardserve.model.scorer import BatchScores, TokenBatch

VOCAB_SIZE = 256
END_ID = 0
_END = (END_ID,)
MAX_TOKENS = 32_768


def echo_score(ids: Sequence[int]) -> float:
    """The score of a row: a number in [-2, 2), CRC-32 over the ids as little-endian words. Any other id changes it."""
    return crc32(row_key(ids)) / 2**30 - 2.0


class EchoScorer:
    """Return `echo_score` for every row, after `delay_s`."""

    max_tokens = MAX_TOKENS
    shares_prefixes = False
    concurrency = 1
    pads_rows = False
    streams = False
    is_alive = True

    def __init__(self, delay_s: float = 0.0) -> None:
        self._delay_s = delay_s

    def score(self, batch: TokenBatch) -> BatchScores:
        """One entry a row, in order."""
        if self._delay_s:
            time.sleep(self._delay_s)
        return BatchScores(tuple({"score": echo_score(row)} for row in batch.rows), tokens_computed=batch.n_tokens)

    def close(self) -> None:
        """Do nothing: an echo model holds no memory."""


class EchoEncoder:
    """UTF-8 bytes as ids: contents joined by newlines, then the end id."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens

    def __call__(self, sample: Sample) -> Encoded:
        """Encode one sample. Raise the same `SampleError`s as an encoder with a tokenizer."""
        missing_end = sample.finish_reason == "length"
        if sample.input_ids is not None:
            ids, n_prompt = _checked(sample.input_ids), 0
        elif sample.text is not None:
            check_text(sample.text)
            ids, n_prompt = tuple(sample.text.encode()), len(sample.text[: sample.n_prompt_chars or 0].encode())
        else:
            messages = sample.conversation()
            for message in messages:
                check_text(message.content)
            prompt = "\n".join(m.content for m in messages[:-1]).encode() + b"\n"
            ids, n_prompt = tuple(prompt + messages[-1].content.encode()), len(prompt)
        if not ids:
            raise EmptyResponse()
        ids = ids if missing_end else ids + _END
        limit = min(self._max_tokens, sample.options.max_tokens or self._max_tokens)
        excess = len(ids) - limit
        if excess > (n_prompt if sample.options.truncates else 0):
            raise InputTooLong(n=len(ids) - n_prompt, limit=limit)
        if excess > 0:
            return Encoded(ids[excess:], n_prompt - excess, truncated=True, missing_end=missing_end)
        return Encoded(ids, n_prompt, missing_end=missing_end)

    def many(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """One entry a sample, in order."""
        return encode_each(self, samples)

    def texts(self, sample: Sample) -> tuple[str, str]:
        """Prompt and response of the sample."""
        return sample.texts()

    def first_turns(self, sample: Sample) -> str:
        """Empty: without a template no response is known to begin."""
        return ""

    def decode(self, ids: Sequence[int]) -> str:
        """The bytes as text; the end id is none."""
        return bytes(each for each in ids if each not in _END).decode("utf-8", "replace")

    def is_rendered(self, prompt: str) -> bool:
        """Whether the prompt ends with a newline, as this encoder renders it."""
        return prompt.endswith("\n")


def _checked(ids: tuple[int, ...]) -> tuple[int, ...]:
    """Raise `TokenOutOfVocabulary` naming the first id that is no byte."""
    try:
        bytes(ids)
    except (ValueError, OverflowError):
        i, token = next((i, token) for i, token in enumerate(ids) if not 0 <= token < VOCAB_SIZE)
        raise TokenOutOfVocabulary(f"input_ids[{i}] is {token}", index=i, id=token, vocab_size=VOCAB_SIZE) from None
    return ids


def load(spec: ModelSpec) -> LoadedModel:
    """Load `ModelSpec(model="echo")` or `"echo:delay_ms=5"`."""
    max_tokens = min(MAX_TOKENS, spec.max_input_tokens or MAX_TOKENS)
    contract = ScoringContract(
        template="", template_digest="", bos_id=None, end_text="\0", end_ids=(END_ID,), template_tail="",
        ending="end_token", reads_at="last", skip_id=None, bos_without_template="none", tokenizes="whole",
        truncation="prompt_left", max_tokens=max_tokens, pad_id=END_ID, tokenizer_digest="bytes", weights_digest="none",
        head_digest="none", dtype="float32", heads=(("score", 1.0),), origin="inferred",
    )  # fmt: skip
    return LoadedModel(
        identity=Identity("echo", "Echo", "echo", "none", "float32", "cpu", (("score", 1.0),), 0, max_tokens),
        scorer=EchoScorer(_delay_s(spec.model)),
        encode=EchoEncoder(max_tokens),
        contract=contract,
        report=ContractReport("inferred", (), 0, None),
        calibration=Calibration(mean=0.0, std=1.1547005, cap_low=-1.6, cap_high=1.6, source="echo: uniform on [-2, 2)"),
    )


def _delay_s(name: str) -> float:
    key, _, value = name.removeprefix("echo").removeprefix(":").partition("=")
    if not key:
        return 0.0
    if key != "delay_ms":
        raise LoadError(f"unknown echo option {key!r}; known is delay_ms")
    return float(value) / 1000
