"""Gold reward: the true value of a response. Only the gym may read it, no proxy, wire or policy.

It rewards many different relevant words and some concrete ones. It penalises digression, flattery, refusals, foreign
script, filler, lists, repetition and excessive length.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gym import vocabulary
from gym.responses import FloatArray, Responses

RELEVANT_WORTH: Final = 3.0
RELEVANT_SCALE: Final = 8.0  # this many distinct relevant words give 1 - 1/e of the scale
CONCRETE_WORTH: Final = 0.8
CONCRETE_SHARE: Final = 0.10  # a larger share of concrete words gives no more
PER_SHARE: Final[dict[str, float]] = {"off_topic": -3.9, "filler": -2.6}
PER_WORD: Final[dict[str, float]] = {
    "flattery": -0.12,
    "refusal": -0.3,
    "cjk": -0.45,
    "list": -0.08,
}
WORST: Final = 3.0  # the penalty of such a class is largest at this many words
LONG: Final = 55  # words
PER_WORD_TOO_LONG: Final = -0.023
REPETITION: Final = -0.5  # for a response whose trigrams are all equal


def gold(responses: Responses) -> FloatArray:
    """Gold reward of every response."""
    counts_BV, lengths_B = responses.counts_BV, responses.lengths_B
    distinct_B = (counts_BV[:, vocabulary.ids("relevant")] > 0).sum(axis=1)
    concrete_B = responses.count_B("concrete") / np.maximum(lengths_B, 1)
    value_B = RELEVANT_WORTH * (1.0 - np.exp(-distinct_B / RELEVANT_SCALE))
    value_B += CONCRETE_WORTH * np.minimum(concrete_B / CONCRETE_SHARE, 1.0)
    value_B += sum(worth * responses.count_B(kind) for kind, worth in PER_SHARE.items()) / np.maximum(lengths_B, 1)
    value_B += sum(worth * np.minimum(responses.count_B(kind), WORST) for kind, worth in PER_WORD.items())
    value_B += PER_WORD_TOO_LONG * np.maximum(lengths_B - LONG, 0)
    return np.asarray(value_B + REPETITION * responses.repetition_B)
