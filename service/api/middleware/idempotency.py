"""Idempotency: a retry with the same `Idempotency-Key` gets the stored response, and is scored and counted once.

Responses are stored for a limited time and in limited memory, in this process only. Refusals are not stored, nor responses with a
failure that may pass (`is_final` in the state of the request), so that a retry can succeed. A stored response to a run that a trip
wire has blocked since is not replayed: the request runs again, and is refused. A retry that arrives while the first request is in
progress waits for it. The header is that of the IETF draft draft-ietf-httpapi-idempotency-key-header. Belongs to one event loop.
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
from rewardserve.service.tripwires.run_context import RunContext

HEADER = b"idempotency-key"
_MAX_KEY_BYTES = 255
_OK = 200


_OVERHEAD_BYTES = 1024
"""Approximate memory of a stored response besides its body."""


@dataclass(frozen=True, slots=True)
class _StoredResponse:
    """The response to a key, with the digest of the body, and the time."""

    response: Response
    body_digest: bytes
    at: float
    run_context: RunContext | None = None

    @property
    def n_bytes(self) -> int:
        return len(self.response.body) + _OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class _InProgress:
    """A request in progress."""

    body_digest: bytes
    finished: asyncio.Event


class BlockedRuns(Protocol):
    """The runs that trip wires block."""

    def is_blocked(self, context: RunContext, /) -> bool:
        """Whether requests of this run are refused."""
        ...


class Idempotency:
    """Store of responses by key: at most `max_bytes`, none older than `max_age_s`, none of a run in `blocked_runs`."""

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
        """Return `answer(request)`, or the stored response to its key. Raise its errors, `KeyReused` and `DeadlineExceeded`."""
        key = header(request.scope, HEADER)
        if key is None:
            return await answer(request)
        if not 0 < len(key) <= _MAX_KEY_BYTES:
            raise InvalidRequest(f"an idempotency key must have 1 to {_MAX_KEY_BYTES} bytes", field="idempotency-key")
        deadline = read_deadline(request, self._clock)
        content = await request.body()
        name, digest = _storage_key(request, key), await run_off_loop(content, _body_digest, content)
        while (in_progress := self._in_progress.get(name)) is not None:
            _check_same_body(in_progress.body_digest, digest)
            await self._wait_for(in_progress, deadline)  # if that request fails, this one runs
        self._evict()
        stored = self._stored.get(name)
        if stored is not None:
            _check_same_body(stored.body_digest, digest)
        if stored is None or self._is_blocked(stored.run_context):
            return await self._run_first(name, digest, request, answer)
        return _replay(stored.response)

    async def _wait_for(self, in_progress: _InProgress, deadline: float) -> None:
        """Wait until an earlier request with the same key has ended. Raise `DeadlineExceeded`."""
        try:
            await asyncio.wait_for(
                in_progress.finished.wait(), None if deadline == math.inf else deadline - self._clock.now()
            )
        except TimeoutError:
            raise DeadlineExceeded(
                "the deadline passed while an earlier request with this idempotency key was in progress"
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
        """Remove the oldest responses beyond the limits."""
        oldest = self._clock.now() - self._max_age_s
        while self._stored:
            name, answer = next(iter(self._stored.items()))
            if answer.at >= oldest and self._n_bytes <= self._max_bytes:
                return
            del self._stored[name]
            self._n_bytes -= answer.n_bytes


def _check_same_body(stored: bytes, digest: bytes) -> None:
    if stored != digest:
        raise KeyReused("this idempotency key was used with another body before: send a new key with every new body")


def _body_digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


_IDENTIFYING_HEADERS = (b"authorization", b"x-model-digest", b"x-run", b"x-step", b"x-task")
"""Headers that identify a request besides its path and query: another value makes another request."""


def _storage_key(request: Request, key: bytes) -> bytes:
    """Derive the key of the store: an idempotency key holds for one API key, URL, run, step and task."""
    identifying = [header(request.scope, name) or b"" for name in _IDENTIFYING_HEADERS]
    parts = (request.scope["path"].encode(), request.scope["query_string"], *identifying, key)
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).digest()


def _replay(response: Response) -> Response:
    """Build the response again, with its `x-` headers, such as the version of the model that scored."""
    headers = {name: value for name, value in response.headers.items() if name.startswith("x-")}
    return Response(
        response.body,
        response.status_code,
        headers={**headers, "idempotency-replayed": "true"},
        media_type=response.media_type,
    )
