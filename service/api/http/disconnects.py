"""Cancel the work of a request whose client has disconnected."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from rewardserve.service.errors import ClientDisconnected

T = TypeVar("T")

_WATCH_DELAY_S = 0.05
"""A response that is ready within this time is written without a check of the connection."""


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`. If the client disconnects, cancel the work and raise `ClientDisconnected`."""
    task = asyncio.current_task()
    assert task is not None
    n_cancelled = task.cancelling()
    watcher = _DisconnectWatcher(request, task)
    try:
        return await work
    except asyncio.CancelledError:
        # As in asyncio.timeout: counting distinguishes this watcher's cancellation from others.
        if watcher.has_cancelled and task.uncancel() <= n_cancelled:
            raise ClientDisconnected("the client disconnected before the reply was ready") from None
        raise
    finally:
        watcher.end()


class _DisconnectWatcher:
    """Cancel the task of a request when its client disconnects. Starts after a delay, since most responses are ready before it."""

    def __init__(self, request: Request, task: asyncio.Task[Any]) -> None:
        self.has_cancelled = False
        self._request = request
        self._task = task
        self._watcher: asyncio.Task[None] | None = None
        self._is_over = False
        self._timer = asyncio.get_running_loop().call_later(_WATCH_DELAY_S, self._begin)

    def _begin(self) -> None:
        self._watcher = asyncio.create_task(self._wait_for_disconnect())
        self._watcher.add_done_callback(self._cancel_task)

    async def _wait_for_disconnect(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass

    def _cancel_task(self, watcher: asyncio.Task[None]) -> None:
        # The response may have become ready between the end of the watcher and this call: then it is sent.
        if not watcher.cancelled() and not self._is_over:
            self.has_cancelled = True
            self._task.cancel()

    def end(self) -> None:
        """Stop watching."""
        self._is_over = True
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # breaks the reference cycle, which would wait for the garbage collector
