"""Sample responses of a policy from a server with OpenAI's API: `n` to each prompt, by chat or by text completions.

Knows nothing of reward models. The order of the results is that of the prompts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, Field

Prompt = str | list[dict[str, str]]

_ATTEMPTS = 5
_RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})


class PolicyError(Exception):
    """The policy's server cannot be reached, refuses a request, or answers otherwise than OpenAI's API."""


class PolicySettings(BaseModel):
    """Settings of the policy that responses are sampled from."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(
        "",
        description="server of a policy with OpenAI's API, up to /v1 or the whole URL of /chat/completions or /completions: INPUT "
        "has prompts, and responses are sampled; empty: INPUT has the responses",
    )
    model: str = Field("", description="name of the policy's model in requests")
    n: int = Field(16, ge=2, le=1024, description="responses to each prompt")
    temperature: float = Field(1.0, ge=0.0, le=10.0, description="temperature of sampling")
    max_tokens: int = Field(1024, gt=0, description="longest response in tokens")
    seed: int = Field(0, ge=0, description="seed of sampling, for servers that read it")
    concurrency: int = Field(8, gt=0, le=1024, description="requests at the same time")
    timeout_s: float = Field(600.0, gt=0.0, description="timeout of a request")
    key_file: str = Field("", description="file with the API key of the policy's server; empty: no key")


def completions_url(url: str) -> str:
    """The URL of requests: that of chat completions unless it names an API."""
    base = url.rstrip("/")
    return base if base.endswith("/completions") else f"{base}/chat/completions"


async def sample_policy(
    settings: PolicySettings, prompts: Sequence[Prompt], key: str = "", *, backoff_s: float = 1.0
) -> list[list[dict[str, str]]]:
    """Sample `n` responses to each prompt, as `response` and `finish_reason`. Raise `PolicyError`."""
    limit = asyncio.Semaphore(settings.concurrency)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(headers=headers, timeout=settings.timeout_s) as client:

        async def sample(prompt: Prompt) -> list[dict[str, str]]:
            found: list[dict[str, str]] = []
            async with limit:
                for repeat in range(settings.n):  # a server may give fewer responses a request than n
                    if len(found) >= settings.n:
                        break
                    body = _body(settings, prompt, settings.n - len(found), settings.seed + repeat)
                    found += _responses(await _post(client, completions_url(settings.url), body, backoff_s))
            return found[: settings.n]

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(sample(prompt)) for prompt in prompts]
    return [task.result() for task in tasks]


def _body(settings: PolicySettings, prompt: Prompt, n: int, seed: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "n": n,
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        "seed": seed,
    }
    if settings.model:
        body["model"] = settings.model
    if completions_url(settings.url).endswith("/chat/completions"):
        return body | {"messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt}
    if not isinstance(prompt, str):
        raise PolicyError("a prompt of messages needs /chat/completions: /completions takes text.")
    return body | {"prompt": prompt}


async def _post(client: httpx.AsyncClient, url: str, body: Mapping[str, Any], backoff_s: float) -> Any:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            reply = await client.post(url, json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = f"{url} cannot be reached: {error or type(error).__name__}."
        else:
            if reply.is_success:
                try:
                    return reply.json()
                except ValueError:
                    raise PolicyError(f"{url} answers without JSON.") from None
            reason = f"{url} answers {reply.status_code}: {' '.join(reply.text.split())[:200]}"
            if reply.status_code not in _RETRIED:
                break
        if attempt < _ATTEMPTS:
            await asyncio.sleep(backoff_s * 2 ** (attempt - 1))
    raise PolicyError(reason)


def _responses(reply: Any) -> list[dict[str, str]]:
    """The texts of a reply of either API, with `finish_reason` as in POST /score."""
    try:
        choices = [
            (choice["message"]["content"] if "message" in choice else choice["text"], choice.get("finish_reason"))
            for choice in reply["choices"]
        ]
    except (KeyError, TypeError, AttributeError):
        choices = []
    if not choices:
        raise PolicyError("the policy's server answers without choices: it has not OpenAI's API.")
    return [
        {"response": text or "", "finish_reason": "length" if reason == "length" else "stop"}
        for text, reason in choices
    ]
