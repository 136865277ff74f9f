"""Content, scope and size of the score cache."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.model.common_prefix import row_key
from rewardserve.service.inference.score_cache import ScoreCache

IDS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50)


def names(cache, *rows):
    return [cache.digest(row_key(row)) for row in rows]


@given(a=IDS, b=IDS)
def test_rows_have_one_name_exactly_if_they_are_equal(a, b):
    one, other = names(ScoreCache(1, version=1), a, b)
    assert (one == other) == (a == b)


@given(a=IDS, b=IDS)
def test_keys_begin_alike_where_rows_do(a, b):
    assert row_key(a + b).startswith(row_key(a))
    assert len(row_key(a)) * len(b) == len(row_key(b)) * len(a)


def test_another_version_has_other_names_for_the_same_rows():
    assert names(ScoreCache(1, version=1), (1, 2)) != names(ScoreCache(1, version=2), (1, 2))


def test_what_was_not_asked_for_longest_is_forgotten_first():
    cache = ScoreCache(2, version=1)
    cache.put(b"a", {"score": 1.0})
    cache.put(b"b", {"score": 2.0})
    assert cache.get(b"a") == {"score": 1.0}
    cache.put(b"c", {"score": 3.0})
    assert [cache.get(digest) for digest in (b"a", b"b", b"c")] == [{"score": 1.0}, None, {"score": 3.0}]
    assert len(cache) == 2


def test_what_is_put_again_is_new_again():
    cache = ScoreCache(2, version=1)
    for digest in (b"a", b"b", b"a", b"c"):
        cache.put(digest, {"score": 1.0})
    assert [cache.get(digest) is None for digest in (b"a", b"b", b"c")] == [False, True, False]


@pytest.mark.parametrize("n_rows", [0, 1, 100])
def test_it_never_holds_more_than_it_may(n_rows):
    cache = ScoreCache(n_rows, version=1)
    for i in range(500):
        cache.put(i.to_bytes(2, "big"), {"score": float(i)})
        assert len(cache) <= n_rows
