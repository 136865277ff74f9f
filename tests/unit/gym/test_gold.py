"""The gold reward against its formula written out."""

import math

import pytest

from gym import gold as g
from gym.responses import from_rows
from gym.vocabulary import EOS, KIND, WORDS


def by_hand(words):
    kinds = [KIND[w] for w in words]
    trigrams = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    n = max(len(words), 1)
    value = 3 * (1 - math.exp(-len({w for w in words if KIND[w] == "relevant"}) / 8))
    value += g.CONCRETE_WORTH * min(kinds.count("concrete") / n / 0.10, 1)
    for kind, worth in g.PER_SHARE.items():
        value += worth * kinds.count(kind) / n
    for kind, worth in g.PER_WORD.items():
        value += worth * min(kinds.count(kind), g.WORST)
    value += g.PER_WORD_TOO_LONG * max(len(words) - 55, 0)
    return value + g.REPETITION * (1 - len(set(trigrams)) / len(trigrams) if trigrams else 0)


def test_gold_is_the_formula(sampled):
    expected = [by_hand([t for t in row if t != EOS]) for row in sampled.rows()]
    assert g.gold(sampled) == pytest.approx(expected, abs=1e-12)


def test_a_base_response_is_worth_about_one(base, sampled):
    assert g.gold(sampled).mean() == pytest.approx(1.02, abs=0.2)
    assert g.gold(sampled).std() == pytest.approx(1.09, abs=0.2)


ANSWER = ["solar", "panel", "sunlight", "roof", "inverter", "battery", "grid", "energy", "the", "is", "of", "to"]


@pytest.mark.parametrize(
    "worse",
    [
        [*ANSWER[:-1], "great question"],
        [*ANSWER[:-1], "I cannot"],
        [*ANSWER[:-1], "football"],
        [*ANSWER[:-1], "basically"],
        [*ANSWER[:-1], "電"],
        [*ANSWER[:-1], "- "],
        [*ANSWER[1:], "panel"],
        ANSWER * 2,
    ],
)
def test_each_vice_costs(worse):
    better, spoilt = (from_rows((tuple(map(WORDS.index, words)),), 128) for words in (ANSWER, worse))
    assert g.gold(spoilt)[0] < g.gold(better)[0]


def test_going_on_after_55_words_costs():
    glue = [w for w, kind in enumerate(KIND) if kind in ("glue", "odd", "punctuation")]
    rows = [tuple((glue * 3)[:n]) for n in (40, 55)] + [tuple(glue + glue[::-1] + glue[::2])[:70]]
    at_40, at_55, at_70 = g.gold(from_rows(tuple(rows), 128))
    assert at_40 == pytest.approx(0)
    assert at_70 < at_55
