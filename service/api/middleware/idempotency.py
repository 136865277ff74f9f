"""A request that is sent again with the same `Idempotency-Key` gets the same answer, and is scored and counted once.

Answers are remembered for a while, within a bound of bytes, in this process only. Refusals are not, nor answers with a sample that
may be scored another time (`is_final` in the state of the request), so that trying again is of use. The answer to a run that a trip
wire has blocked meanwhile is not given again: the request is answered anew, which is a refusal. A repeat that comes while the first
is being answered waits for it. The header is that of the IETF's draft (draft-ietf-httpapi-idempotency-key-header). Belongs to one
event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from rewardserve.service.api.body import run_off_loop
from rewardserve.service.api.deadline import read_deadline
from rewardserve.service.api.headers import header
from rewardserve.service.clock import Clock
from rewardserve.service.errors import DeadlineExceeded, InvalidRequest, KeyReused
from rewardserve.service.tripwires.io.run_watcher import RunContext

HEADER = b"idempotency-key"
_MAX_KEY_BYTES = 255
_OK = 200


_OVERHEAD_BYTES = 1024
"""Bytes that an answer takes beside its own, about."""


@dataclass(frozen=True, slots=True)
class _StoredResponse:
    """What was answered to a key, when, and to which body."""

    response: Response
    body_digest: bytes
    at: float
    run_context: RunContext | None = None

    @property
    def n_bytes(self) -> int:
        return len(self.response.body) + _OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class _InProgress:
    """A key that is being answered."""

    body_digest: bytes
    finished: asyncio.Event


class BlockedRuns(Protocol):
    """Has the runs that a trip wire has blocked."""

    def is_blocked(self, context: RunContext, /) -> bool:
        """Whether requests of this run are refused."""
        ...


class Idempotency:
    """Answers by key. At most `max_bytes` of them, none older than `max_age_s`, none of a run in `blocked_runs`."""

    def __init__(
        self,
        clock: Clock,
        *,
        max_bytes: int = 64 * 2**20,
        max_age_s: float = 600.0,
        blocked_runs: BlockedRuns | None = None,
    ) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._blocked_runs = blocked_runs
        self._in_progress: dict[bytes, _InProgress] = {}
        self._stored: OrderedDict[bytes, _StoredResponse] = OrderedDict()
        self._n_bytes = 0

    def _is_blocked(self, context: RunContext | None) -> bool:
        return context is not None and self._blocked_runs is not None and self._blocked_runs.is_blocked(context)

    async def run_once(self, request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        """`answer(request)`, or what it answered to the same key before. Raise what it raises, `KeyReused`, `DeadlineExceeded`."""
        key = header(request.scope, HEADER)
        if key is None:
            return await answer(request)
        if not 0 < len(key) <= _MAX_KEY_BYTES:
            raise InvalidRequest(f"an idempotency key has 1 to {_MAX_KEY_BYTES} bytes", field="idempotency-key")
        deadline = read_deadline(request, self._clock)
        content = await request.body()
        name, digest = _storage_key(request, key), await run_off_loop(content, _body_digest, content)
        while (in_progress := self._in_progress.get(name)) is not None:
            _check_same_body(in_progress.body_digest, digest)
            await self._wait_for(in_progress, deadline)  # refused or given up: then the next one asks himself
        self._evict()
        stored = self._stored.get(name)
        if stored is not None:
            _check_same_body(stored.body_digest, digest)
        if stored is None or self._is_blocked(stored.run_context):
            return await self._run_first(name, digest, request, answer)
        return _replay(stored.response)

    async def _wait_for(self, in_progress: _InProgress, deadline: float) -> None:
        """Wait until an earlier request of the same key is over. Raise `DeadlineExceeded`."""
        try:
            await asyncio.wait_for(
                in_progress.finished.wait(), None if deadline == math.inf else deadline - self._clock.now()
            )
        except TimeoutError:
            raise DeadlineExceeded(
                "the deadline passed while an earlier request of this idempotency key was answered"
            ) from None

    async def _run_first(
        self, name: bytes, digest: bytes, request: Request, answer: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        in_progress = self._in_progress[name] = _InProgress(digest, asyncio.Event())
        try:
            response = await answer(request)
            state = request.scope.get("state", {})
            run_context, is_final = state.get("run_context"), state.get("is_final", True)
            if response.status_code == _OK and is_final and not self._is_blocked(run_context):
                self._store(name, _StoredResponse(response, digest, self._clock.now(), run_context))
            return response
        finally:
            del self._in_progress[name]
            in_progress.finished.set()

    def _store(self, name: bytes, answer: _StoredResponse) -> None:
        if (old := self._stored.pop(name, None)) is not None:
            self._n_bytes -= old.n_bytes
        self._stored[name] = answer
        self._n_bytes += answer.n_bytes
        self._evict()

    def _evict(self) -> None:
        """Forget the oldest answers beyond the bounds."""
        oldest = self._clock.now() - self._max_age_s
        while self._stored:
            name, answer = next(iter(self._stored.items()))
            if answer.at >= oldest and self._n_bytes <= self._max_bytes:
                return
            del self._stored[name]
            self._n_bytes -= answer.n_bytes


def _check_same_body(stored: bytes, digest: bytes) -> None:
    if stored != digest:
        raise KeyReused("this idempotency key was sent with another body before; every request has its own")


def _body_digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


_IDENTIFYING_HEADERS = (b"authorization", b"x-model-digest", b"x-run", b"x-step")
"""Headers that identify a request besides its path and query: another value makes another request."""


def _storage_key(request: Request, key: bytes) -> bytes:
    """A key is its sender's own, on one route, for one run and step."""
    identifying = [header(request.scope, name) or b"" for name in _IDENTIFYING_HEADERS]
    parts = (request.scope["path"].encode(), request.scope["query_string"], *identifying, key)
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).digest()


def _replay(response: Response) -> Response:
    """The same body and the headers that belong to it, such as the name of the model that scored."""
    own = {name: value for name, value in response.headers.items() if name.startswith("x-")}
    return Response(
        response.body,
        response.status_code,
        headers={**own, "idempotency-replayed": "true"},
        media_type=response.media_type,
    )
