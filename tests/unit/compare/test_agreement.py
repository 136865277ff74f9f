"""The figures of two models on the same responses, against counting by hand."""

from __future__ import annotations

import math
import random
from itertools import combinations

import numpy as np
import pytest

from rewardserve.compare.agreement import agreement, spearman
from rewardserve.training.evaluation.evaluate import interval

NAN = math.nan


def compared(a, b, prompts, pairs=(), **options):
    return agreement(np.array(a, dtype=float), np.array(b, dtype=float), np.array(prompts), list(pairs), **options)


def rank(values):
    """Ranks from 1, equal values share the mean of theirs: by comparing each with each."""
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


def correlation(x, y):
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return top / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def test_labelled_pairs_are_counted_as_a_hand_would():
    #    prompt 0: A right, B right; 1: A right, B wrong; 2: both wrong; 3: A ties, B right
    a = [2, 1, 5, 3, 0, 1, 4, 4]
    b = [9, 8, 1, 2, 0, 7, 3, 2]
    pairs = [(0, 1, 0), (2, 3, 1), (4, 5, 2), (6, 7, 3)]
    found = compared(a, b, [0, 0, 1, 1, 2, 2, 3, 3], pairs)
    assert (found.n_pairs, found.n_prompts, found.n_responses) == (4, 4, 8)
    got = found.accuracy
    assert got.a.value == (1 + 1 + 0 + 0.5) / 4
    assert got.b.value == (1 + 0 + 0 + 1) / 4
    assert got.difference.value == (0 - 1 + 0 + 0.5) / 4
    assert (got.n_both_right, got.n_only_a, got.n_only_b, got.n_neither) == (1, 1, 1, 1)
    assert found.disagreement.value == (0 + 1 + 0 + 0.5) / 4
    assert found.spearman == pytest.approx(correlation(rank(a), rank(b)), abs=1e-12)
    assert (found.spearman_within, found.n_ranked_prompts) == (None, 0), "two responses have no correlation"


def test_responses_without_labels_are_paired_within_their_prompt():
    rng = random.Random(1)
    prompts = [rng.randrange(6) for _ in range(40)]
    a, b = ([rng.randrange(5) for _ in prompts] for _ in range(2))
    found = compared(a, b, prompts)
    assert found.accuracy is None
    same = [(i, j) for i, j in combinations(range(40), 2) if prompts[i] == prompts[j]]

    def sign(x):
        return (x > 0) - (x < 0)

    differing = [abs(sign(a[i] - a[j]) - sign(b[i] - b[j])) / 2 for i, j in same]
    assert found.n_pairs == len(same)
    assert found.disagreement.value == pytest.approx(sum(differing) / len(same), abs=1e-12)
    of_prompt = [[i for i in range(40) if prompts[i] == p] for p in sorted(set(prompts))]
    within = [
        correlation(rank([a[i] for i in numbers]), rank([b[i] for i in numbers]))
        for numbers in of_prompt
        if len(numbers) >= 3
    ]
    assert found.n_ranked_prompts == len(within)
    assert found.spearman_within == pytest.approx(sum(within) / len(within), abs=1e-12)


def test_a_response_that_one_model_did_not_score_is_in_no_figure():
    a = [2, 1, NAN, 3, 0, 1]
    b = [2, 1, 5, 3, 0, NAN]
    found = compared(a, b, [0, 0, 1, 1, 2, 2], [(0, 1, 0), (2, 3, 1), (4, 5, 2)])
    assert (found.n_pairs, found.n_responses, found.accuracy.a.value) == (1, 4, 1.0)


def test_without_a_pair_that_both_scored_there_is_no_accuracy():
    found = compared([1, NAN], [1, 2], [0, 0], [(0, 1, 0)])
    assert (found.n_pairs, found.accuracy, found.disagreement, found.spearman) == (0, None, None, None)


def test_a_model_that_gives_all_the_same_score_has_no_rank_correlation():
    assert spearman(np.ones(4), np.arange(4.0)) is None
    found = compared([1, 1, 1], [1, 2, 3], [0, 0, 0])
    assert (found.spearman, found.spearman_within) == (None, None)
    assert found.disagreement.value == 0.5, "three pairs that A ties and B does not"


def test_one_model_against_itself_agrees():
    scores = [3.0, 1.0, 2.0, 5.0, 4.0, 6.0]
    found = compared(scores, scores, [0, 0, 0, 1, 1, 1])
    assert (found.disagreement.value, found.spearman, found.spearman_within) == (
        0.0,
        pytest.approx(1),
        pytest.approx(1),
    )


# -- intervals ------------------------------------------------------------------------------------------------------------


def test_the_interval_of_single_pairs_is_that_of_a_share():
    rng = random.Random(0)
    n = 2_000
    right = [rng.random() < 0.7 for _ in range(n)]
    a = [x for r in right for x in ((1, 0) if r else (0, 1))]
    pairs = [(2 * i, 2 * i + 1, i) for i in range(n)]
    found = compared(a, a, [i // 2 for i in range(2 * n)], pairs).accuracy.a
    p = sum(right) / n
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    assert (found.low, found.high) == (pytest.approx(p - half, abs=0.003), pytest.approx(p + half, abs=0.003))


def test_ten_pairs_of_one_prompt_that_are_alike_count_once():
    rng = random.Random(0)
    n = 200
    right = [rng.random() < 0.7 for _ in range(n)]
    a = [x for r in right for _ in range(10) for x in ((1, 0) if r else (0, 1))]
    pairs = [(2 * i, 2 * i + 1, i // 10) for i in range(10 * n)]
    found = compared(a, a, [i // 20 for i in range(20 * n)], pairs).accuracy.a
    p = sum(right) / n
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


@pytest.mark.parametrize("n", [1, 5, 100])
def test_an_accuracy_of_one_has_the_exact_bound_of_clopper_and_pearson(n):
    """The lowest rate at which n of n successes have a chance of 2.5 %."""
    low, high = interval(np.ones(n), np.ones(n, dtype=int), 0.0, 1.0, 100)
    assert high == 1.0
    assert low**n == pytest.approx(0.025)


def test_models_that_never_differ_have_a_difference_that_more_pairs_could_still_show():
    low, high = interval(np.zeros(50), np.ones(50, dtype=int), -1.0, 1.0, 100)
    assert (1 - high) ** 50 == pytest.approx(0.025)
    assert low == -high


def test_the_difference_is_taken_pair_by_pair():
    """Two models that err on the same pairs differ by less than their own intervals say."""
    rng = random.Random(3)
    n = 400
    right_a = [rng.random() < 0.6 for _ in range(n)]
    right_b = [not r if i % 40 == 0 else r for i, r in enumerate(right_a)]
    scores = [[x for r in right for x in ((1, 0) if r else (0, 1))] for right in (right_a, right_b)]
    found = compared(*scores, [i // 2 for i in range(2 * n)], [(2 * i, 2 * i + 1, i) for i in range(n)]).accuracy
    assert found.difference.high - found.difference.low < 0.5 * (found.a.high - found.a.low)
