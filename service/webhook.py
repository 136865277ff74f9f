"""Tells a receiver of alarms, signed, and again until it has heard: nobody reads dashboards at night.

A bounded number of alarms wait; the oldest is dropped first, and said so. Knows neither wires nor scores.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import httpx

SIGNATURE_HEADER = "x-reward-signature"
"""`sha256=` and the HMAC-SHA256 of the body under the shared secret, in hexadecimal. Not there without a secret."""

TRIES = 6
_FIRST_PAUSE_S = 0.5
_TIMEOUT_S = 5.0
_MOST_WAITING = 1_000
_LAST_WORDS_S = 3.0


class Webhook:
    """POSTs one JSON object an alarm to `url`, in order. `lost` hears of those that nobody received, and why."""

    def __init__(
        self,
        url: str,
        secret: bytes | None,
        lost: Callable[[Mapping[str, Any], str], None],
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        first_pause_s: float = _FIRST_PAUSE_S,
    ) -> None:
        self._url = url
        self._secret = secret
        self._lost = lost
        self._first_pause_s = first_pause_s
        self._client = httpx.AsyncClient(timeout=_TIMEOUT_S, transport=transport, trust_env=False)
        self._waiting: deque[Mapping[str, Any]] = deque()
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to deliver."""
        self._task = asyncio.create_task(self._deliver(), name="webhook")

    def tell(self, alarm: Mapping[str, Any]) -> None:
        """Deliver this soon. Never waits."""
        self._waiting.append(alarm)
        if len(self._waiting) > _MOST_WAITING:
            self._lost(self._waiting.popleft(), "too many alarms wait for the receiver")
        self._idle.clear()
        self._changed.set()

    async def stop(self) -> None:
        """Deliver what waits, if that is quick; say what is lost."""
        if self._task is None:
            return
        try:
            await asyncio.wait_for(self._idle.wait(), _LAST_WORDS_S)
        except TimeoutError:
            for alarm in self._waiting:
                self._lost(alarm, "the server ended")
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._client.aclose()

    async def _deliver(self) -> None:
        while True:
            while self._waiting:
                alarm = self._waiting[0]
                why_not = await self._post(alarm)
                if self._waiting and self._waiting[0] is alarm:  # it may have been dropped meanwhile
                    self._waiting.popleft()
                    if why_not is not None:
                        self._lost(alarm, why_not)
            self._idle.set()
            self._changed.clear()
            await self._changed.wait()

    async def _post(self, alarm: Mapping[str, Any]) -> str | None:
        """Why it did not arrive, or None."""
        body = json.dumps(alarm, separators=(",", ":")).encode()
        headers = {"content-type": "application/json"}
        if self._secret is not None:
            headers[SIGNATURE_HEADER] = sign(body, self._secret)
        why_not = ""
        for i in range(TRIES):
            if i:
                await asyncio.sleep(self._first_pause_s * 2 ** (i - 1))
            try:
                response = await self._client.post(self._url, content=body, headers=headers)
            except Exception as error:  # whatever it is, those behind this one must not wait for ever
                why_not = type(error).__name__
                continue
            if response.is_success:
                return None
            why_not = f"the receiver answered {response.status_code}"
            if 400 <= response.status_code < 500 and response.status_code not in (408, 429):
                return why_not  # it will say so again
        return why_not


def sign(body: bytes, secret: bytes) -> str:
    """What `SIGNATURE_HEADER` has for this body."""
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
