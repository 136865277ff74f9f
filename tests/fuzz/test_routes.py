"""Every method, path, spelling and scope over a socket: no spelling reaches a route with less scope than the route needs.

`make test` tries some methods and keys, `make test-fuzz` all of them, and paths that are put together at random.
"""

from __future__ import annotations

import json
import os
import random
from urllib.parse import quote

import pytest

from rewardserve.service.auth.api_keys import format_line
from rewardserve.service.auth.rate_limits import RateLimits
from tests.support.raw_http import Connection, request
from tests.support.service_server import Server

IS_LARGE = "FUZZ_BODIES" in os.environ
N_RANDOM = 50_000 if IS_LARGE else 500
METHODS = ["GET", "POST", "HEAD", "OPTIONS"] + ["PUT", "DELETE", "PATCH", "TRACE", "QUERY", "PROPFIND"] * IS_LARGE
SCOPES = ["score", "metrics", "admin", "score,metrics", "score,admin"]
BODY = json.dumps({"samples": [{"text": "x"}]}).encode()

ROUTES = {
    "/score": "score", "/compare": "score", "/get_reward": "score", "/model": "score", "/tripwires": "score", "/v1/models": "score",
    "/tripwires/run/details": "score", "/approvals": "score",
    "/openapi.json": "score", "/metrics": "metrics", "/admin/models": "admin", "/admin/pins": "admin",
    "/admin/models/rollback": "admin",
    "/tripwires/run/judge/ack": "admin", "/tripwires/a%2Fb/judge/ack": "admin",
    "/tripwires/run/attribution": "admin", "/tripwires/a%2Fb/attribution": "admin",
}  # fmt: skip
ENDS = ["%0a", "%0A", "%0d%0a", "%00", "%09", "%7f", "%85", "%c2%85", "%e2%80%a8", "%e2%80%a9", "%e2%80%8b", "%ff", "%ed%a0%80",
        "%250a", "%25250a", "%2500", "%", "%2", "%zz", "%20", "/", "//", "/.", "/..", "/%2e", "/%2e%2e", "%2f", "%2F", ";", ";x=y",
        ".json", "?", "?x", "??", "*", "\\", "%5c", "/livez", "/../livez", "/%2e%2e/livez"]  # fmt: skip
STARTS = [
    "/",
    "//",
    "/.",
    "/./",
    "/..",
    "/x/..",
    "/%2e",
    "/%2e/",
    "/livez/..",
    "/livez/",
    "/livez%2f..",
    "/%0a",
    "/%00",
    "/ ",
    "\\",
]
REFUSED = {400, 401, 403, 404, 405}


@pytest.fixture
def connection(world):
    with Connection(world[0].url) as opened:
        yield opened


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys"
    made = {scopes: make(path, scopes) for scopes in SCOPES}
    with Server("--backend=echo", f"--keys-file={path}", "--metrics-key-required=1", "--log-level=error") as server:
        yield server, made | {"": "no-key"}


def make(path, scopes):
    key = f"key-of-{scopes}-with-many-characters"
    with path.open("a") as file:
        file.write(format_line(scopes.replace(",", "-"), key, frozenset(scopes.split(",")), RateLimits()) + "\n")
    return key


def spellings(path):
    yield path
    yield from (path + end for end in ENDS)
    yield from (start + path for start in STARTS)
    yield from (path.upper(), path.title(), path.replace("/", "//"), path.replace("/", "/./"), path.replace("/", "%2f"))
    yield "/" + "".join(f"%{ord(letter):02x}" if letter != "/" else letter for letter in path[1:])
    yield quote(path[:-1]) + "%" + f"{ord(path[-1]):02X}"
    yield path.replace("e", "%65").replace("a", "%61")
    yield path.replace("run", "run%0a").replace("score", "sc%0aore")
    yield f"http://localhost{path}"


def is_reached(reply):
    """Whether a route answered."""
    return reply.status not in REFUSED or (
        reply.status == 404 and reply.body and reply.code in ("no_such_alert", "no_such_run")
    )


def sent(connection, method, target, key):
    body = BODY if method == "POST" else b""
    head = request(method, target, body, b"authorization: Bearer " + key.encode(), b"content-type: application/json")
    return connection.ask(head, is_head=method == "HEAD")


@pytest.mark.parametrize("path", ROUTES)
def test_no_spelling_of_a_path_reaches_it_with_a_key_that_may_not(world, connection, path):
    server, made = world
    for method in METHODS:
        for target in spellings(path):
            for scopes, key in made.items():
                reply = sent(connection, method, target, key)
                assert reply.status != 500, (method, target, reply.body)
                may = ROUTES[path] in scopes.split(",")
                assert may or not is_reached(reply), (method, target, scopes, reply)
    assert "request_bug" not in server.log


@pytest.mark.parametrize("path", ROUTES)
def test_a_path_as_it_is_and_percent_encoded_is_reached_with_a_key_that_may(world, connection, path):
    _, made = world
    method = (
        "GET"
        if path.endswith(("/attribution", "/details"))
        or path in ("/model", "/tripwires", "/v1/models", "/openapi.json", "/metrics", "/admin/models")
        else "POST"
    )
    encoded = (
        path
        if "%" in path
        else "/" + "".join(f"%{ord(letter):02x}" if letter != "/" else letter for letter in path[1:])
    )
    for scopes, key in made.items():
        may = ROUTES[path] in scopes.split(",")
        for target in (path, encoded, f"http://localhost{path}"):
            reply = sent(connection, method, target, key)
            assert is_reached(reply) == may, (target, scopes, reply)


def test_no_path_put_together_at_random_reaches_what_its_key_may_not(world, connection):
    server, made = world
    pieces = [
        "tripwires",
        "admin",
        "models",
        "ack",
        "judge_injection",
        "run",
        "livez",
        "metrics",
        "score",
        "..",
        ".",
        "",
        *ENDS,
        *STARTS,
    ]
    rng = random.Random(3)
    for _ in range(N_RANDOM):
        target = "/" + rng.choice(["", "/"]).join(rng.choice(pieces) for _ in range(rng.randint(1, 6)))
        for scopes in ("", "metrics", "score"):
            reply = sent(connection, rng.choice(METHODS[:2]), target, made[scopes])
            assert reply.status != 500, (target, reply.body)
            if is_reached(reply):
                assert scopes or target.partition("?")[0] == "/livez", (target, reply)
                assert b'"models"' not in reply.body, target
                assert reply.status != 404, target
    assert "request_bug" not in server.log
