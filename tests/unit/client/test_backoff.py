"""Pauses between attempts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rewardserve_client.backoff import Backoff, parse_retry_after, pause_s

BACKOFF = Backoff(first_s=0.5, longest_s=8.0)
seconds = st.floats(0.001, 1000.0)


def longest(low, high):
    return high


def shortest(low, high):
    return low


def test_the_window_doubles_and_ends_at_its_cap():
    windows = [pause_s(n, None, 1000.0, BACKOFF, longest) for n in range(7)]
    assert windows == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_a_window_doubles_thirty_two_times_at_most():
    assert [pause_s(n, None, 1000.0, Backoff(2.0**-32, 8.0), longest) for n in (31, 32, 10_000)] == [0.5, 1.0, 1.0]


def test_full_jitter_begins_at_nothing():
    assert [pause_s(n, None, 1000.0, BACKOFF, shortest) for n in (0, 5, 10_000)] == [0.0, 0.0, 0.0]


@given(n=st.integers(0, 10_000), left=seconds, asked=st.none() | st.floats(0, 1000), jitter=st.floats(0, 1))
def test_a_pause_never_outlasts_the_deadline_and_never_ends_before_the_server_said(n, left, asked, jitter):
    pause = pause_s(n, asked, left, BACKOFF, lambda low, high: low + jitter * (high - low))
    if pause is None:
        assert asked is not None
        assert asked >= left
    else:
        assert (asked or 0.0) <= pause <= left * (1 + 1e-9)


def test_what_the_server_asks_for_gets_jitter_on_top():
    assert pause_s(1, 3.0, 100.0, BACKOFF, longest) == 4.0


def test_there_is_no_pause_after_the_deadline():
    assert pause_s(0, None, 0.0, BACKOFF, longest) is None
    assert pause_s(0, 5.0, 5.0, BACKOFF, longest) is None


def test_retry_after_is_seconds_or_nothing():
    read = [
        parse_retry_after(text)
        for text in ("3", "0", "1.5", None, "", "Wed, 21 Oct 2026 07:28:00 GMT", "-1", "nan", "inf")
    ]
    assert read == [3.0, 0.0, 1.5, None, None, None, None, None, None]
