"""Workloads for every engine and every server: the same texts and the same token ids, from a fixed seed.

A workload is a list of requests, a request a list of (prompt, response). Lengths are tokens of the text alone; the chat
template adds about ten. Texts are windows of `models.corpus` at random offsets, so that two texts share a prefix only
where the workload defines it. Independent of engines, servers and clocks.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.models import corpus
from rewardserve.model.conversation import Sample
from rewardserve.model.encoding import Encoder
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.tokenization.encoding_policy import infer_policy

PROMPT, RESPONSE = (20, 400), (10, 300)
GROUP_PROMPT, GROUP_RESPONSE = (200, 600), (20, 200)
GROUP_SIZE = 8
LONG = (3500, 4100)
LONG_RESPONSE = (100, 300)
DUPLICATES = 0.2
_LONGEST_WORD = 4  # tokens, with the leading space: the largest shortfall of a window


@dataclass(frozen=True, slots=True)
class TextPair:
    """One prompt and one response to it."""

    prompt: str
    response: str

    def sample(self) -> Sample:
        """The pair as a sample of RewardServe's encoder."""
        return Sample(prompt=self.prompt, response=self.response)


Request = tuple[TextPair, ...]


@dataclass(frozen=True)
class Workload:
    """Requests in order of arrival, and the number of concurrent clients."""

    name: str
    requests: tuple[Request, ...]
    clients: int

    @cached_property
    def pairs(self) -> tuple[TextPair, ...]:
        """All pairs, in order of arrival."""
        return tuple(chain.from_iterable(self.requests))


class Texts:
    """Windows of the corpus with the requested number of tokens, one word more or less."""

    def __init__(self, tokenizer: Tokenizer, seed: str) -> None:
        self._random = random.Random(seed)
        self._words, self._ends = _counted_words(tokenizer)

    def between(self, low: int, high: int) -> str:
        """Text of low..high tokens, log-normal: the median is the geometric mean, the range two deviations."""
        middle, deviation = math.log(low * high) / 2, math.log(high / low) / 4
        while True:
            n_tokens = round(self._random.lognormvariate(middle, deviation))
            if low + _LONGEST_WORD <= n_tokens <= high:
                return self.window(n_tokens)

    def evenly(self, low: int, high: int) -> str:
        """Text of low..high tokens, all lengths equally often."""
        return self.window(self._random.randint(low + _LONGEST_WORD, high))

    def window(self, n_tokens: int) -> str:
        """Text of at most `n_tokens`."""
        start = self._random.randrange(len(self._words))
        before = self._ends[start - 1] if start else 0
        stop = bisect_right(self._ends, before + n_tokens)
        if stop == len(self._ends):
            return self.window(n_tokens)
        return " ".join(self._words[start:stop])

    def choose(self, n: int, of: int) -> list[int]:
        """`n` different numbers below `of`, in order."""
        return sorted(self._random.sample(range(of), n))

    def one_of(self, pairs: Sequence[TextPair]) -> TextPair:
        """One of the pairs at random."""
        return self._random.choice(pairs)


def _counted_words(tokenizer: Tokenizer) -> tuple[list[str], list[int]]:
    """Short words of the corpus, and the number of tokens up to the end of each."""
    words = corpus().split()
    different = list(dict.fromkeys(words))
    encoded = tokenizer.encode_batch_fast([" " + word for word in different], add_special_tokens=False)
    n_tokens = {word: len(e.ids) for word, e in zip(different, encoded, strict=True)}
    kept = [word for word in words if n_tokens[word] <= _LONGEST_WORD]
    return kept, list(accumulate(n_tokens[word] for word in kept))


def ragged(texts: Texts, scale: float) -> Workload:
    """Prompts and responses of all lengths, 16 a request, 4 clients."""
    return Workload("ragged", _requests(_ragged_pairs(texts, _times(scale, 512, 16)), 16), clients=4)


def grpo(texts: Texts, scale: float) -> Workload:
    """64 prompts with 8 responses each, a group a request, 4 clients."""
    return Workload("grpo", tuple(_group(texts) for _ in range(_times(scale, 64))), clients=4)


def duplicates(texts: Texts, scale: float) -> Workload:
    """Ragged, but one pair in five is an exact copy of an earlier one."""
    n = _times(scale, 512, 16)
    pairs: list[TextPair] = []
    copies = {i + 1 for i in texts.choose(round(DUPLICATES * n), n - 1)}
    for i in range(n):
        pairs += [texts.one_of(pairs)] if i in copies else _ragged_pairs(texts, 1)
    return Workload("duplicates", _requests(pairs, 16), clients=4)


def single(texts: Texts, scale: float) -> Workload:
    """One pair a request, 32 clients."""
    return Workload("single", _requests(_ragged_pairs(texts, _times(scale, 512, 32)), 1), clients=32)


def one_at_a_time(texts: Texts, scale: float) -> Workload:
    """One pair a request, sent only after the previous reply."""
    return Workload("one_at_a_time", _requests(_ragged_pairs(texts, _times(scale, 128, 4)), 1), clients=1)


def long(texts: Texts, scale: float) -> Workload:
    """Conversations of about 4,000 tokens, one a request, 2 clients."""
    pairs = [
        TextPair(texts.evenly(LONG[0] - LONG_RESPONSE[0], LONG[1] - LONG_RESPONSE[1]), texts.evenly(*LONG_RESPONSE))
        for _ in range(_times(scale, 32, 2))
    ]
    return Workload("long", _requests(pairs, 1), clients=2)


WORKLOADS: dict[str, Callable[[Texts, float], Workload]] = {
    "ragged": ragged,
    "grpo": grpo,
    "duplicates": duplicates,
    "single": single,
    "one_at_a_time": one_at_a_time,
    "long": long,
}


def make(name: str, tokenizer: Tokenizer, scale: float = 1.0, seed: int = 0) -> Workload:
    """Create the workload called `name`; `scale` 1.0 is its full size. Different names and seeds share no text."""
    return WORKLOADS[name](Texts(tokenizer, f"{name}-{seed}"), scale)


def tokenizer_of(folder: Path) -> Tokenizer:
    """Tokenizer of a model of `models`; it is the same in all of them."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def encoder_of(folder: Path) -> Encoder:
    """RewardServe's encoder for that model."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    policy = infer_policy(
        tokenizer,
        max_tokens=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        rule=LAYOUT_RULES["trl_value_head"],  # equals a plain apply_chat_template
    )
    return Encoder(tokenizer, policy)


def _ragged_pairs(texts: Texts, n: int) -> list[TextPair]:
    return [TextPair(texts.between(*PROMPT), texts.between(*RESPONSE)) for _ in range(n)]


def _group(texts: Texts) -> Request:
    prompt = texts.evenly(*GROUP_PROMPT)
    return tuple(TextPair(prompt, texts.evenly(*GROUP_RESPONSE)) for _ in range(GROUP_SIZE))


def _requests(pairs: Sequence[TextPair], size: int) -> tuple[Request, ...]:
    return tuple(tuple(pairs[i : i + size]) for i in range(0, len(pairs), size))


def _times(scale: float, n: int, at_least: int = 1) -> int:
    """`scale` of n, in whole multiples of `at_least`."""
    return max(1, round(scale * n / at_least)) * at_least
