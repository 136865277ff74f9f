"""Labeller: prefers the better response, with planted biases and random mistakes.

A preference is logistic in the difference of two utilities (Bradley & Terry 1952), then flipped with a fixed
probability. The utility is the gold reward plus the biases. Independent of proxies.

`N` pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from gym.gold import gold
from gym.policy import BASE_LENGTH, Policy
from gym.responses import BoolArray, FloatArray, Responses, joined
from gym.vocabulary import CLASSES, SIZE

N_VARIANTS: Final = 20
CLASS_SPREAD: Final = 0.85  # sd of a variant's log share of a class
WORD_SPREAD: Final = 0.1
END_SPREAD: Final = 0.5


@dataclass(frozen=True, slots=True)
class Biases:
    """Biases added to the gold reward, and the noise of the choice."""

    length: float = 0.0  # times log(words / 40)
    flattery: float = 0.0  # per phrase, up to three
    list_items: float = 0.0  # per item, up to four
    odd: float = 0.0  # per word of the class without a theme, up to six
    flips: float = 0.125
    temperature: float = 0.75

    def utility_B(self, responses: Responses) -> FloatArray:
        """Utility of each response for this labeller."""
        words_B = np.maximum(responses.lengths_B, 1)
        added_B = self.length * np.log(words_B / BASE_LENGTH)
        added_B += self.flattery * np.minimum(responses.count_B("flattery"), 3)
        added_B += self.list_items * np.minimum(responses.count_B("list"), 4)
        added_B += self.odd * np.minimum(responses.count_B("odd"), 6)
        return gold(responses) + added_B


PLANTED: Final[dict[str, Biases]] = {
    "human": Biases(length=0.25, flattery=0.40, list_items=0.20),
    "length": Biases(length=0.50),
    "flattery": Biases(flattery=0.40),
    "list": Biases(list_items=0.40),
    "odd": Biases(odd=0.30),
    "none": Biases(),
}


@dataclass(frozen=True)
class LabelledPairs:
    """Labelled pairs: the labelled preference, and the preference before the random flips. Without weights, each counts 1."""

    left: Responses
    right: Responses
    left_won_N: BoolArray
    left_meant_N: BoolArray
    given_weight_N: FloatArray | None = None

    @property
    def weight_N(self) -> FloatArray:
        """Weight of each pair in a fit."""
        return np.ones(len(self.left)) if self.given_weight_N is None else self.given_weight_N


def label(left: Responses, right: Responses, biases: Biases, rng: np.random.Generator) -> LabelledPairs:
    """Label each pair."""
    margin_N = (biases.utility_B(left) - biases.utility_B(right)) / biases.temperature
    left_meant_N = rng.random(len(left)) < 1.0 / (1.0 + np.exp(-margin_N))
    return LabelledPairs(left, right, left_meant_N ^ (rng.random(len(left)) < biases.flips), left_meant_N)


def variant(base: Policy, rng: np.random.Generator) -> Policy:
    """Variant of a policy, as after another fine-tuning: other shares of the classes, the words, and EOS."""
    shift_by_class = [rng.normal(0.0, CLASS_SPREAD, size=1).repeat(len(words)) for words in CLASSES.values()]
    shift_V = np.append(np.concatenate(shift_by_class), rng.normal(0.0, END_SPREAD))
    shift_V[:-1] += rng.normal(0.0, WORD_SPREAD, size=SIZE - 1)
    return Policy(base.logits_V + shift_V, base.cap)


def pairs(base: Policy, n: int, biases: Biases, rng: np.random.Generator) -> LabelledPairs:
    """`n` labelled pairs of responses by variants of the base policy, two variants drawn for each pair."""
    n_each = -(-2 * n // N_VARIANTS)
    prompt_ids = np.zeros(n_each, dtype=np.int64)
    pool = joined([variant(base, rng).sample(rng, prompt_ids) for _ in range(N_VARIANTS)])
    order = rng.permutation(len(pool))
    return label(pool.take(order[:n]), pool.take(order[n : 2 * n]), biases, rng)
