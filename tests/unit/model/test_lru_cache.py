"""The cache is bounded by the size of its values, and evicts the least recently used first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from rewardserve.model.tokenization.lru_cache import LruCache

SIZE = 10


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12) | st.none())))
def test_a_memo_is_a_dictionary_of_what_was_used_last_within_its_size(steps):
    memo, order, sizes = LruCache(SIZE), [], {}
    for key, size in steps:
        if size is None:
            assert memo.get(key) == (("value", key, sizes[key]) if key in order else None)
            if key in order:
                order.append(order.pop(order.index(key)))
        elif size <= SIZE:
            memo.put(key, ("value", key, size), size)
            order = [k for k in order if k != key] + [key]
            sizes[key] = size
            while sum(sizes[k] for k in order) > SIZE:
                order.pop(0)
        else:
            memo.put(key, "never kept", size)
    assert [key for key in range(6) if memo.get(key) is not None] == sorted(order)


def test_many_threads_leave_its_count_right():
    memo = LruCache(50)

    def use(i):
        memo.put(i % 37, i, i % 7)
        memo.get(i % 11)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(5000)))
    kept = [(memo.get(key), key) for key in range(37)]
    assert sum(value % 7 for value, _ in kept if value is not None) == memo._size <= 50
    assert all(value % 37 == key for value, key in kept if value is not None)
