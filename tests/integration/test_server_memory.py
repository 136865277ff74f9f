"""A batch that does not fit: on the device it is halved; where the kernel kills the process, nobody is told a number."""

from __future__ import annotations

import signal

import httpx
import pytest

from rewardserve.model.backends.echo import echo_score
from tests.support.cgroups import MemoryLimit, why_none
from tests.support.service_server import drill


def texts(n, what="row"):
    return [{"text": f"{what} {i}"} for i in range(n)]


def expected(samples):
    return [echo_score((*sample["text"].encode(), 0)) for sample in samples]


def raws(response):
    return [result["raw"] for result in response.json()["results"]]


def test_a_batch_that_runs_out_of_device_memory_is_halved_and_every_row_is_scored():
    with drill("no-memory-above:4", "--batching.max-tokens=4096") as server:
        for what in ("first", "second"):
            samples = texts(64, what)
            assert raws(server.score(*samples)) == expected(samples)
        assert server.metric("rewardserve_batch_failures_total", reason="out_of_memory") > 0
        assert server.client.get("/readyz").status_code == 200


def test_a_row_that_does_not_fit_alone_gets_its_own_error_and_no_number():
    with drill("no-memory-above:0") as server:
        (result,) = server.score(*texts(1)).json()["results"]
        assert (result["reward"], result["error"]["code"]) == (None, "out_of_memory")


@pytest.mark.skipif(bool(why_none()), reason=why_none())
def test_a_server_that_the_kernel_kills_for_memory_sends_no_number_and_starts_again_under_the_same_limit():
    with MemoryLimit() as limit:
        with drill("eats-above:8") as server:
            limit.put(server.process.pid)
            few = texts(8)
            assert raws(server.score(*few)) == expected(few)
            limit.set(limit.used + (256 << 20))
            with pytest.raises(httpx.TransportError):
                server.score(*texts(64))
            assert server.ended() == -signal.SIGKILL
        with drill("eats-above:8") as again:
            limit.put(again.process.pid)
            assert raws(again.score(*few)) == expected(few)
