"""`AsyncRewardClient`: drives the courses of a call, at most so many at one time. Thin: what to do is decided elsewhere."""

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
from rewardserve_client.backoff import Backoff, Luck
from rewardserve_client.chunks import chunks_of
from rewardserve_client.circuit_breaker import Circuit
from rewardserve_client.classify import Answer, Event, Good, Refused, TooLarge
from rewardserve_client.configuration import LONGEST_CALL_S, Limits, key_from, model_digests_from, urls_from
from rewardserve_client.errors import MixedModels, RequestRefused, Unavailable
from rewardserve_client.outage_warnings import Silence
from rewardserve_client.request_plan import Ask, Asking, Course, Means, R, attempts, refusal, seen_through
from rewardserve_client.results import UNAVAILABLE, Answers, Compared, Comparisons, Identity, Result, Scores
from rewardserve_client.samples import Item, Sample, comparison_items, head, sample_items
from rewardserve_client.transport import Line

T = TypeVar("T")
A = TypeVar("A", bound=Answers)
Progress = Callable[[int, int], None]
"""Called with how many samples have their record, and of how many."""

OnFailure = Literal["raise", "none"]
OnMixed = Literal["flag", "raise"]
ON_FAILURE, ON_MIXED = get_args(OnFailure), get_args(OnMixed)

_log = logging.getLogger("rewardserve_client")


@dataclass(frozen=True, slots=True)
class World:
    """Time and chance, as a test may hold them still."""

    now: Callable[[], float] = time.monotonic
    luck: Luck = random.uniform
    new_key: Callable[[], str] = field(default=lambda: uuid.uuid4().hex)


class AsyncRewardClient:
    """Asks one server, or several with the same model, for rewards. Connections are kept, one set an event loop.

    `deadline_s` is the default of every call and bounds all of its attempts and waits together. `on_failure="none"`:
    samples that no server answered for in time get None and the error `unavailable`, instead of an exception for the
    whole call. `on_mixed="raise"`: a call whose rewards come from models that differ raises `MixedModels`; by default
    it says so in `is_mixed` and in one line of the log. `model_digest`: digests of the one model that may answer, as
    `Identity` has them; any other server refuses with `digest_not_served`.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        api_key: str | None = None,
        model_digest: str | Sequence[str] | None = None,
        deadline_s: float = LONGEST_CALL_S,
        on_failure: OnFailure = "raise",
        on_mixed: OnMixed = "flag",
        limits: Limits | None = None,
        backoff: Backoff | None = None,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
        world: World | None = None,
    ) -> None:
        self.urls = urls_from(url)
        self.deadline_s = seconds("deadline_s", deadline_s)
        check_choice("on_failure", on_failure, ON_FAILURE)
        check_choice("on_mixed", on_mixed, ON_MIXED)
        check_type("limits", limits, (Limits, type(None)), "a Limits")
        check_type("backoff", backoff, (Backoff, type(None)), "a Backoff")
        check_type("verify", verify, (bool, ssl.SSLContext), "a bool or an ssl.SSLContext")
        self._key = key_from(api_key)
        self._model_digests = model_digests_from(model_digest)
        self._on_failure = on_failure
        self._on_mixed = on_mixed
        self._limits = limits or Limits()
        # Reading the certificates takes so long that it would be missed from the deadline of the first call in every loop.
        self._verify = httpx.create_ssl_context() if verify is True and transport is None else verify
        self._transport = transport
        self._world = world or World()
        self._silence = Silence(self.urls, self._limits.warn_after_s)
        self._means = Means(
            circuit=Circuit(),
            backoff=backoff or Backoff(),
            sample_retries=self._limits.sample_retries,
            now=self._world.now,
            luck=self._world.luck,
            new_key=self._world.new_key,
            tried=lambda url, reason: self._silence.tried(url, reason, self._world.now()),
        )
        self._lines: WeakKeyDictionary[asyncio.AbstractEventLoop, Line] = WeakKeyDictionary()
        self._last: Identity | None = None

    def __repr__(self) -> str:
        """Which servers. Never the key."""
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
        """Score samples, as records or as on the wire. One result a sample, in order.

        Raise `RequestRefused`, `Unavailable`, `MixedModels` or, before anything is sent, `Misconfigured`.
        """
        items = sample_items(samples, self._world.new_key())
        asking = Asking(
            path="/score",
            head=_origin("samples", run, step, kl=kl_of(kl)),
            deadline=self._deadline(deadline_s),
            read=replies.scored,
            failed=lambda item, failure: Result(item.id, error=failure),
        )
        results = await self._all(items, asking, on_failure, on_progress)
        return self._checked(Scores(tuple(results)))

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
        """Rank the `responses` to each `prompt`. One result a comparison, in order. Raise as `score` does."""
        items = comparison_items(comparisons, self._world.new_key())
        asking = Asking(
            path="/compare",
            head=_origin("comparisons", run, step, tie_margin=margin("tie_margin", tie_margin)),
            deadline=self._deadline(deadline_s),
            read=replies.compared,
            failed=lambda item, failure: Compared(item.id, error=failure),
        )
        results = await self._all(items, asking, on_failure, on_progress)
        return self._checked(Comparisons(tuple(results)))

    async def model(self, *, deadline_s: float | None = None) -> dict[str, Any]:
        """What `GET /model` of the first server that answers says. Raise `RequestRefused` or `Unavailable`."""
        deadline = self._deadline(deadline_s)
        course = attempts(self.urls, "/model", None, replies.described, deadline, self._means)
        with self._warned_of_silence(deadline):
            end = await self._drive(course)
        if isinstance(end, Good):
            return end.value
        if isinstance(end, Refused):
            raise refusal(end)
        if isinstance(end, TooLarge):
            raise RequestRefused(413, end.failure.code, end.failure.message, end.failure.details)
        raise Unavailable(end.reason, 0, 0)

    async def ready(self, *, timeout_s: float = 5.0) -> bool:
        """Whether at least one server is ready to score right now. Asks each once and never raises for a failure."""
        deadline = self._world.now() + seconds("timeout_s", timeout_s)
        asked = [self._line().send(Ask(url, "/readyz", None, "", deadline)) for url in self.urls]
        return any(isinstance(event, Answer) and event.status == 200 for event in await _all_or_none(asked))

    async def aclose(self) -> None:
        """Hang up. Connections of other event loops end with those."""
        line = self._lines.pop(asyncio.get_running_loop(), None)
        if line is not None:
            await line.close()

    async def __aenter__(self) -> Self:
        """For `async with`."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hang up."""
        await self.aclose()

    # -- driving ----------------------------------------------------------------------------------------------

    async def _all(
        self, items: Sequence[Item], asking: Asking[R], on_failure: OnFailure | None, on_progress: Progress | None
    ) -> list[R]:
        """One record an item. Raise `Unavailable` as soon as one chunk has no answer, where that is wanted."""
        if on_failure is not None:
            check_choice("on_failure", on_failure, ON_FAILURE)
        check_callable("on_progress", on_progress)
        raises = (on_failure or self._on_failure) == "raise"
        chunks = chunks_of(
            items,
            self.urls,
            lambda url: self._means.circuit.is_up(url, self._world.now()),
            max_weight=self._limits.chunk_samples,
            max_bytes=self._limits.chunk_bytes,
        )
        turns = asyncio.Semaphore(self._limits.chunks_at_once)
        records: dict[int, R] = {}

        async def see_through(course: Course[list[R]], places: Sequence[int]) -> None:
            async with turns:
                done = await self._drive(course)
            records.update(zip(places, done, strict=True))
            lost = [r.error for r in done if r.error is not None and r.error.code == UNAVAILABLE]
            if lost and raises:
                raise Unavailable(lost[0].message, len(items) - len(records) + len(lost), len(items))
            if on_progress is not None:
                on_progress(len(records), len(items))

        courses = [(seen_through(chunk, asking, self._means), [i.place for i in chunk.items]) for chunk in chunks]
        with self._warned_of_silence(asking.deadline):
            await _all_or_none([see_through(course, places) for course, places in courses])
        return [records[i] for i in range(len(items))]

    @contextlib.contextmanager
    def _warned_of_silence(self, deadline: float) -> Iterator[None]:
        """While the body runs, the log says from time to time that no server answers."""
        loop, began_at = asyncio.get_running_loop(), self._world.now()
        timer: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal timer
            warning = self._silence.warning(began_at, deadline, self._world.now())
            if warning is not None:
                _log.warning("%s", warning)
            timer = loop.call_later(self._silence.warn_after_s, look)

        timer = loop.call_later(self._silence.warn_after_s, look)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()

    async def _drive(self, course: Course[T]) -> T:
        """Do what the course says until it is over."""
        event: Event | None = None
        try:
            while True:
                step = course.send(event)
                event = None
                if isinstance(step, Ask):
                    event = await self._line().send(step)
                else:
                    await asyncio.sleep(step.seconds)
        except StopIteration as end:
            value: T = end.value
            return value

    def _line(self) -> Line:
        """The connections of the running loop: an httpx client must not be shared across loops."""
        loop = asyncio.get_running_loop()
        if loop not in self._lines:
            self._drop_lines_of_closed_loops()
            self._lines[loop] = Line(
                key=self._key,
                model_digests=self._model_digests,
                connections=self._limits.connections,
                attempt_s=self._limits.attempt_s,
                now=self._world.now,
                verify=self._verify,
                transport=self._transport,
            )
        return self._lines[loop]

    def _drop_lines_of_closed_loops(self) -> None:
        """Their connections know their loop, so the weak dictionary alone would keep both for ever."""
        for loop in list(self._lines):
            if loop.is_closed():
                del self._lines[loop]

    def _deadline(self, given_s: float | None) -> float:
        return self._world.now() + (self.deadline_s if given_s is None else seconds("deadline_s", given_s))

    def _checked(self, answers: A) -> A:
        """Notice when the model is another one than before, or several at once."""
        for identity in answers.identities:
            if self._last is not None and identity.meaning != self._last.meaning:
                _log.warning("the served reward model has changed: %s, then %s", self._last, identity)
            self._last = identity
        if answers.is_mixed and self._on_mixed == "raise":
            raise MixedModels(f"the rewards of one call come from {len(answers.identities)} models")
        return answers


def _origin(list_name: str, run: str | None, step: int | None, **more: Any) -> bytes:
    """The beginning of a body. Raise `WrongType` or `Misconfigured`."""
    check_text("run", run)
    return head(list_name, run=run, step=step_of(step), **more)


async def _all_or_none(parts: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all at once. When one raises, or the caller leaves, the others are cancelled and awaited."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
