"""A bug of ours is answered in the one shape of all errors, told of once, and never in words that a caller sent."""

from __future__ import annotations

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.routing import Route

from rewardserve.service.admission import Admission
from rewardserve.service.api import error_responses
from rewardserve.service.api.http.load_shedder import LoadShedder
from rewardserve.service.api.middleware.fast_router import FastRouter
from rewardserve.service.api.middleware.request_log import RequestLogMiddleware
from rewardserve.service.api.route_policy import RoutePolicy
from rewardserve.service.clock import MonotonicClock
from rewardserve.service.errors import Overloaded
from tests.support.service_fakes import HttpLog

SECRET = "xyzzy"
OPEN = LoadShedder(frozenset(), Admission(1, 1, MonotonicClock()), HttpLog())


@pytest.fixture
def seen():
    return []


@pytest.fixture
async def client(seen):
    """A server of two routes that are called straight, and one that is the framework's."""
    api, straight = FastAPI(), APIRouter()

    @straight.post("/score")
    async def score(request: Request):
        raise ValueError(SECRET)

    @straight.post("/full")
    async def full(request: Request):
        raise Overloaded("all seats are taken", retry_after_s=2.0)

    @api.get("/model")
    async def model():
        raise ValueError(SECRET)

    api.include_router(straight)
    error_responses.install_error_handlers(api, overload_status=429, methods={})
    access = RoutePolicy([*straight.routes, *(route for route in api.routes if isinstance(route, Route))])
    app = RequestLogMiddleware(
        FastRouter(api, routers=[straight], clock=MonotonicClock(), overload_status=429, load_shedder=OPEN),
        route_policy=access, clock=MonotonicClock(), events=HttpLog(seen),
    )  # fmt: skip
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
        yield http


@pytest.mark.parametrize(("method", "path"), [("POST", "/score"), ("GET", "/model")])
async def test_a_bug_is_a_500_in_our_shape_and_told_once(client, seen, method, path):
    reply = await client.request(method, path, headers={"x-request-id": "mine"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal")
    assert reply.headers["x-request-id"] == "mine"
    assert SECRET not in reply.text
    (one,) = seen
    assert (one.route, one.status, type(one.bug)) == (path, 500, ValueError)


async def test_a_refusal_is_no_bug_and_has_the_status_that_the_operator_wants(client, seen):
    reply = await client.post("/full")
    assert (reply.status_code, reply.headers["retry-after"], seen[0].bug) == (429, "2", None)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/score", 405), ("POST", "/nowhere", 404)])
async def test_what_is_not_called_straight_is_the_frameworks_to_refuse(client, method, path, status):
    reply = await client.request(method, path)
    assert (reply.status_code, set(reply.json())) == (status, {"error"})
