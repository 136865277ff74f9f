"""`POST /score` and `POST /compare`: read, ask `scoring`, answer. No decision about scores is made here."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api import body, docs
from service.api.replies import compare_reply, json_response, score_reply
from service.api.schemas import (
    CompareReply,
    CompareRequest,
    ComparisonIn,
    SampleIn,
    ScoreReply,
    ScoreRequest,
    to_comparison,
    to_sample,
)
from service.api.stage import Bounds, Stage
from service.clock import Clock
from service.errors import CallerLeft, InvalidRequest, TooManySamples

T = TypeVar("T")

DEADLINE_HEADER = "x-deadline-ms"


def scoring_routes(stage: Stage, bounds: Bounds, clock: Clock) -> APIRouter:
    """The routes that score."""
    router = APIRouter(tags=["scoring"])

    @router.post("/score", response_model=ScoreReply, **docs.operation(ScoreRequest))
    async def score(request: Request) -> Response:
        """Score samples. A bad sample gets `null` and an error of its own; its neighbours are scored."""
        deadline = read_deadline(request, clock)
        served = stage.served()
        asked = await body.read(request, ScoreRequest)
        _bound(len(asked.samples), bounds, "samples")
        note(request, run=asked.run, step=asked.step, samples=len(asked.samples))
        work = served.scoring.score([to_sample(s) for s in asked.samples], deadline)
        results = await while_connected(request, work)
        return json_response(score_reply(served, _ids(asked.samples), results))

    @router.post("/compare", response_model=CompareReply, **docs.operation(CompareRequest))
    async def compare(request: Request) -> Response:
        """Rank responses to one prompt. The order in which they are listed has no effect."""
        deadline = read_deadline(request, clock)
        served = stage.served()
        asked = await body.read(request, CompareRequest)
        n_responses = sum(len(c.responses) for c in asked.comparisons)
        _bound(n_responses, bounds, "responses")
        note(request, run=asked.run, step=asked.step, samples=n_responses)
        work = served.scoring.compare([to_comparison(c) for c in asked.comparisons], asked.tie_margin, deadline)
        results = await while_connected(request, work)
        return json_response(compare_reply(served, _ids(asked.comparisons), results))

    return router


def read_deadline(request: Request, clock: Clock) -> float:
    """When the caller stops waiting, on our clock, from `x-deadline-ms`. Raise `InvalidRequest`."""
    text = request.headers.get(DEADLINE_HEADER)
    if text is None:
        return float("inf")
    # Eleven digits are three years: more is a mistake, and `int` of a very long text is slow.
    if not (text.isascii() and text.isdigit() and len(text) <= 11):
        raise InvalidRequest(f"{DEADLINE_HEADER} must be a whole number of milliseconds", field=DEADLINE_HEADER)
    return clock.now() + int(text) / 1000


def note(request: Request, **facts: Any) -> None:
    """Facts for the line that this request leaves in the access log."""
    request.state.facts = facts


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Raise `CallerLeft`, and do no work further, once the caller has hung up."""
    working = asyncio.ensure_future(work)
    hung_up = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait((working, hung_up), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise CallerLeft("the caller hung up before the answer was there")
        return working.result()
    finally:
        hung_up.cancel()
        working.cancel()
        await asyncio.gather(working, hung_up, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _bound(n: int, bounds: Bounds, what: str) -> None:
    limit = bounds.max_samples_per_request
    if n > limit:
        raise TooManySamples(f"{n} {what} in one request; the limit is {limit}: split it", n=n, limit=limit)


def _ids(asked: Sequence[SampleIn | ComparisonIn]) -> list[str]:
    return [str(i) if each.id is None else each.id for i, each in enumerate(asked)]
