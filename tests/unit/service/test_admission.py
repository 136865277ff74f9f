"""Seats: all of a request or none, and given back whatever happens."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.service.admission import Admission
from rewardserve.service.errors import Overloaded, RequestTooLarge, ShuttingDown
from tests.support.service_fakes import StillClock


def new_admission(max_samples=10, max_tokens=100, clock=None):
    return Admission(max_samples, max_tokens, clock or StillClock())


def taken(admission):
    return admission.n_samples, admission.n_tokens


def test_seats_are_held_while_inside_and_given_back_after():
    admission = new_admission()
    with admission.acquire(3, 30):
        assert taken(admission) == (3, 30)
        assert not admission.idle.is_set()
    assert taken(admission) == (0, 0)
    assert admission.idle.is_set()


@pytest.mark.parametrize("size", [(8, 1), (1, 80)])
def test_a_request_that_does_not_fit_beside_the_others_is_refused_as_a_whole(size):
    admission = new_admission()
    with admission.acquire(3, 30):
        with pytest.raises(Overloaded) as refused, admission.acquire(*size):
            pass
        assert taken(admission) == (3, 30)
    assert refused.value.details["samples_in_flight"] == 3


@pytest.mark.parametrize("size", [(11, 1), (1, 101)])
def test_a_request_that_could_never_fit_is_refused_for_that_also_under_overload(size):
    admission = new_admission()
    with admission.acquire(10, 100), pytest.raises(RequestTooLarge) as refused, admission.acquire(*size):
        pass
    assert refused.value.retry_after_s is None


def test_an_exception_releases_the_permit():
    admission = new_admission()
    with pytest.raises(ZeroDivisionError), admission.acquire(3, 30):
        _ = 1 / 0
    assert taken(admission) == (0, 0)


async def test_a_cancelled_request_releases_its_permit():
    admission = new_admission()

    async def stay():
        with admission.acquire(3, 30):
            await asyncio.Event().wait()

    guest = asyncio.create_task(stay())
    await asyncio.sleep(0)
    assert taken(admission) == (3, 30)
    guest.cancel()
    await asyncio.gather(guest, return_exceptions=True)
    assert taken(admission) == (0, 0)


def test_after_close_admitted_requests_finish_and_no_other_is_admitted():
    admission = new_admission()
    with admission.acquire(1, 1):
        admission.close()
        with pytest.raises(ShuttingDown), admission.acquire(1, 1):
            pass
        assert not admission.idle.is_set()
    assert admission.idle.is_set()


def test_retry_after_follows_the_time_of_requests():
    clock = StillClock()
    admission = new_admission(clock=clock)
    for _ in range(100):
        with admission.acquire(1, 1):
            clock.advance(7.0)
    with admission.acquire(10, 10), pytest.raises(Overloaded) as refused, admission.acquire(1, 1):
        pass
    assert refused.value.retry_after_s == 7.0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12), st.integers(1, 120)), max_size=40))
def test_admission_never_exceeds_its_limits(steps):
    admission, inside = new_admission(), []
    for leaves, n_samples, n_tokens in steps:
        if leaves and inside:
            permit, *_ = inside.pop(0)
            permit.__exit__(None, None, None)
        permit = admission.acquire(n_samples, n_tokens)
        fits = admission.n_samples + n_samples <= 10 and admission.n_tokens + n_tokens <= 100
        if fits:
            permit.__enter__()
            inside.append((permit, n_samples, n_tokens))
        else:
            with pytest.raises((Overloaded, RequestTooLarge)):
                permit.__enter__()
        assert taken(admission) == (sum(n for _, n, _ in inside), sum(n for *_, n in inside))
        assert admission.n_samples <= 10
        assert admission.n_tokens <= 100
