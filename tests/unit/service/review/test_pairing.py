"""Which pairs are formed, against every pair of a small world."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rewardserve.service.review.pairing import Candidate, pairs_of


def candidate(number, prompt="p", evidence=None, flagged=False, score=0.0, audit=None):
    return Candidate(number, prompt, flagged, evidence or f"{number:016x}", score, audit)


candidates = st.lists(
    st.builds(
        candidate,
        st.integers(1, 40),
        st.sampled_from(["p", "q", "r"]),
        st.sampled_from([f"{n:016x}" for n in range(6)]),
        st.booleans(),
        st.sampled_from([-1.0, 0.0, 2.0]),
        st.sampled_from([None, -1.0, 0.5]),
    ),
    unique_by=lambda each: each.id,
)


@given(candidates, st.sampled_from(["random", "alert", "disagreement"]))
def test_a_pair_is_two_texts_of_one_prompt(known, sampling):
    by_id = {each.id: each for each in known}
    for earlier, later in pairs_of(known, sampling, {f"{1:016x}"}):
        one, two = by_id[earlier], by_id[later]
        assert earlier < later
        assert one.prompt_key == two.prompt_key
        assert one.evidence != two.evidence


@given(candidates)
def test_random_pairs_use_a_text_of_a_prompt_once_and_leave_at_most_one(known):
    by_id = {each.id: each for each in known}
    used = [(by_id[n].prompt_key, by_id[n].evidence) for pair in pairs_of(known, "random") for n in pair]
    assert len(used) == len(set(used))
    texts = {(each.prompt_key, each.evidence) for each in known}
    for prompt in {"p", "q", "r"}:
        n = sum(key == prompt for key, _ in texts)
        assert sum(key == prompt for key, _ in used) == n - n % 2


def test_random_pairs_stay_the_same_in_any_order_of_reading():
    known = [candidate(n, prompt=f"p{n % 3}") for n in range(1, 20)]
    assert pairs_of(known, "random") == pairs_of(known[::-1], "random")


def test_an_alert_pair_is_the_latest_pointed_at_and_the_earliest_that_is_not():
    known = [
        candidate(1, flagged=True),
        candidate(2),
        candidate(3),
        candidate(4, evidence="a" * 16),
        candidate(5, prompt="q", flagged=True),
    ]
    assert pairs_of(known, "alert", {"a" * 16}) == [(2, 4)]


def test_disagreements_come_largest_first_and_agreement_is_none():
    known = [
        candidate(1, "p", score=0.0, audit=1.0), candidate(2, "p", score=1.0, audit=0.0),
        candidate(3, "q", score=0.0, audit=3.0), candidate(4, "q", score=3.0, audit=0.0),
        candidate(5, "r", score=0.0, audit=0.0), candidate(6, "r", score=1.0, audit=1.0),
        candidate(7, "s", score=9.0), candidate(8, "s", score=0.0),
    ]  # fmt: skip
    assert pairs_of(known, "disagreement") == [(3, 4), (1, 2)]


def test_without_a_judge_there_is_no_disagreement():
    assert pairs_of([candidate(1, score=1.0), candidate(2)], "disagreement") == []
    assert pairs_of([candidate(1, score=1.0, audit=0.0), candidate(2, audit=0.0)], "disagreement") == []
