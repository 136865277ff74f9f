"""The tree of common beginnings: every row is in it, no token more than once where that pays."""

from __future__ import annotations

from itertools import takewhile

from hypothesis import given
from hypothesis import strategies as st

from rewardserve.model.backends.packed.layout import KeyRange, PrefixedTree, lay_out
from rewardserve.model.backends.packed.tree import Row, build_prefix_tree, without_sharing
from rewardserve.model.common_prefix import common_prefix_length, row_key

IDS = st.integers(0, 3)
ROW = st.lists(IDS, min_size=1, max_size=40).map(tuple)


@st.composite
def families(draw) -> list[Row]:
    """Rows that often begin alike, are beginnings of one another, or are equal."""
    rows: list[Row] = draw(st.lists(ROW, min_size=1, max_size=4))
    for _ in range(draw(st.integers(0, 8))):
        row = draw(st.sampled_from(rows))
        rows.append((row[: draw(st.integers(0, len(row)))] + draw(st.lists(IDS, max_size=40).map(tuple))) or (1,))
    return rows


def row_at(tree, i: int) -> Row:
    """Up the tree from the segment that a row ends with."""
    ids: Row = ()
    at: int | None = i
    while at is not None:
        segment = tree.segments[at]
        ids, at = segment.ids + ids, segment.parent
    return ids


@given(families())
def test_every_row_is_read_off_the_tree_as_it_was(rows):
    for tree in (build_prefix_tree(rows), without_sharing(rows)):
        assert [row_at(tree, end) for end in tree.ends] == rows


@given(families())
def test_segments_are_in_pre_order_and_what_follows_from_one_lies_right_behind_it(rows):
    segments = build_prefix_tree(rows).segments
    for i, segment in enumerate(segments):
        assert segment.ids
        below = [j for j in range(len(segments)) if i in ancestors(segments, j)]
        assert below == list(range(i + 1, segment.after))
        assert segment.start == (segments[segment.parent].end if segment.parent is not None else 0)


def ancestors(segments, i):
    out = []
    while segments[i].parent is not None:
        i = segments[i].parent
        out.append(i)
    return out


@given(families())
def test_no_more_is_computed_than_without_sharing_and_equal_rows_are_one(rows):
    assert build_prefix_tree(rows).n_tokens <= sum(map(len, set(rows)))
    assert build_prefix_tree(rows + rows).n_tokens == build_prefix_tree(rows).n_tokens


@given(st.integers(16, 400), st.integers(2, 8))
def test_a_prompt_is_computed_once_for_all_its_responses(n_prompt, n_responses):
    prompt = tuple(range(n_prompt))
    rows = [(*prompt, 1000 + i, *range(20)) for i in range(n_responses)]
    assert build_prefix_tree(rows).n_tokens == n_prompt + 21 * n_responses


def test_a_beginning_that_saves_next_to_nothing_is_computed_for_each():
    rows = [(1, 2, *range(10 * i, 10 * i + 200)) for i in range(1, 4)]
    assert build_prefix_tree(rows).n_tokens == sum(map(len, rows))


@given(ROW, ROW)
def test_two_keys_have_as_many_ids_in_common_as_their_rows(a, b):
    assert common_prefix_length(row_key(a), row_key(b)) == len(
        list(takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    )


@given(families())
def test_a_token_of_the_packed_row_sees_its_own_row_up_to_itself_and_nothing_else(rows):
    layout = lay_out([PrefixedTree(build_prefix_tree(rows))])
    seen: list[list[int]] = [[] for _ in layout.ids]
    for self_span in layout.every.self_spans:
        (a, b), (c, d) = self_span.queries, self_span.keys
        assert (a, b) == (c, d)
        for q in range(a, b):
            seen[q] += range(a, q + 1)
    for prefix_span in layout.every.prefix_spans:
        for q in range(*prefix_span.queries):
            seen[q] += range(prefix_span.keys.first, prefix_span.keys.last)
    for q, keys in enumerate(seen):
        assert len(keys) == layout.positions[q] + 1, "each position once"
        assert {layout.positions[k] for k in keys} == set(range(layout.positions[q] + 1))
    for row, at in zip(rows, layout.rows, strict=True):
        keys = sorted(seen[layout.scored[at]], key=lambda k: layout.positions[k])
        assert tuple(layout.ids[k] for k in keys) == row


@given(families(), st.integers(1, 20))
def test_in_the_last_layer_the_scored_tokens_see_what_they_always_see(rows, n_given):
    layout = lay_out(
        [PrefixedTree(build_prefix_tree(rows)), PrefixedTree(build_prefix_tree(rows), given=0, n_given=n_given)]
    )
    every, last = chains(layout.every), chains(layout.last)
    assert [every[q] for q in layout.scored] == last


def chains(plan) -> list[set[tuple[int | None, int]]]:
    """For each query the keys it sees, but those of its own segment behind it."""
    seen: list[set[tuple[int | None, int]]] = [set() for _ in range(plan.n_queries)]
    for self_span in plan.self_spans:
        for q in range(*self_span.queries):
            behind = self_span.queries[1] - 1 - q
            seen[q] |= {(None, k) for k in range(self_span.keys[0], self_span.keys[1] - behind)}
        assert self_span.n_keys == sum(keys.last - keys.first for keys in self_span.chain)
        assert self_span.chain[-1] == KeyRange(*self_span.keys)
    for prefix_span in plan.prefix_spans:
        for q in range(*prefix_span.queries):
            seen[q] |= {(prefix_span.keys.given, k) for k in range(prefix_span.keys.first, prefix_span.keys.last)}
    return seen
