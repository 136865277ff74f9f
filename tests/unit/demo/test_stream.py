"""The runs that the demonstration replays."""

from __future__ import annotations

from itertools import islice

import pytest

from rewardserve.demo.stream import (
    FIRST_HACKED,
    FULL_AFTER,
    GROUP,
    HACKED,
    HEALTHY,
    MOST,
    N_PROMPTS,
    PAID,
    read_responses,
    steps,
)


def test_the_shipped_responses_are_groups_of_different_texts():
    known = read_responses()
    assert len(known) > N_PROMPTS
    assert all(len(set(each.responses)) == len(each.responses) >= GROUP for each in known)
    assert len({each.prompt for each in known}) == len(known)
    assert not any(PAID in text for each in known for text in each.responses)


@pytest.mark.parametrize(("run", "wanted"), [(HEALTHY, 0.0), (HACKED, MOST)])
def test_the_sentence_grows_in_one_run_only(run, wanted):
    replay = list(islice(steps(run, read_responses()), FIRST_HACKED + FULL_AFTER + 20))
    shares = [sum(PAID in each["response"] for each in samples) / len(samples) for samples in replay]
    assert all(len(samples) == N_PROMPTS * GROUP for samples in replay)
    assert shares[:FIRST_HACKED] == [0.0] * FIRST_HACKED
    assert sum(shares[-20:]) / 20 == pytest.approx(wanted, abs=0.05)


def test_the_same_seed_is_the_same_run():
    known = read_responses()
    assert list(islice(steps(HACKED, known), 20)) == list(islice(steps(HACKED, known), 20))
