"""`AsyncRewardClient`: executes the request plans of a call, a bounded number at a time; `request_plan` makes the decisions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, get_args
from weakref import WeakKeyDictionary

import httpx

from rewardserve_client import replies
from rewardserve_client.arguments import (
    check_callable,
    check_choice,
    check_text,
    check_type,
    kl_of,
    margin,
    seconds,
    step_of,
)
from rewardserve_client.backoff import Backoff, Jitter
from rewardserve_client.chunks import chunks_of
from rewardserve_client.circuit_breaker import CircuitBreaker
from rewardserve_client.classify import AttemptResult, HttpReply, Rejected, Success, TooLarge
from rewardserve_client.configuration import DEFAULT_DEADLINE_S, ClientLimits, key_from, model_digests_from, urls_from
from rewardserve_client.errors import MixedModels, RequestRefused, Unavailable
from rewardserve_client.outage_warnings import OutageWarnings
from rewardserve_client.request_plan import (
    Attempt,
    ClientContext,
    R,
    RequestPlan,
    RequestSpec,
    plan_attempts,
    plan_chunk,
    refusal_error,
)
from rewardserve_client.results import (
    UNAVAILABLE,
    ApprovalResult,
    Approvals,
    CallResults,
    ComparisonResult,
    Comparisons,
    ModelIdentity,
    Result,
    Scores,
)
from rewardserve_client.samples import Item, Sample, approval_items, comparison_items, head, sample_items
from rewardserve_client.transport import ConnectionPool

T = TypeVar("T")
A = TypeVar("A", bound=CallResults)
Progress = Callable[[int, int], None]
"""Called with the number of samples that have a result, and the number of all samples."""

OnFailure = Literal["raise", "none"]
OnMixed = Literal["flag", "raise"]
ON_FAILURE, ON_MIXED = get_args(OnFailure), get_args(OnMixed)

_log = logging.getLogger("rewardserve_client")


@dataclass(frozen=True, slots=True)
class Environment:
    """Clock, jitter and request keys, which a test replaces."""

    now: Callable[[], float] = time.monotonic
    jitter: Jitter = random.uniform
    new_key: Callable[[], str] = field(default=lambda: uuid.uuid4().hex)


class AsyncRewardClient:
    """Asynchronous client of one server, or of several with the same model. Keeps one connection pool per event loop.

    `deadline_s` is the default of every call and bounds all of its attempts and waits together. `on_failure="none"`:
    samples that no server scored in time get None and the error `unavailable`, instead of an exception for the whole
    call. `on_mixed="raise"`: a call whose rewards come from different models raises `MixedModels`; by default the client
    sets `is_mixed` and logs one line. `model_digest`: the accepted digests, as in `ModelIdentity`; a server with another
    model refuses with `digest_not_served`.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        api_key: str | None = None,
        model_digest: str | Sequence[str] | None = None,
        deadline_s: float = DEFAULT_DEADLINE_S,
        on_failure: OnFailure = "raise",
        on_mixed: OnMixed = "flag",
        limits: ClientLimits | None = None,
        backoff: Backoff | None = None,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
        environment: Environment | None = None,
    ) -> None:
        self.urls = urls_from(url)
        self.deadline_s = seconds("deadline_s", deadline_s)
        check_choice("on_failure", on_failure, ON_FAILURE)
        check_choice("on_mixed", on_mixed, ON_MIXED)
        check_type("limits", limits, (ClientLimits, type(None)), "a ClientLimits")
        check_type("backoff", backoff, (Backoff, type(None)), "a Backoff")
        check_type("verify", verify, (bool, ssl.SSLContext), "a bool or an ssl.SSLContext")
        self._key = key_from(api_key)
        self._model_digests = model_digests_from(model_digest)
        self._on_failure = on_failure
        self._on_mixed = on_mixed
        self._limits = limits or ClientLimits()
        # Reading the certificates is slow enough to use up part of the first deadline in every event loop, so it is
        # done once here.
        self._verify = httpx.create_ssl_context() if verify is True and transport is None else verify
        self._transport = transport
        self._environment = environment or Environment()
        self._outage_warnings = OutageWarnings(self.urls, self._limits.warn_after_s)
        self._context = ClientContext(
            circuit=CircuitBreaker(),
            backoff=backoff or Backoff(),
            sample_retries=self._limits.sample_retries,
            now=self._environment.now,
            jitter=self._environment.jitter,
            new_key=self._environment.new_key,
            on_attempt=lambda url, reason: self._outage_warnings.record_attempt(url, reason, self._environment.now()),
        )
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, ConnectionPool] = WeakKeyDictionary()
        self._last: ModelIdentity | None = None
        self._snapshots: dict[str, str] = {}

    def __repr__(self) -> str:
        """Name the servers, never the key."""
        return f"{type(self).__name__}({', '.join(self.urls)})"

    async def score(
        self,
        samples: Iterable[Sample | Mapping[str, Any]],
        *,
        run: str | None = None,
        step: int | None = None,
        kl: float | None = None,
        deadline_s: float | None = None,
        on_failure: OnFailure | None = None,
        on_progress: Progress | None = None,
    ) -> Scores:
        """Score samples. Return one result a sample, in order; `rewards` has the numbers alone.

        `samples` are dicts as on the wire, such as `{"prompt": ..., "response": ...}`, or `Sample` records. `run`, `step` and `kl`
        (of the policy from its initial state, in nats) are for the trip wires. `deadline_s` and `on_failure` replace those of the
        client in this call. `on_progress` is called with the number of samples that have a result, and that of all.

        Raise `RequestRefused` where the server refuses a request, `Unavailable` where none replies in time, `MixedModels`, or,
        before a request is sent, `Misconfigured` or `WrongType`.
        """
        items = sample_items(samples, self._environment.new_key())
        spec = RequestSpec(
            path="/score",
            head=_body_head("samples", run, step, kl=kl_of(kl)),
            deadline=self._deadline(deadline_s),
            read=replies.parse_scores,
            failed=lambda item, failure: Result(item.id, error=failure),
        )
        results = await self._run_chunks(items, spec, on_failure, on_progress)
        return self._note_models(Scores(tuple(results)))

    async def compare(
        self,
        comparisons: Iterable[Mapping[str, Any]],
        *,
        run: str | None = None,
        step: int | None = None,
        tie_margin: float = 0.0,
        deadline_s: float | None = None,
        on_failure: OnFailure | None = None,
        on_progress: Progress | None = None,
    ) -> Comparisons:
        """Rank the responses to each prompt. Return one result a comparison, in order.

        `comparisons` are dicts as on the wire: `{"prompt": ..., "responses": [..., ...]}`. There is no winner where the best two
        raw scores differ by `tie_margin` or less. The other arguments and the exceptions are those of `score`.
        """
        items = comparison_items(comparisons, self._environment.new_key())
        spec = RequestSpec(
            path="/compare",
            head=_body_head("comparisons", run, step, tie_margin=margin("tie_margin", tie_margin)),
            deadline=self._deadline(deadline_s),
            read=replies.parse_comparisons,
            failed=lambda item, failure: ComparisonResult(item.id, error=failure),
        )
        results = await self._run_chunks(items, spec, on_failure, on_progress)
        return self._note_models(Comparisons(tuple(results)))

    async def approve(
        self,
        groups: Iterable[Mapping[str, Any]],
        *,
        run: str,
        step: int | None = None,
        kl: float | None = None,
        snapshot: str | None = None,
        deadline_s: float | None = None,
        on_failure: OnFailure | None = None,
        on_progress: Progress | None = None,
    ) -> Approvals:
        """Approve queries by the snapshot that the first call of this run has pinned. Return one result a group, in order.

        `groups` are dicts as on the wire: `{"prompt": ..., "taken": [...], "queries": [...]}`, where the queries are drawn
        independently of the responses taken. The client sends the snapshot of its first reply for this run in later calls;
        `snapshot` names one from an earlier process. The other arguments are those of `score`.

        Raise as `score`, and `MixedModels` where servers have approved by several snapshots.
        """
        check_text("snapshot", snapshot)
        items = approval_items(groups, self._environment.new_key())
        known = self._snapshots.get(run) if snapshot is None else snapshot
        spec = RequestSpec(
            path="/approvals",
            head=_body_head("groups", run, step, kl=kl_of(kl), snapshot=known),
            deadline=self._deadline(deadline_s),
            read=replies.parse_approvals,
            failed=lambda item, failure: ApprovalResult(
                item.id, (None,) * item.weight, (failure,) * item.weight, error=failure
            ),
        )
        approvals = Approvals(tuple(await self._run_chunks(items, spec, on_failure, on_progress)))
        found = approvals.snapshots
        if len(found) > 1:
            raise MixedModels(f"the approvals of one call come from {len(found)} snapshots")
        if found:
            self._snapshots[run] = found[0]
        return approvals

    async def model(self, *, deadline_s: float | None = None) -> dict[str, Any]:
        """Return `GET /model` of the first server that replies: model, contract, calibration and limits, as a dict.

        Raise `RequestRefused`, or `Unavailable` where no server replies within `deadline_s`, or that of the client.
        """
        deadline = self._deadline(deadline_s)
        plan = plan_attempts(self.urls, "/model", None, replies.parse_model, deadline, self._context)
        with self._warn_of_outage(deadline):
            end = await self._execute(plan)
        if isinstance(end, Success):
            return end.value
        if isinstance(end, Rejected):
            raise refusal_error(end)
        if isinstance(end, TooLarge):
            raise RequestRefused(413, end.failure.code, end.failure.message, end.failure.details)
        raise Unavailable(end.reason, 0, 0)

    async def ready(self, *, timeout_s: float = 5.0) -> bool:
        """Whether at least one server can score now. Send one request to each, and wait `timeout_s`; a failure never raises."""
        deadline = self._environment.now() + seconds("timeout_s", timeout_s)
        attempts = [self._pool().send(Attempt(url, "/readyz", None, "", deadline)) for url in self.urls]
        return any(isinstance(event, HttpReply) and event.status == 200 for event in await _gather_or_cancel(attempts))

    async def aclose(self) -> None:
        """Close the connections of the running event loop. Connections of other loops end with their loop."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.close()

    async def __aenter__(self) -> Self:
        """For `async with`."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.aclose()

    # -- running plans -------------------------------------------------------------------------------------------

    async def _run_chunks(
        self, items: Sequence[Item], spec: RequestSpec[R], on_failure: OnFailure | None, on_progress: Progress | None
    ) -> list[R]:
        """Return one record an item. With `on_failure="raise"`, raise `Unavailable` as soon as one chunk has no reply."""
        if on_failure is not None:
            check_choice("on_failure", on_failure, ON_FAILURE)
        check_callable("on_progress", on_progress)
        raises = (on_failure or self._on_failure) == "raise"
        chunks = chunks_of(
            items,
            self.urls,
            lambda url: self._context.circuit.is_available(url, self._environment.now()),
            max_weight=self._limits.chunk_samples,
            max_bytes=self._limits.chunk_bytes,
        )
        slots = asyncio.Semaphore(self._limits.concurrent_chunks)
        records: dict[int, R] = {}

        async def run_plan(plan: RequestPlan[list[R]], positions: Sequence[int]) -> None:
            async with slots:
                done = await self._execute(plan)
            records.update(zip(positions, done, strict=True))
            unavailable = [r.error for r in done if r.error is not None and r.error.code == UNAVAILABLE]
            if unavailable and raises:
                raise Unavailable(unavailable[0].message, len(items) - len(records) + len(unavailable), len(items))
            if on_progress is not None:
                on_progress(len(records), len(items))

        plans = [(plan_chunk(chunk, spec, self._context), [i.position for i in chunk.items]) for chunk in chunks]
        with self._warn_of_outage(spec.deadline):
            await _gather_or_cancel([run_plan(plan, positions) for plan, positions in plans])
        return [records[i] for i in range(len(items))]

    @contextlib.contextmanager
    def _warn_of_outage(self, deadline: float) -> Iterator[None]:
        """Log a warning at intervals while the body runs and no server replies."""
        loop, began_at = asyncio.get_running_loop(), self._environment.now()
        timer: asyncio.TimerHandle | None = None

        def check() -> None:
            nonlocal timer
            warning = self._outage_warnings.warning(began_at, deadline, self._environment.now())
            if warning is not None:
                _log.warning("%s", warning)
            timer = loop.call_later(self._outage_warnings.warn_after_s, check)

        timer = loop.call_later(self._outage_warnings.warn_after_s, check)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()

    async def _execute(self, plan: RequestPlan[T]) -> T:
        """Execute the attempts and waits of the plan until it returns."""
        event: AttemptResult | None = None
        try:
            while True:
                step = plan.send(event)
                event = None
                if isinstance(step, Attempt):
                    event = await self._pool().send(step)
                else:
                    await asyncio.sleep(step.seconds)
        except StopIteration as end:
            value: T = end.value
            return value

    def _pool(self) -> ConnectionPool:
        """Connection pool of the running loop: an httpx client must not be shared across loops."""
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            self._drop_pools_of_closed_loops()
            self._pools[loop] = ConnectionPool(
                key=self._key,
                model_digests=self._model_digests,
                connections=self._limits.connections,
                attempt_timeout_s=self._limits.attempt_timeout_s,
                now=self._environment.now,
                verify=self._verify,
                transport=self._transport,
            )
        return self._pools[loop]

    def _drop_pools_of_closed_loops(self) -> None:
        """Drop the pools of closed loops: a connection refers to its loop, so the weak dictionary alone would keep both."""
        for loop in list(self._pools):
            if loop.is_closed():
                del self._pools[loop]

    def _deadline(self, given_s: float | None) -> float:
        return self._environment.now() + (self.deadline_s if given_s is None else seconds("deadline_s", given_s))

    def _note_models(self, answers: A) -> A:
        """Log a change of the served model, and raise `MixedModels` if `on_mixed` is "raise"."""
        for identity in answers.identities:
            if self._last is not None and identity.meaning != self._last.meaning:
                _log.warning("the served reward model has changed: %s, then %s", self._last, identity)
            self._last = identity
        if answers.is_mixed and self._on_mixed == "raise":
            raise MixedModels(f"the rewards of one call come from {len(answers.identities)} models")
        return answers


def _body_head(list_name: str, run: str | None, step: int | None, **more: Any) -> bytes:
    """Build the beginning of a request body. Raise `WrongType` or `Misconfigured`."""
    check_text("run", run)
    return head(list_name, run=run, step=step_of(step), **more)


async def _gather_or_cancel(parts: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all at once. If one raises or the caller is cancelled, cancel and await the others."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
