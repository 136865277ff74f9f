"""Which pairs are mined: by standardised gap, in turns over features and prompts, the same in each run."""

from __future__ import annotations

import numpy as np
import pytest

from rewardserve.mine.selection import Candidate, Gaps, controls, find_candidates, spread, standardise

NAN = float("nan")


def candidates_of(gaps, prompts, *, chars=None, texts=None, min_gap=1.0, per_prompt=1):
    n = len(prompts)
    return find_candidates(
        gaps, np.array(prompts), np.array(chars or [10] * n), texts or [f"text {i}" for i in range(n)],
        min_gap=min_gap, per_prompt=per_prompt,
    )  # fmt: skip


def gaps_of(model, judge):
    return Gaps(np.array(model, dtype=float), np.array(judge, dtype=float))


def test_scores_are_standardised_within_prompts_and_not_over_them():
    prompts = np.array([0, 0, 0, 1, 1, 1])
    model, judge = np.array([1.0, 2, 3, 101, 102, 103]), np.array([-50.0, -40, -30, 900, 910, 920])
    found = standardise(model, judge, prompts)
    assert found.gap_N == pytest.approx(np.zeros(6)), "the judge says the same in another unit"
    assert found.model_N[:3] == pytest.approx(found.model_N[3:])
    assert (found.model_N**2).sum() == pytest.approx(4), "two degrees of freedom a prompt"


def test_a_response_without_both_scores_or_without_a_second_one_has_no_gap():
    found = standardise(
        np.array([1.0, 2, NAN, 5, 5, 7]), np.array([1.0, 2, 3, 4, 8, NAN]), np.array([0, 0, 0, 1, 2, 2])
    )
    assert np.isfinite(found.gap_N).tolist() == [True, True, False, False, False, False]


def test_scores_that_do_not_vary_have_no_gap_and_no_pair():
    gaps = standardise(np.ones(4), np.array([1.0, 2, 3, 4]), np.array([0, 0, 1, 1]))
    assert gaps.model_N.tolist() == [0, 0, 0, 0]
    assert candidates_of(gaps, [0, 0, 1, 1]) == []


def test_the_partner_is_paid_less_and_judged_no_worse_and_both_agree_on_it():
    gaps = gaps_of([2.0, 0.0, -1.0, 1.9], [-1.0, 0.2, 2.0, 1.8])
    (pair,) = candidates_of(gaps, [0, 0, 0, 0])
    assert (pair.high, pair.other) == (0, 1), "on 1 both agree, 2 is what only the judge pays, 3 is overpaid too"
    assert pair.gap == pytest.approx(3.2)


def test_of_partners_alike_the_one_of_about_the_same_length_is_taken():
    gaps = gaps_of([2.0, 0.0, 0.0], [-1.0, 0.1, 0.1])
    (pair,) = candidates_of(gaps, [0, 0, 0], chars=[100, 1000, 110])
    assert pair.other == 2


def test_an_equal_text_and_another_prompt_are_no_partners():
    gaps = gaps_of([2.0, 0.0, 0.0], [-1.0, 0.5, 0.5])
    assert candidates_of(gaps, [0, 0, 1], texts=["same", "same", "other"]) == []


@pytest.mark.parametrize(("min_gap", "n"), [(2.9, 1), (3.1, 0)])
def test_the_least_gap_is_that_of_the_pair(min_gap, n):
    assert len(candidates_of(gaps_of([2.0, 0.0], [-1.0, 0.0]), [0, 0], min_gap=min_gap)) == n


def test_a_response_is_in_one_pair():
    gaps = gaps_of([3.0, 2.5, 0.0, 0.1], [-1.0, -1.0, 0.3, 0.4])
    pairs = candidates_of(gaps, [0] * 4, per_prompt=4)
    numbers = [number for pair in pairs for number in (pair.high, pair.other)]
    assert sorted(numbers) == [0, 1, 2, 3]


def test_one_exploit_of_many_copies_leaves_room_for_the_others():
    copies = [Candidate(2 * i, 2 * i + 1, i, 5.0) for i in range(500)]
    rare = [Candidate(2000 + 2 * i, 2001 + 2 * i, 1000 + i, 1.5) for i in range(5)]
    chosen = spread([*copies, *rare], ["loud"] * 500 + ["rare"] * 5, 20)
    assert len(chosen) == 20
    assert sum(each in rare for each in chosen) == 5


def test_a_prompt_has_no_second_pair_before_all_prompts_have_one():
    found = [Candidate(10 * p + 2 * k, 10 * p + 2 * k + 1, p, 9.0 - p - 0.1 * k) for p in range(4) for k in range(3)]
    chosen = spread(found, ["x"] * 6 + ["y"] * 6, 6)
    assert sorted(each.prompt for each in chosen[:4]) == [0, 1, 2, 3]
    assert len(chosen) == 6


def test_controls_are_of_unused_responses_and_do_not_depend_on_scores():
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(20), 4)
    texts = [f"text {i}" for i in range(80)]
    first = controls(standardise(rng.normal(size=80), rng.normal(size=80), prompts), prompts, texts, [], 10)
    second = controls(standardise(rng.normal(size=80), rng.normal(size=80), prompts), prompts, texts, [], 10)
    assert {frozenset((c.high, c.other)) for c in first} == {frozenset((c.high, c.other)) for c in second}
    used = [Candidate(4 * p, 4 * p + 1, p, 2.0) for p in range(10)]
    left = controls(standardise(rng.normal(size=80), rng.normal(size=80), prompts), prompts, texts, used, 12)
    assert {c.prompt for c in left[:10]} == set(range(10, 20)), "prompts without a pair come first"
    assert not {c.high for c in left} & {n for u in used for n in (u.high, u.other)}
    assert all(c.kind == "control" for c in left)
