"""Ask the policy for a turn of a continuation, from the one OpenAI-compatible server that the operator has configured.

No request names an address; a redirect is a failure, and so is each reply that is late, too large, or no text.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import httpx

from rewardserve.model.conversation import Message
from rewardserve.service.errors import PolicyFailed

PolicyOutcome = Literal["ok", "timeout", "unreachable", "status", "too_large", "invalid"]


@dataclass(frozen=True, slots=True)
class PolicyLimits:
    """Limits of one request to the policy, and of the requests at once."""

    timeout_s: float
    max_tokens: int
    max_bytes: int
    max_requests: int


class PolicyEvents(Protocol):
    """Receiver of the outcomes of requests to the policy."""

    def observe_policy_request(self, outcome: PolicyOutcome) -> None:
        """A request to the policy has ended."""
        ...


@dataclass(frozen=True, slots=True)
class PolicyTurn:
    """A turn that the policy wrote. `is_cut`: it was cut off at the limit of tokens."""

    text: str
    is_cut: bool


class PolicyClient:
    """Client of the policy at `url`, the base of its API, which ends in /v1. Belongs to one event loop."""

    def __init__(
        self,
        url: str,
        model: str,
        limits: PolicyLimits,
        events: PolicyEvents,
        *,
        key: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._model = model
        self._limits = limits
        self._events = events
        self._slots = asyncio.Semaphore(limits.max_requests)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        # Neither proxies nor credentials of the environment, and no redirects: the address is the operator's alone.
        self._client = httpx.AsyncClient(
            timeout=None, headers=headers, transport=transport, trust_env=False, follow_redirects=False
        )

    async def next_turn(self, messages: Sequence[Message]) -> PolicyTurn:
        """Ask for the next turn of the assistant. Raise `PolicyFailed`."""
        body = {
            "model": self._model,
            "messages": [{"role": each.role, "content": each.content} for each in messages],
            "max_tokens": self._limits.max_tokens,
            "stream": False,
        }
        try:
            async with asyncio.timeout(self._limits.timeout_s), self._slots:
                content = await self._post(body)
        except TimeoutError:
            raise self._failure("timeout", f"the policy did not reply within {self._limits.timeout_s:g} s") from None
        except httpx.HTTPError as error:
            raise self._failure("unreachable", f"the policy cannot be reached: {type(error).__name__}") from None
        turn = _parse(content)
        if turn is None:
            raise self._failure("invalid", "the reply of the policy has no text of an assistant")
        self._events.observe_policy_request("ok")
        return turn

    async def _post(self, body: Mapping[str, Any]) -> bytes:
        async with self._client.stream("POST", self._url, json=body) as reply:
            if reply.status_code != 200:
                raise self._failure("status", f"the policy replied with the status {reply.status_code}")
            parts, n = [], 0
            async for part in reply.aiter_bytes():
                parts.append(part)
                n += len(part)
                if n > self._limits.max_bytes:
                    raise self._failure(
                        "too_large", f"the reply of the policy is larger than {self._limits.max_bytes} bytes"
                    )
            return b"".join(parts)

    def _failure(self, outcome: PolicyOutcome, message: str) -> PolicyFailed:
        self._events.observe_policy_request(outcome)
        return PolicyFailed(message)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _parse(content: bytes) -> PolicyTurn | None:
    """The turn in a chat completion; None where it has none."""
    try:
        choice = json.loads(content)["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if not isinstance(text, str) or not text.strip():
        return None
    return PolicyTurn(text, choice.get("finish_reason") == "length")
