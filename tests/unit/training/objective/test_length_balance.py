"""Pairs are weighted so that a judge that counts characters is right half of the time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from rewardserve.model.conversation import Sample
from rewardserve.training.dataset.feedback import Graded, Pair
from rewardserve.training.dataset.sequences import FeedbackTable, TokenSequence
from rewardserve.training.objective.length_balance import MAX_WEIGHT, balanced


def table(lengths, heads=(), weights=()):
    """Pairs of a chosen and a rejected response of so many tokens."""
    flat = [n for pair in lengths for n in pair]
    sequences = tuple(TokenSequence((i,) * n, n, Sample(text=str(i))) for i, n in enumerate(flat))
    pairs = tuple(
        Pair(
            id=str(i), source="source", group="group", head=heads[i] if heads else "score", chosen=Sample(text="a"),
            rejected=Sample(text="b"), chosen_text="a", rejected_text="b", weight=weights[i] if weights else 1.0,
        )
        for i in range(len(lengths))
    )  # fmt: skip
    return FeedbackTable.of_pairs(pairs, sequences, tuple(range(0, len(flat), 2)), tuple(range(1, len(flat), 2)), {})


def won_by_length(found, head="score"):
    """Share of the weight in pairs of different lengths in which the longer response won."""
    rows = [
        (p.weight, found.sequences[c].n_response - found.sequences[r].n_response)
        for p, c, r in zip(found.pairs, found.chosen, found.rejected, strict=True)
        if p.head == head
    ]
    longer, shorter = (sum(w for w, d in rows if d * side > 0) for side in (1, -1))
    return longer / (longer + shorter)


def biased(n, rng, share=0.8):
    """Pairs in which the longer response wins in this share, the more surely the larger the difference."""
    rows = []
    for _ in range(n):
        low = rng.randint(5, 60)
        high = low + rng.randint(1, 80)
        rows.append((high, low) if rng.random() < share else (low, high))
    return rows


@pytest.mark.parametrize("share", [0.8, 0.3])
def test_longer_and_shorter_responses_win_alike(share):
    found = balanced(table(biased(800, random.Random(0), share)))
    assert won_by_length(found) == pytest.approx(0.5, abs=1e-9)
    assert sum(p.weight for p in found.pairs) == pytest.approx(800)


def test_they_win_alike_at_every_difference():
    """Two kinds of pairs, each with its own bias, of which the sum has none."""
    lengths = [(20, 10)] * 30 + [(10, 20)] * 10 + [(100, 10)] * 10 + [(10, 100)] * 30
    weights = {(p[0], p[1]): pair.weight for p, pair in zip(lengths, balanced(table(lengths)).pairs, strict=True)}
    assert weights[20, 10] * 30 == pytest.approx(weights[10, 20] * 10)
    assert weights[100, 10] * 10 == pytest.approx(weights[10, 100] * 30)


def test_heads_are_balanced_each_and_given_weights_count():
    rng = random.Random(1)
    lengths = biased(300, rng, 0.7) + biased(300, rng, 0.3)
    heads = ["a"] * 300 + ["b"] * 300
    found = balanced(table(lengths, heads, [rng.choice((0.5, 3.0)) for _ in lengths]))
    assert won_by_length(found, "a") == pytest.approx(0.5, abs=1e-9)
    assert won_by_length(found, "b") == pytest.approx(0.5, abs=1e-9)


def test_a_few_pairs_do_not_decide_alone():
    lengths = [(20, 10)] * 400 + [(10, 20)]
    found = balanced(table(lengths)).pairs
    assert found[-1].weight / max(p.weight for p in found[:-1]) <= 2 * MAX_WEIGHT


def test_pairs_of_one_length_and_no_pairs_are_left_as_they_are():
    assert {p.weight for p in balanced(table([(10, 10)] * 5)).pairs} == {1.0}
    assert balanced(table([])).pairs == ()


def test_pairs_of_one_side_alone_weigh_half():
    """They teach length and nothing can balance them, but where a bin has no other side they are all there is."""
    weights = [p.weight for p in balanced(table([(10, 10)] * 5 + [(20, 10)] * 5)).pairs]
    assert weights[0] == pytest.approx(2 * weights[-1])


def test_other_feedback_beside_pairs_keeps_its_weight():
    pairs = table([(2, 1), (3, 1), (1, 2)])
    rating = Graded("r", "source", "group", "score", "ratings", (Sample(text="a"),), ("a",), (1.0,), weight=2.0)
    mixed = replace(pairs, items=(rating, *pairs.items), rows=((0,), *pairs.rows))
    found = balanced(mixed)
    assert found.items[0] == rating
    assert found.items[1:] == balanced(pairs).items
    assert balanced(replace(mixed, items=(rating,), rows=((0,),))).items == (rating,)
