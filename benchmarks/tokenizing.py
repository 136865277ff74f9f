"""Measure the cost of tokenising a sample, beside the forward of a 150M model.

Two workloads: `ragged`, where no prompt repeats, and `grpo`, where eight responses share a prompt; sixteen samples at a
time, as in the server's encoder. "plain" is the same encoder without its caches.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from benchmarks import models, workloads
from rewardserve.model.conversation import Sample
from rewardserve.model.default import base_model
from rewardserve.model.encoding import Encoded, Encoder
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.tokenization.encoding_policy import infer_policy

WORKLOADS = ("ragged", "grpo")
_SCALE = 0.5
_REPEATS = 3
_CHUNK = 16
_FORWARD_ROWS = 24


@dataclass(frozen=True, slots=True)
class TokenizingCost:
    """Cost of one sample, on one core."""

    tokenizer: str
    workload: str
    tokens: float
    encode_us: float
    plain_us: float
    forward_ms: float | None

    @property
    def share(self) -> float | None:
        """Encoding as a share of the forward."""
        return None if self.forward_ms is None else self.encode_us / 1000 / self.forward_ms


def tokenizing_costs(*, forward: bool) -> list[TokenizingCost]:
    """Measure every tokenizer on every workload; with `forward`, also the 150M model's forward of the same rows."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    benchmark = models.train_tokenizer()
    found = []
    for workload in WORKLOADS:
        pairs = workloads.make(workload, benchmark, _SCALE).pairs
        samples = [pair.sample() for pair in pairs]
        forward_ms = _forward_ms(samples) if forward else None
        for name, tokenizer in (("benchmark, 8k", _wrapped(benchmark)), ("default model, 49k", _default())):
            found.append(_tokenizing_cost(name, workload, tokenizer, samples, forward_ms))
    return found


def _tokenizing_cost(
    name: str, workload: str, tokenizer: Any, samples: list[Sample], forward_ms: float | None
) -> TokenizingCost:
    policy = infer_policy(
        tokenizer, max_tokens=models.MAX_TOKENS, vocab_size=len(tokenizer), rule=LAYOUT_RULES["language_model"]
    )
    # Each repetition uses a new encoder, with empty caches.
    encode_us = _us_a_sample(lambda: Encoder(tokenizer, policy), samples)
    plain_us = _us_a_sample(lambda: Encoder(tokenizer, policy, memo_chars=0), samples)
    n_tokens = [len(each.ids) for each in Encoder(tokenizer, policy).many(samples) if isinstance(each, Encoded)]
    return TokenizingCost(name, workload, statistics.mean(n_tokens), encode_us, plain_us, forward_ms)


def _us_a_sample(make: Callable[[], Encoder], samples: Sequence[Sample]) -> float:
    found = []
    for _ in range(_REPEATS):
        encode = make()
        started = time.process_time()
        for start in range(0, len(samples), _CHUNK):
            encode.many(samples[start : start + _CHUNK])
        found.append((time.process_time() - started) / len(samples))
    return 1e6 * statistics.median(found)


def _forward_ms(samples: Sequence[Sample]) -> float:
    """CPU time of the 150M model for one sample, by RewardServe's fastest engine: shared prefixes are computed once."""
    from benchmarks.engines_under_test import ENGINE_BUILDERS, LoadedCheckpoint

    folder = models.folder("m150")
    encode = workloads.encoder_of(folder)
    rows = [encode(sample).ids for sample in samples[:_FORWARD_ROWS]]
    engine = ENGINE_BUILDERS["shared"](LoadedCheckpoint(folder), 1024)
    engine.run(rows[:2])
    started = time.process_time()
    engine.run(rows)
    return 1000 * (time.process_time() - started) / len(rows)


def _wrapped(tokenizer: Tokenizer) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=models.END, pad_token=models.PAD, chat_template=models.CHATML
    )


def _default() -> Any:
    return AutoTokenizer.from_pretrained(base_model.ensure_base_model(max(base_model.BASE_MODEL_DIGESTS)))
