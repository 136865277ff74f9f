"""`RewardClient`: the asynchronous client, driven by a thread of its own, for callers that have no event loop.

One way to send and not two: a deadline that cuts off a trickling answer, or a name lookup, needs an event loop anyway.
Safe to call from many threads. After a fork the child starts a thread and connections of its own.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import weakref
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from rewardserve_client.asyncclient import AsyncRewardClient, Environment, OnFailure, OnMixed, Progress
from rewardserve_client.backoff import Backoff
from rewardserve_client.configuration import DEFAULT_DEADLINE_S, ClientLimits
from rewardserve_client.results import Comparisons, Scores
from rewardserve_client.samples import Sample

T = TypeVar("T")


class RewardClient:
    """As `AsyncRewardClient`, blocking. `on_progress` is called from the client's thread."""

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
        self._client = AsyncRewardClient(
            url,
            api_key=api_key,
            model_digest=model_digest,
            deadline_s=deadline_s,
            on_failure=on_failure,
            on_mixed=on_mixed,
            limits=limits,
            backoff=backoff,
            verify=verify,
            transport=transport,
            environment=environment,
        )
        self._lock = threading.Lock()
        self._loop_thread: _EventLoopThread | None = None

    def __repr__(self) -> str:
        """Which servers. Never the key."""
        return f"{type(self).__name__}({', '.join(self._client.urls)})"

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers."""
        return self._client.urls

    def score(
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
        """As `AsyncRewardClient.score`."""
        return self._run(
            self._client.score(
                samples,
                run=run,
                step=step,
                kl=kl,
                deadline_s=deadline_s,
                on_failure=on_failure,
                on_progress=on_progress,
            )
        )

    def compare(
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
        """As `AsyncRewardClient.compare`."""
        return self._run(
            self._client.compare(
                comparisons,
                run=run,
                step=step,
                tie_margin=tie_margin,
                deadline_s=deadline_s,
                on_failure=on_failure,
                on_progress=on_progress,
            )
        )

    def model(self, *, deadline_s: float | None = None) -> dict[str, Any]:
        """As `AsyncRewardClient.model`."""
        return self._run(self._client.model(deadline_s=deadline_s))

    def ready(self, *, timeout_s: float = 5.0) -> bool:
        """As `AsyncRewardClient.ready`."""
        return self._run(self._client.ready(timeout_s=timeout_s))

    def close(self) -> None:
        """Hang up and end the thread. The next call starts anew."""
        with self._lock:
            loop_thread, self._loop_thread = self._loop_thread, None
        if loop_thread is not None and loop_thread.pid == os.getpid():
            loop_thread.run(self._client.aclose())
            loop_thread.close()

    def __enter__(self) -> Self:
        """For `with`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hang up."""
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._loop_thread is None or self._loop_thread.pid != os.getpid():
                self._loop_thread = _EventLoopThread()
            loop_thread = self._loop_thread
        return loop_thread.run(work)


class _EventLoopThread:
    """A thread that runs one event loop. Ends when it is closed or forgotten; as a daemon it keeps no process alive."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run_loop, args=(self._loop,), name="rewardserve-client", daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, _stop_loop, self._loop, self.pid)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns or raises. Whoever stops waiting for it stops it."""
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a client cannot be called from its own on_progress: it would wait for itself")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Stop the loop and wait for the thread."""
        self._end()
        self._thread.join()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _stop_loop(loop: asyncio.AbstractEventLoop, pid: int) -> None:
    if pid == os.getpid() and not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)
