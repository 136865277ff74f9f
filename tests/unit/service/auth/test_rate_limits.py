"""The accounts of keys: what may be taken at once, what is refused with which numbers, and when to come again."""

from __future__ import annotations

import pytest

from rewardserve.service.auth.rate_limits import RateLimiter, RateLimits
from rewardserve.service.errors import RateLimited
from tests.support.service_fakes import StillClock


@pytest.mark.parametrize(
    ("limits", "what", "burst"),
    [
        (RateLimits(requests_per_s=0.5, burst_s=1.0), "requests", 1.0),
        (RateLimits(requests_per_s=5.0, burst_s=3.0), "requests", 15.0),
        (RateLimits(tokens_per_s=4.0), "tokens", 40.0),
    ],
)
def test_a_burst_is_as_many_seconds_worth_but_one_request_at_least(limits, what, burst):
    clock = StillClock()
    limiter = RateLimiter(limits, clock)
    limiter.take(what, int(burst))
    with pytest.raises(RateLimited) as refused:
        limiter.take(what, 1)
    per_s = limits.requests_per_s or limits.tokens_per_s
    assert str(refused.value) == f"the rate limit of this key is {per_s:g} {what} a second; try again later"
    assert refused.value.details == {"limit": what, "n": 1, "per_s": per_s, "burst": burst}
    wait_s = refused.value.retry_after_s
    assert 1 / per_s < wait_s < 1 / per_s + 1e-5
    clock.advance(wait_s)
    limiter.take(what, 1)


def test_what_has_no_limit_is_free():
    RateLimiter(RateLimits(requests_per_s=1.0), StillClock()).take("tokens", 10**9)
