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

from starlette.requests import Request
from starlette.responses import Response

from rewardserve.service.api.body import off_loop
from rewardserve.service.api.deadline import read_deadline
from rewardserve.service.api.headers import header
from rewardserve.service.clock import Clock
from rewardserve.service.errors import DeadlineExceeded, InvalidRequest, KeyReused
from rewardserve.service.tripwires.io.run_watcher import Origin

HEADER = b"idempotency-key"
_LONGEST_KEY = 255
_OK = 200


_BESIDE_THE_BODY = 1024
"""Bytes that an answer takes beside its own, about."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What was answered to a key, when, and to which body."""

    response: Response
    body_digest: bytes
    at: float
    origin: Origin | None = None

    @property
    def n_bytes(self) -> int:
        return len(self.response.body) + _BESIDE_THE_BODY


@dataclass(frozen=True, slots=True)
class _Coming:
    """A key that is being answered."""

    body_digest: bytes
    is_over: asyncio.Event


class Idempotency:
    """Answers by key. At most `max_bytes` of them, none older than `max_age_s`, none of a run that `is_blocked`."""

    def __init__(
        self,
        clock: Clock,
        *,
        max_bytes: int = 64 * 2**20,
        max_age_s: float = 600.0,
        is_blocked: Callable[[Origin], bool] = lambda _: False,
    ) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._is_blocked = is_blocked
        self._coming: dict[bytes, _Coming] = {}
        self._answers: OrderedDict[bytes, _Answer] = OrderedDict()
        self._n_bytes = 0

    async def once(self, request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        """`answer(request)`, or what it answered to the same key before. Raise what it raises, `KeyReused`, `DeadlineExceeded`."""
        offered = header(request.scope, HEADER)
        if offered is None:
            return await answer(request)
        if not 0 < len(offered) <= _LONGEST_KEY:
            raise InvalidRequest(f"an idempotency key has 1 to {_LONGEST_KEY} bytes", field="idempotency-key")
        deadline = read_deadline(request, self._clock)
        content = await request.body()
        name, digest = _name(request, offered), await off_loop(content, _digest, content)
        while (coming := self._coming.get(name)) is not None:
            _check(coming.body_digest, digest)
            await self._end_of(coming, deadline)  # refused or given up: then the next one asks himself
        self._let_go()
        known = self._answers.get(name)
        if known is not None:
            _check(known.body_digest, digest)
        if known is None or (known.origin is not None and self._is_blocked(known.origin)):
            return await self._first(name, digest, request, answer)
        return _again(known.response)

    async def _end_of(self, coming: _Coming, deadline: float) -> None:
        """Wait until an earlier request of the same key is over. Raise `DeadlineExceeded`."""
        try:
            await asyncio.wait_for(
                coming.is_over.wait(), None if deadline == math.inf else deadline - self._clock.now()
            )
        except TimeoutError:
            raise DeadlineExceeded(
                "the deadline passed while an earlier request of this idempotency key was answered"
            ) from None

    async def _first(
        self, name: bytes, digest: bytes, request: Request, answer: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        coming = self._coming[name] = _Coming(digest, asyncio.Event())
        try:
            response = await answer(request)
            state = request.scope.get("state", {})
            origin, is_final = state.get("origin"), state.get("is_final", True)
            if response.status_code == _OK and is_final and (origin is None or not self._is_blocked(origin)):
                self._keep(name, _Answer(response, digest, self._clock.now(), origin))
            return response
        finally:
            del self._coming[name]
            coming.is_over.set()

    def _keep(self, name: bytes, answer: _Answer) -> None:
        if (old := self._answers.pop(name, None)) is not None:
            self._n_bytes -= old.n_bytes
        self._answers[name] = answer
        self._n_bytes += answer.n_bytes
        self._let_go()

    def _let_go(self) -> None:
        """Forget the oldest answers beyond the bounds."""
        oldest = self._clock.now() - self._max_age_s
        while self._answers:
            name, answer = next(iter(self._answers.items()))
            if answer.at >= oldest and self._n_bytes <= self._max_bytes:
                return
            del self._answers[name]
            self._n_bytes -= answer.n_bytes


def _check(known: bytes, digest: bytes) -> None:
    if known != digest:
        raise KeyReused("this idempotency key was sent with another body before; every request has its own")


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


_PART_OF_THE_REQUEST = (b"authorization", b"x-model-digest", b"x-run", b"x-step")
"""Headers that identify a request besides its path and query: another value makes another request."""


def _name(request: Request, offered: bytes) -> bytes:
    """A key is its sender's own, on one route, for one run and step."""
    said = [header(request.scope, name) or b"" for name in _PART_OF_THE_REQUEST]
    parts = (request.scope["path"].encode(), request.scope["query_string"], *said, offered)
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).digest()


def _again(response: Response) -> Response:
    """The same body and the headers that belong to it, such as the name of the model that scored."""
    own = {name: value for name, value in response.headers.items() if name.startswith("x-")}
    return Response(
        response.body,
        response.status_code,
        headers={**own, "idempotency-replayed": "true"},
        media_type=response.media_type,
    )
