"""`RewardClient`: the asynchronous client run by a background thread, for callers without an event loop.

There is one implementation of sending: a deadline that also cuts off a slow body or a name lookup needs an event loop
in any case. Safe to call from many threads. After a fork the child starts a new thread and new connections.
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
from rewardserve_client.results import Approvals, Comparisons, Scores
from rewardserve_client.samples import Sample

T = TypeVar("T")


class RewardClient:
    """Client of one server, or of several with the same model. Blocking form of `AsyncRewardClient`, for any thread.

    `url`: addresses, by default those of the variable `REWARDSERVE_URL`; `api_key` by default that of `REWARDSERVE_API_KEY`.
    The other arguments are those of `AsyncRewardClient`. `on_progress` of a call runs in the client's thread.
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
        """Name the servers, never the key."""
        return f"{type(self).__name__}({', '.join(self._client.urls)})"

    @property
    def urls(self) -> tuple[str, ...]:
        """Addresses of the servers."""
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
        """Score samples. Return one result a sample, in order; `rewards` has the numbers alone.

        `samples` are dicts as on the wire, such as `{"prompt": ..., "response": ...}`, or `Sample` records. `run`, `step` and `kl`
        (of the policy from its initial state, in nats) are for the trip wires. `deadline_s` and `on_failure` replace those of the
        client in this call. `on_progress` is called with the number of samples that have a result, and that of all.

        Raise `RequestRefused` where the server refuses a request, `Unavailable` where none replies in time, `MixedModels`, or,
        before a request is sent, `Misconfigured` or `WrongType`.
        """
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
        """Rank the responses to each prompt. Return one result a comparison, in order.

        `comparisons` are dicts as on the wire: `{"prompt": ..., "responses": [..., ...]}`. There is no winner where the best two
        raw scores differ by `tie_margin` or less. The other arguments and the exceptions are those of `score`.
        """
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

    def approve(
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
        return self._run(
            self._client.approve(
                groups,
                run=run,
                step=step,
                kl=kl,
                snapshot=snapshot,
                deadline_s=deadline_s,
                on_failure=on_failure,
                on_progress=on_progress,
            )
        )

    def model(self, *, deadline_s: float | None = None) -> dict[str, Any]:
        """Return `GET /model` of the first server that replies: model, contract, calibration and limits, as a dict.

        Raise `RequestRefused`, or `Unavailable` where no server replies within `deadline_s`, or that of the client.
        """
        return self._run(self._client.model(deadline_s=deadline_s))

    def ready(self, *, timeout_s: float = 5.0) -> bool:
        """Whether at least one server can score now. Send one request to each, and wait `timeout_s`; a failure never raises."""
        return self._run(self._client.ready(timeout_s=timeout_s))

    def close(self) -> None:
        """Close the connections and end the thread. The next call starts a new one."""
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
        """Close the connections and end the thread."""
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._loop_thread is None or self._loop_thread.pid != os.getpid():
                self._loop_thread = _EventLoopThread()
            loop_thread = self._loop_thread
        return loop_thread.run(work)


class _EventLoopThread:
    """Thread that runs one event loop. Ends when closed or garbage-collected; as a daemon it does not keep the process alive."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run_loop, args=(self._loop,), name="rewardserve-client", daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, _stop_loop, self._loop, self.pid)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return or raise the result of `work`. Cancel it if the waiting thread is interrupted."""
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a client cannot be called from its on_progress callback: the call would deadlock")
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
