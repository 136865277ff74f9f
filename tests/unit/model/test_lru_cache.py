"""The cache is bounded by the size of its values, and evicts the least recently used first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from hypothesis import example, given
from hypothesis import strategies as st

from rewardserve.model.tokenization.lru_cache import LruCache

SIZE = 10


@example([(0, 1), (0, 12)])  # the old value is outdated, and the new one too large
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12) | st.none())))
def test_the_cache_has_the_last_values_of_the_keys_used_last_within_its_size(steps):
    cache, order, sizes = LruCache(SIZE), [], {}
    for key, size in steps:
        if size is None:
            assert cache.get(key) == (("value", key, sizes[key]) if key in order else None)
            if key in order:
                order.append(order.pop(order.index(key)))
        elif size <= SIZE:
            cache.put(key, ("value", key, size), size)
            order = [k for k in order if k != key] + [key]
            sizes[key] = size
            while sum(sizes[k] for k in order) > SIZE:
                order.pop(0)
        else:
            cache.put(key, "never kept", size)
            order = [k for k in order if k != key]
    assert [key for key in range(6) if cache.get(key) is not None] == sorted(order)


def test_many_threads_leave_its_size_right():
    cache = LruCache(50)

    def use(i):
        cache.put(i % 37, i, i % 7)
        cache.get(i % 11)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(5000)))
    kept = [(cache.get(key), key) for key in range(37)]
    assert sum(value % 7 for value, _ in kept if value is not None) == cache._size <= 50
    assert all(value % 37 == key for value, key in kept if value is not None)
