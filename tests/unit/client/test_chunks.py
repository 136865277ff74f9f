"""How a call is cut into requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rewardserve_client.chunks import chunks_of, halves
from rewardserve_client.routing import order_of
from rewardserve_client.samples import Item

URLS = ["http://a:1", "http://b:2", "http://c:3"]
groups = st.lists(st.sampled_from([b"p%d" % i for i in range(9)]), max_size=60)


def items_of(names, n_bytes=10):
    return [Item(i, str(i), b"x" * n_bytes, name) for i, name in enumerate(names)]


def cut(items, urls=URLS, up=None, max_weight=8, max_bytes=10_000):
    return chunks_of(items, urls, lambda url: up is None or url in up, max_weight=max_weight, max_bytes=max_bytes)


@given(names=groups, max_weight=st.integers(1, 12), max_bytes=st.integers(1, 200))
def test_every_item_is_in_exactly_one_chunk(names, max_weight, max_bytes):
    chunks = cut(items_of(names), max_weight=max_weight, max_bytes=max_bytes)
    assert sorted(item.position for chunk in chunks for item in chunk.items) == list(range(len(names)))
    assert all(chunk.items for chunk in chunks)


@given(names=groups, max_weight=st.integers(1, 12), max_bytes=st.integers(1, 200))
def test_no_chunk_is_larger_than_the_bounds_unless_one_item_alone_is(names, max_weight, max_bytes):
    for chunk in cut(items_of(names), max_weight=max_weight, max_bytes=max_bytes):
        n = len(chunk.items)
        assert n == 1 or (n <= max_weight and n * 11 <= max_bytes)


@given(names=groups)
def test_a_chunk_holds_prompts_of_one_home_only(names):
    for chunk in cut(items_of(names)):
        assert {order_of(item.group, URLS)[0] for item in chunk.items} == {chunk.order[0]}


@given(names=groups)
def test_a_group_that_fits_is_never_torn(names):
    chunks = cut(items_of(names), max_weight=60)
    for name in set(names):
        assert sum(any(item.group == name for item in chunk.items) for chunk in chunks) == 1


@given(names=groups.filter(bool), up=st.lists(st.sampled_from(URLS), min_size=1, unique=True))
def test_while_a_server_is_down_its_groups_are_planned_for_the_next_of_their_own(names, up):
    for chunk in cut(items_of(names), up=up):
        first_up = {next(url for url in order_of(item.group, URLS) if url in up) for item in chunk.items}
        assert first_up == {next(url for url in chunk.order if url in up)}


@given(names=st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=2, max_size=40))
def test_halves_are_both_there_and_cut_between_groups_where_there_is_such_a_place(names):
    items = items_of(sorted(names))
    first, second = halves(items)
    assert first
    assert second
    assert [*first, *second] == items
    assert first[-1].group != second[0].group or len(set(names)) == 1
