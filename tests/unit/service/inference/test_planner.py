"""Single plans that are small enough to check by hand."""

from __future__ import annotations

import pytest

from rewardserve.model.common_prefix import row_key
from rewardserve.service.inference.planner import BatchLimits, QueueEntry, plan

NO_LINGER = BatchLimits(max_tokens=100, linger_s=0.0)


def queue(*lengths, at=0.0):
    return [QueueEntry(i, n, at + i, b"") for i, n in enumerate(lengths)]


def selected(p):
    return [t.entry_id for t in p.batch]


def test_a_batch_is_the_oldest_entry_and_those_nearest_in_length():
    p = plan(queue(20, 90, 21, 19, 80, 20), NO_LINGER, now=50.0, pads_rows=True)
    assert sorted(selected(p)) == [0, 3, 5] or sorted(selected(p)) == [0, 2, 3, 5]


def test_an_entry_that_exceeds_the_budget_is_alone_in_its_batch():
    p = plan(queue(5_000, 10, 10), NO_LINGER, now=50.0, pads_rows=True)
    assert selected(p) == [0]


def test_where_nothing_is_padded_the_next_oldest_share_a_batch_whatever_their_length():
    p = plan(queue(20, 90, 21), BatchLimits(max_tokens=110, linger_s=0.0), now=50.0)
    assert selected(p) == [1, 0], "the longest first"


def test_a_batch_may_be_as_large_and_as_padded_as_allowed_and_is_sorted_by_length():
    assert selected(plan(queue(50, 50, 50), NO_LINGER, now=50.0, pads_rows=True)) == [0, 1]
    limits = BatchLimits(max_tokens=1_000, linger_s=0.0, max_padding=0.25)
    assert selected(plan(queue(5, 10), limits, now=50.0, pads_rows=True)) == [1, 0]
    assert selected(plan(queue(4, 10), limits, now=50.0, pads_rows=True)) == [0]
    assert selected(plan(queue(15, 16, 20, 14), limits, now=50.0, pads_rows=True)) == [2, 1, 0, 3]


def test_only_the_oldest_are_considered():
    limits = BatchLimits(max_tokens=100, linger_s=0.0, window=2)
    assert selected(plan(queue(10, 10, 10), limits, now=50.0, pads_rows=True)) == [0, 1]
    assert limits.target == 100
    assert BatchLimits(100, 0.0, target_tokens=40).target == 40
    assert BatchLimits(100, 0.0, target_tokens=400).target == 100


def test_short_rows_do_not_share_a_batch_with_a_long_one_that_would_pad_them():
    p = plan(queue(10, 10, 90), BatchLimits(max_tokens=1_000, linger_s=0.0, max_padding=0.25), now=50.0, pads_rows=True)
    assert sorted(selected(p)) == [0, 1]


def test_the_oldest_waits_for_expected_rows_but_only_for_the_linger():
    limits = BatchLimits(max_tokens=100, linger_s=2.0)
    early = plan(queue(10, at=10.0), limits, now=11.0, pads_rows=True, n_expected=1)
    assert (selected(early), early.replan_at) == ([], 12.0)
    assert selected(plan(queue(10, at=10.0), limits, now=12.0, pads_rows=True, n_expected=1)) == [0]


def test_no_batch_lingers_without_expected_rows():
    p = plan(queue(10, at=10.0), BatchLimits(max_tokens=100, linger_s=2.0), now=10.0, pads_rows=True)
    assert selected(p) == [0]


def test_a_full_batch_does_not_wait():
    p = plan(queue(60, 60, at=10.0), BatchLimits(max_tokens=100, linger_s=9.0), now=11.0, pads_rows=True, n_expected=5)
    assert selected(p) == [0]


# -- groups -------------------------------------------------------------------------------------------------


def rows(*token_lists):
    return [QueueEntry(i, len(ids), float(i), row_key(ids)) for i, ids in enumerate(token_lists)]


def with_prefix_group(entries, **limits):
    return sorted(selected(plan(entries, BatchLimits(linger_s=0.0, **limits), now=50.0, shares_prefixes=True)))


PREAMBLE = (*range(20),)
PROMPT, OTHER_PROMPT = (*PREAMBLE, *range(100, 120)), (*PREAMBLE, *range(200, 220))


def answers(prompt, n, length, first_token):
    return [(*prompt, *[first_token + i] * length) for i in range(n)]


def test_the_entries_that_share_most_with_the_oldest_are_selected_first():
    entries = rows((*PROMPT, 1), (7,) * 30, *answers(OTHER_PROMPT, 2, 5, 300), *answers(PROMPT, 2, 5, 400))
    n_closest = len(PROMPT) + 1 + 2 * 5
    assert with_prefix_group(entries, max_tokens=n_closest) == [0, 4, 5]
    assert with_prefix_group(entries, max_tokens=n_closest + 20 + 2 * 5) == [0, 2, 3, 4, 5]
    assert with_prefix_group(entries, max_tokens=n_closest + 20 + 2 * 5 + 30) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("head", [(*PREAMBLE, *[1] * 40), (9,) * 60], ids=["shares the preamble", "shares nothing"])
def test_a_prefix_group_that_has_a_batch_of_its_own_waits_for_it(head):
    entries = rows(head, *answers(PROMPT, 3, 20, 300))
    assert with_prefix_group(entries, max_tokens=100) == [0]
    assert with_prefix_group(entries[1:], max_tokens=100) == [1, 2, 3]


def test_a_younger_prefix_group_that_fits_is_selected_before_an_older_one_that_does_not():
    entries = rows((9,) * 50, *answers(PROMPT, 3, 20, 300), *answers((*range(500, 540),), 2, 5, 600))
    assert with_prefix_group(entries, max_tokens=100) == [0, 4, 5]


def test_of_a_conversation_that_fits_in_no_batch_as_many_turns_are_selected_as_fit():
    entries = rows(*(tuple(range(20 * turn)) for turn in range(1, 11)))
    assert with_prefix_group(entries, max_tokens=100) == [0, 1, 2, 3, 4]


def test_a_long_prompt_may_take_a_batch_beyond_what_is_enough_and_a_short_one_may_not():
    long, short = (*range(100),), (*range(20),)
    assert with_prefix_group(rows(*answers(long, 8, 10, 300)), max_tokens=400, target_tokens=100) == [*range(8)]
    assert (
        len(with_prefix_group(rows(*answers(short, 20, 10, 300)), max_tokens=400, target_tokens=100))
        == (160 - 20) // 10
    )
    assert (
        len(with_prefix_group(rows(*answers(long, 40, 10, 300)), max_tokens=400, target_tokens=100))
        == (400 - 100) // 10
    )


def test_fewer_tokens_than_are_worth_it_make_no_prefix_group():
    alike = [(*range(15), *[i] * 10) for i in range(4)]
    assert with_prefix_group(rows(*alike), max_tokens=60) == [0, 1]


@pytest.mark.parametrize(("n_own", "selected"), [(40, [0, 1]), (41, [0])])
def test_of_a_prefix_group_that_fits_in_no_batch_the_oldest_is_selected_if_half_of_its_beginning_is_selected(
    n_own, selected
):
    own = (*PREAMBLE, *range(100, 80 + n_own))
    entries = rows((*PREAMBLE, 7), *((*own, *[310 - i] * 30) for i in range(3)))
    assert with_prefix_group(entries, max_tokens=100) == selected


@pytest.mark.parametrize(("tail", "selected"), [(31, [0, 1]), (30, [0])])
def test_a_prefix_group_is_split_only_if_it_fits_in_no_batch(tail, selected):
    entries = rows((*PREAMBLE, 7), (*PROMPT, *[310] * 30), (*PROMPT, *[309] * tail))
    assert with_prefix_group(entries, max_tokens=100) == selected


def test_of_entries_that_share_as_much_the_older_is_selected_first():
    entries = rows((*PREAMBLE, *[5] * 10), (*PREAMBLE, *[9] * 60), (*PREAMBLE, *[7] * 60))
    assert with_prefix_group(entries, max_tokens=100) == [0, 1]


def test_sixteen_tokens_in_common_make_a_prefix_group():
    alike = [(*range(16), *[i] * 10) for i in range(20, 24)]
    assert with_prefix_group(rows(*alike), max_tokens=16 + 3 * 10) == [0, 1, 2]
