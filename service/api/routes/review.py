"""`/review/...`: read, export and delete captured samples. They are conversations, so a key needs the scope review.

A key that is bound to runs reads and deletes these alone, by their labels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response, StreamingResponse

from rewardserve.service.api import openapi
from rewardserve.service.api.query import read_query
from rewardserve.service.api.replies import info_response
from rewardserve.service.api.routes.review_access import (
    Review,
    allowed_run,
    may_see,
    number_of,
    permissions_of,
    store_errors,
    store_of,
)
from rewardserve.service.api.run_context import check_no_parameters
from rewardserve.service.api.schemas.review import (
    CapturedAlertOut,
    CapturedAlertsReply,
    CapturedRunOut,
    CapturedRunsReply,
    CapturedSampleOut,
    DeletedReply,
    RunQuery,
    SamplePageQuery,
    SamplesQuery,
    SamplesReply,
    TokenValueOut,
    TurnOut,
    ValuesReply,
)
from rewardserve.service.errors import NoSuchRun, NoSuchSample, RunNotAllowed
from rewardserve.service.models.active_models import ActiveModels
from rewardserve.service.review.records import (
    RunCounts,
    SampleFilter,
    SampleRecord,
    StoredAlert,
    StoredSample,
    to_line,
)
from rewardserve.service.review.samples import sample_of
from rewardserve.service.review.writer import Store
from rewardserve.service.token_values import finite_heads

_MAX_RUNS = 10_000
_MAX_ALERTS = 1_000
_WORDS = {
    **openapi.ADMIN,
    404: "`no_such_run` or `no_such_sample`",
    409: "`review_off`: the server has no review store",
    422: "`invalid_request`: a query parameter is unknown or out of range",
    503: "`review_unavailable`: the store cannot be read or written; `loading`",
}
_STATUSES = (404, 409, 422, 503)
_VALUES_WORDS = {**_WORDS, 422: "`no_values`: the response is too long, or cannot be scored"}


def review_routes(review: Review | None, active_models: ActiveModels) -> APIRouter:
    """Create the routes. `review` None: they refuse."""
    router = APIRouter(prefix="/review", tags=["review"])

    @router.get(
        "/runs",
        responses=openapi.replies(CapturedRunsReply, *_STATUSES, words=_WORDS),
        dependencies=[Depends(check_no_parameters)],
    )
    async def runs(request: Request) -> Response:
        """List the runs that have captured samples or alerts."""
        known = store_of(review)
        with store_errors():
            found = await asyncio.to_thread(known.store.runs, _MAX_RUNS)
        return info_response(
            CapturedRunsReply(known.capture, [_run(each) for each in found if may_see(request, each.run)])
        )

    @router.get("/samples", **openapi.query_operation(SamplePageQuery, SamplesReply, *_STATUSES, words=_WORDS))
    async def samples(request: Request) -> Response:
        """List captured samples, the latest first, a page at a time."""
        query = read_query(request, SamplePageQuery)
        store = store_of(review).store
        wanted = _filter(request, query)
        with store_errors():
            found = await asyncio.to_thread(store.samples, wanted, query.limit, query.before)
        last = found[-1].id if len(found) == query.limit else None
        return info_response(SamplesReply([_sample(each) for each in found], last))

    @router.get(
        "/samples/{sample}",
        responses=openapi.replies(CapturedSampleOut, *_STATUSES, words=_WORDS),
        dependencies=[Depends(check_no_parameters)],
    )
    async def sample(sample: str, request: Request) -> Response:
        """Show one captured sample."""
        number, found = await _find(request, store_of(review), sample)
        return info_response(_sample(StoredSample(number, found)))

    @router.get(
        "/samples/{sample}/values",
        responses=openapi.replies(ValuesReply, 404, 409, 413, 422, 429, 503, words=_VALUES_WORDS),
        dependencies=[Depends(check_no_parameters)],
    )
    async def values(sample: str, request: Request) -> Response:
        """Score one captured sample again, at each token of its response, with the model in service."""
        _, found = await _find(request, store_of(review), sample)
        computed = await active_models.current().token_scorer.values(sample_of(found))
        tokens = [TokenValueOut(each.text, finite_heads(each.heads)) for each in computed.tokens]
        return info_response(ValuesReply(computed.version, tokens))

    @router.delete(
        "/samples/{sample}",
        responses=openapi.replies(DeletedReply, *_STATUSES, words=_WORDS),
        dependencies=[Depends(check_no_parameters)],
    )
    async def delete_sample(sample: str, request: Request) -> Response:
        """Delete one captured sample, also from the files of the store."""
        known = store_of(review)
        number, _ = await _find(request, known, sample)
        with store_errors():
            is_deleted = await asyncio.to_thread(known.store.delete_sample, number)
        if not is_deleted:
            raise _no_such_sample()
        return info_response(DeletedReply(1, 0))

    @router.get("/alerts", **openapi.query_operation(RunQuery, CapturedAlertsReply, *_STATUSES, words=_WORDS))
    async def alerts(request: Request) -> Response:
        """List the captured alerts of a run, the latest first."""
        run = allowed_run(request, read_query(request, RunQuery).run)
        with store_errors():
            found = await asyncio.to_thread(store_of(review).store.alerts, run, _MAX_ALERTS)
        return info_response(CapturedAlertsReply([_alert(each) for each in found]))

    @router.delete("/runs", **openapi.query_operation(RunQuery, DeletedReply, *_STATUSES, words=_WORDS))
    async def delete_run(request: Request) -> Response:
        """Delete all captured samples and alerts of a run, also from the files of the store. Later ones are captured again."""
        run = allowed_run(request, read_query(request, RunQuery).run)
        with store_errors():
            deleted = await asyncio.to_thread(store_of(review).writer.delete_run, run)
        if deleted is None:
            raise NoSuchRun("the review store has no run with this label: see GET /review/runs")
        return info_response(DeletedReply(deleted.n_samples, deleted.n_alerts))

    @router.get(
        "/export",
        **openapi.query_operation(
            SamplesQuery,
            openapi.text_reply("application/x-ndjson", '{"run":"ppo-7","response":"..."}\n', *_STATUSES, words=_WORDS),
        ),
    )
    async def export(request: Request) -> Response:
        """Export captured samples as JSON Lines, the oldest first, as `rewardserve review import` reads them."""
        wanted = _filter(request, read_query(request, SamplesQuery))
        store = store_of(review).store
        with store_errors():
            await asyncio.to_thread(store.runs, 1)  # an error must come before the first line
        return StreamingResponse(_lines(store, wanted), media_type="application/x-ndjson")

    return router


async def _find(request: Request, review: Review, text: str) -> tuple[int, SampleRecord]:
    """The sample with this id, if the key may see it: another one is not told from none."""
    number = number_of(text)
    with store_errors():
        found = await asyncio.to_thread(review.store.sample, number) if number else None
    if found is None or not may_see(request, found.run):
        raise _no_such_sample()
    return number, found


def _no_such_sample() -> NoSuchSample:
    return NoSuchSample("the review store has no sample with this id: it is deleted, or expired")


def _filter(request: Request, query: SamplesQuery) -> SampleFilter:
    if query.run is not None:
        allowed_run(request, query.run)
    elif (permissions := permissions_of(request)) is not None and permissions.runs:
        raise RunNotAllowed("this key is bound to runs: name one of them with ?run=")
    return SampleFilter(
        query.run, query.prompt_key, query.reason, query.evidence, query.flag, query.first_step, query.last_step
    )


def _lines(store: Store, wanted: SampleFilter) -> Iterator[bytes]:
    for record in store.export(wanted):
        yield to_line(record) + b"\n"


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")


def _run(counts: RunCounts) -> CapturedRunOut:
    return CapturedRunOut(
        counts.run, counts.n_samples, counts.n_alerts, counts.n_bytes, _time(counts.first_at), _time(counts.last_at)
    )


def _sample(stored: StoredSample) -> CapturedSampleOut:
    each = stored.sample
    prompt = each.prompt if isinstance(each.prompt, str) else [TurnOut(turn.role, turn.content) for turn in each.prompt]
    return CapturedSampleOut(
        stored.id, each.run, each.step, _time(each.at), prompt, each.response, each.score, each.reward, each.raw, each.heads,
        each.stages, each.flags, each.audit, each.reason, each.sample_id, each.task, each.n_tokens, each.truncated,
        each.missing_end, each.evidence, each.prompt_key, each.model, each.model_version,
    )  # fmt: skip


def _alert(stored: StoredAlert) -> CapturedAlertOut:
    each = stored.alert
    return CapturedAlertOut(
        stored.id, each.run, each.step, _time(each.at), each.wire, each.severity, each.statistic, each.threshold, each.task,
        each.evidence, each.model, each.model_version,
    )  # fmt: skip
