"""Trees of a few rows: their segments, and from which length a common prefix is worth a separate segment."""

from __future__ import annotations

import pytest

from rewardserve.model.backends.packed.tree import Segment, build_prefix_tree, without_sharing


def tail(first: int, n: int) -> tuple[int, ...]:
    return (1000 + first, *range(n - 1))


def test_rows_that_share_nothing_are_segments_of_their_own():
    rows = [(1, 2), (3,), (1, 2)]
    tree = without_sharing(rows)
    assert tree.segments == (Segment((1, 2), 0, None, 1), Segment((3,), 0, None, 2), Segment((1, 2), 0, None, 3))
    assert tree.ends == (0, 1, 2)
    assert tree.n_tokens == 5


def test_segments_are_in_pre_order_with_their_parents_and_what_lies_behind_them():
    prompt, turn = tuple(range(20)), tuple(range(100, 120))
    rows = [(*prompt, 500), (*prompt, *turn, 7), (9,), prompt, (*prompt, *turn, 8), (*prompt, 500)]
    tree = build_prefix_tree(rows)
    assert tree.segments == (
        Segment(prompt, 0, None, 5),
        Segment(turn, 20, 0, 4),
        Segment((7,), 40, 1, 3),
        Segment((8,), 40, 1, 4),
        Segment((500,), 20, 0, 5),
        Segment((9,), 0, None, 6),
    )
    assert tree.ends == (4, 2, 5, 0, 3, 4)
    assert tree.segments[1].end == 40
    assert [segment.after for segment in build_prefix_tree(rows[:2]).segments] == [3, 2, 3], "the last one has a parent"


@pytest.mark.parametrize(("n_shared", "is_shared"), [(11, False), (12, True)])
def test_a_beginning_is_worth_eight_tokens_and_a_thirty_second_of_what_follows(n_shared, is_shared):
    prompt = tuple(range(n_shared))
    two = [(*prompt, *tail(i, 64)) for i in range(2)]
    assert build_prefix_tree(two).n_tokens == (n_shared if is_shared else 2 * n_shared) + 2 * 64
    ends = [prompt, (*prompt, *tail(0, 128))]
    assert build_prefix_tree(ends).n_tokens == (n_shared if is_shared else 2 * n_shared) + 128
    # What follows counts to the ends of the rows: 16 tokens of one, 8 and twice 52 of two that share no more than 8.
    branch = (*prompt, *tail(1, 8))
    nested = [(*prompt, *tail(0, 16)), (*branch, *tail(2, 52)), (*branch, *tail(3, 52))]
    assert build_prefix_tree(nested).n_tokens == (n_shared + 2 * 8 if is_shared else 2 * n_shared + 8) + 16 + 2 * 52


def test_more_rows_make_a_shorter_beginning_worth_it():
    prompt = tuple(range(5))
    assert build_prefix_tree([(*prompt, 1000 + i) for i in range(2)]).n_tokens == 2 * 6
    assert build_prefix_tree([(*prompt, 1000 + i) for i in range(3)]).n_tokens == 5 + 3


def test_a_beginning_behind_a_shared_one_counts_from_where_that_ends():
    prompt = tuple(range(20))
    branch = (*prompt, *tail(0, 8))
    rows = [(*branch, 1), (*branch, 2), (*prompt, 3)]
    assert build_prefix_tree(rows).n_tokens == 20 + 2 * 9 + 1
