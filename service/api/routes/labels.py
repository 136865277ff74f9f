"""`/review/queue`, `/review/labels` and `/review/agreement`: pairs to label, the verdicts of annotators, and how far they agree.

A pair is blinded: its id tells nothing, and the order of its responses is drawn for each annotator.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from rewardserve.service.api import body, openapi
from rewardserve.service.api.query import read_query
from rewardserve.service.api.replies import info_response
from rewardserve.service.api.routes.review_access import (
    Review,
    allowed_run,
    annotator_of,
    may_see,
    number_of,
    permissions_of,
    store_errors,
    store_of,
)
from rewardserve.service.api.run_context import check_no_parameters
from rewardserve.service.api.schemas.labels import (
    AgreementReply,
    LabelledPairOut,
    LabelReply,
    LabelRequest,
    LabelsQuery,
    LabelsReply,
    QueuedPairOut,
    QueueQuery,
    QueueReply,
)
from rewardserve.service.api.schemas.review import TurnOut
from rewardserve.service.clock import Clock
from rewardserve.service.errors import NoSuchLabel, NoSuchPair, RunNotAllowed
from rewardserve.service.review.records import LabelledPair, QueuedPair, Turn

_WORDS = {
    **openapi.ADMIN,
    404: "`no_such_pair` or `no_such_label`",
    409: "`review_off`: the server has no review store",
    503: "`review_unavailable`: the store cannot be read or written; `loading`",
}
_STATUSES = (404, 409, 422)


def label_routes(review: Review | None, clock: Clock) -> APIRouter:
    """Create the routes. `review` None: they refuse."""
    router = APIRouter(prefix="/review", tags=["review"])

    @router.get("/queue", **openapi.query_operation(QueueQuery, QueueReply, 409, 422, 503, words=_WORDS))
    async def queue(request: Request) -> Response:
        """Show the next pairs of a run to this annotator, blinded."""
        query = read_query(request, QueueQuery)
        run, labels = allowed_run(request, query.run), store_of(review).store.labels
        with store_errors():
            page = await asyncio.to_thread(
                labels.queue, run, annotator_of(request), query.sampling, query.limit, clock.unix_time()
            )
        return info_response(QueueReply([_queued(each) for each in page.pairs], page.n_labelled, page.n_left))

    @router.post("/labels", **openapi.admin_operation(LabelRequest, LabelReply, *_STATUSES, words=_WORDS))
    async def add(request: Request) -> Response:
        """Store the verdict of this annotator on a pair, in place of an earlier one."""
        payload = await body.read_admin_body(request, LabelRequest)
        labels = store_of(review).store.labels
        with store_errors():
            run = await asyncio.to_thread(labels.run_of, payload.pair)
            number = None
            if run is not None and may_see(request, run):
                number = await asyncio.to_thread(
                    labels.add, payload.pair, annotator_of(request), payload.verdict, clock.unix_time()
                )
        if number is None:
            raise NoSuchPair(
                "the review store has no pair with this name, or its samples are deleted: see GET /review/queue"
            )
        return info_response(LabelReply(number))

    @router.delete(
        "/labels/{label}",
        responses=openapi.replies(LabelReply, *_STATUSES, 503, words=_WORDS),
        dependencies=[Depends(check_no_parameters)],
    )
    async def remove(label: str, request: Request) -> Response:
        """Take back a label of this annotator; the pair comes again."""
        number, labels = number_of(label), store_of(review).store.labels
        with store_errors():
            is_removed = await asyncio.to_thread(labels.remove, number, annotator_of(request))
        if not is_removed:
            raise NoSuchLabel("this key has no label with this number: see GET /review/labels")
        return info_response(LabelReply(number))

    @router.get("/labels", **openapi.query_operation(LabelsQuery, LabelsReply, 409, 422, 503, words=_WORDS))
    async def labelled(request: Request) -> Response:
        """List labelled pairs with the verdict of each annotator, in no order that tells of time."""
        run = _run(request)
        with store_errors():
            found = await asyncio.to_thread(lambda: list(store_of(review).store.labels.labelled(run)))
        return info_response(LabelsReply([_labelled(each) for each in found]))

    @router.get("/agreement", **openapi.query_operation(LabelsQuery, AgreementReply, 409, 422, 503, words=_WORDS))
    async def agreement(request: Request) -> Response:
        """Tell how far annotators agree."""
        run = _run(request)
        with store_errors():
            found = await asyncio.to_thread(store_of(review).store.labels.agreement, run)
        return info_response(AgreementReply(*found))

    return router


def _run(request: Request) -> str | None:
    """The run that a query names; None: all, which a key that is bound to runs may not see."""
    run = read_query(request, LabelsQuery).run
    permissions = permissions_of(request)
    if run is None and permissions is not None and permissions.runs:
        raise RunNotAllowed("this key is bound to runs: name one of them with ?run=")
    return None if run is None else allowed_run(request, run)


def _queued(each: QueuedPair) -> QueuedPairOut:
    return QueuedPairOut(each.id, _prompt(each.prompt), each.first, each.second)


def _labelled(each: LabelledPair) -> LabelledPairOut:
    return LabelledPairOut(each.id, each.run, each.sampling, each.earlier_id, each.later_id, dict(each.verdicts))


def _prompt(prompt: list[Turn] | str) -> list[TurnOut] | str:
    return prompt if isinstance(prompt, str) else [TurnOut(turn.role, turn.content) for turn in prompt]
