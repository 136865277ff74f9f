"""Behind a real nginx that keeps its connections and passes upgrades on: a response always belongs to its own client."""

from __future__ import annotations

import json
import os

import pytest

from tests.security.test_http_framing import AMBIGUOUS, BODY, CHUNKED, OF_THE_CONNECTION, TRAILERS, UPGRADES
from tests.support.nginx import Nginx, why_none
from tests.support.raw_http import chunked, exchange, received_from, request
from tests.support.service_server import Server

pytestmark = [
    pytest.mark.skipif("TEST_FAULTS" not in os.environ, reason="`make test-faults` has it"),
    pytest.mark.skipif(bool(why_none()), reason=why_none()),
]
NEXT = request("POST", "/score", BODY, b"x-request-id: next")
"""A request that a client may well send behind another one."""

HIDDEN = request(
    "POST", "/score", json.dumps({"samples": [{"id": "hidden", "text": "x"}]}).encode(), b"x-request-id: hidden"
)


@pytest.fixture(scope="module", params=["on", "off"])
def proxy(request, tmp_path_factory):
    with Server("--backend=echo") as server:
        with Nginx(tmp_path_factory.mktemp("nginx"), server.url, buffering=request.param) as nginx:
            yield nginx
        server.signal()
        assert server.ended() == 0
        assert "hidden" not in server.log, "what was hidden in a body was answered as a request"


def victim(proxy, i):
    """What an honest client is told by the same connection to the server."""
    name = f"victim-{i}"
    body = json.dumps({"samples": [{"id": name, "text": "x"}]}).encode()
    replies = exchange(
        proxy.url, request("POST", "/score", body, b"connection: close", b"x-request-id: " + name.encode())
    )
    (reply,) = replies
    assert reply.status == 200, reply
    assert reply.header("x-request-id") == name
    assert json.loads(reply.body)["results"][0]["id"] == name


NUMBERED = list(enumerate(UPGRADES))
ATTACKS = {
    **{f"an upgrade, {i}": request("POST", "/score", HIDDEN, *each) for i, each in NUMBERED},
    # A server that drops what it has of the body, and takes what comes later for requests, skips empty lines before one.
    **{
        f"a long upgrade, {i}": request("POST", "/score", b"\r\n" * 200_000 + HIDDEN * 3, *each) for i, each in NUMBERED
    },
    **{f"in chunks, {i}": request("POST", "/score", chunked(HIDDEN), *each, framing=CHUNKED) for i, each in NUMBERED},
    **{f"an upgrade and a half, {i}": request("POST", "/score", BODY, *each) + NEXT for i, each in NUMBERED},
    **{f"a get with a body, {i}": request("GET", "/livez", HIDDEN, *each) for i, each in NUMBERED},
    **{
        f"trailer {i}": request("POST", "/score", chunked(BODY, each + b"\r\n"), framing=CHUNKED)
        for i, each in enumerate([TRAILERS[:-2], *OF_THE_CONNECTION])
    },
    **{name: head + NEXT for name, head in AMBIGUOUS.items()},
    "two requests": request("POST", "/score", BODY) + NEXT,
    "a body that a route does not read": request("POST", "/nothing", HIDDEN),
    "a body of a method without one": request("DELETE", "/score", HIDDEN),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_second_response_belongs_to_another_client(proxy, name):
    for i in range(3):
        received_from(proxy.url, ATTACKS[name], request("GET", "/livez", b"", b"connection: close"))
        victim(proxy, i)
