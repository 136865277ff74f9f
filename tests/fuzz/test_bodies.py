"""Bodies made by hypothesis against the whole application in this process: never a 500, never a number that is none.

`make test` tries a few hundred, `make test-fuzz` a hundred thousand over all routes (`FUZZ_BODIES`).
"""

from __future__ import annotations

import asyncio
import json
import math
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.component_cost import open_echo_server
from rewardserve.service.api.dialects import DIALECTS
from tests.properties.test_dialects import bodies_of
from tests.properties.test_request_bodies import APPROVALS_REQUESTS, COMPARE_REQUESTS, REQUESTS, bodies

N_BODIES = int(os.environ.get("FUZZ_BODIES", "400"))
pytestmark = pytest.mark.timeout(7200)


ROUTES = {"/score": REQUESTS, "/compare": COMPARE_REQUESTS, "/approvals": APPROVALS_REQUESTS} | {
    dialect.path: bodies_of(dialect) for dialect in DIALECTS
}
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "x-deadline-ms": st.sampled_from(["0", "60000", "-1", "soon", "9" * 30]),
        "x-run": st.text(st.characters(max_codepoint=255), max_size=5),
        "x-step": st.sampled_from(["1", "-1", "x", "1e3"]),
        "idempotency-key": st.sampled_from(["a", "b", ""]),
        "content-type": st.sampled_from(["application/json", "application/json; charset=utf-8", "text/plain", ""]),
    },
)


@pytest.fixture(scope="module")
def ask():
    """One request to the whole application, without a socket: status and body."""
    with asyncio.Runner() as runner:
        application, runtime = runner.run(_opened())

        async def one(path, raw, headers):
            named = {"content-type": "application/json", "content-length": str(len(raw))} | headers
            scope = {
                "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
                "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": None,
                "server": ("here", 80), "state": {},
                "headers": [(name.encode(), value.encode("latin-1")) for name, value in named.items()],
            }  # fmt: skip
            sent, there = [], [{"type": "http.request", "body": raw, "more_body": False}]

            async def receive():
                if there:
                    return there.pop()
                return await asyncio.get_running_loop().create_future()  # nobody hangs up

            async def send(message):
                sent.append(message)

            await application.app(scope, receive, send)
            return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])

        yield lambda *what: runner.run(one(*what))
        runner.run(runtime.stop())


async def _opened():
    return open_echo_server()


def numbers_in(value):
    """Every number of a reply, wherever it stands."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for each in value for number in numbers_in(each)]
    return [value] if isinstance(value, float) else []


@pytest.mark.parametrize("path", sorted(ROUTES))
def test_no_body_is_a_bug_of_ours_and_no_answer_holds_what_is_no_number(ask, path):
    @settings(
        max_examples=max(1, N_BODIES // len(ROUTES)), deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(raw=bodies(ROUTES[path]) | st.binary(max_size=60), headers=HEADERS)
    def holds(raw, headers):
        status, reply = ask(path, raw, headers)
        known = {200, 400, 404, 408, 413, 415, 422, 503, 504} | ({424} if path == "/predict" else set())
        assert status in known, (status, reply)
        content = json.loads(reply, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        if status == 200:
            assert all(math.isfinite(number) for number in numbers_in(content))
        else:
            assert content["error"]

    holds()
