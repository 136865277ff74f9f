"""A resources server of NeMo-Gym that forwards episodes to RewardServe: Gym starts it, and configures the address.

Put this folder under Gym's `resources_servers/` as `rewardserve`, with `resources_server.yaml` as its configuration.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, ClassVar

from aiohttp import ClientError, ClientTimeout, ServerDisconnectedError
from fastapi import HTTPException
from nemo_gym.base_resources_server import (
    BaseResourcesServerConfig,
    BaseVerifyRequest,
    BaseVerifyResponse,
    ReverifyMode,
    SimpleResourcesServer,
)
from nemo_gym.server_utils import get_global_aiohttp_client
from pydantic import ConfigDict

RETRYABLE_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""

ENDS_THE_RUN = frozenset({401, 403, 404})
"""A wrong key, a run that a trip wire has blocked, a wrong address: masking every episode would hide it."""


class RewardServeConfig(BaseResourcesServerConfig):
    """Address of the rewards. `api_key` and `run` may be empty.

    `failed_reward` is the number beside the mask of an episode without a score: the lowest reward of your server, `cap_low` in
    `GET /model`. Without it a failed episode is an error, and Gym decides what becomes of the rollout.
    """

    REVERIFY_MODE: ClassVar[ReverifyMode] = ReverifyMode.STATELESS

    url: str
    api_key: str = ""
    run: str = ""
    failed_reward: float | None = None
    timeout_s: float = 120.0
    tries: int = 5


class VerifyRequest(BaseVerifyRequest):
    """Request whose fields are all forwarded to the server and returned."""

    model_config = ConfigDict(extra="allow")


class VerifyResponse(BaseVerifyResponse):
    """Reply with `mask_sample` and, for a failure, `failure_kind` and `failure_reason` beside the reward."""

    model_config = ConfigDict(extra="allow")


class RewardServeResourcesServer(SimpleResourcesServer):
    """Resources server that verifies an episode by its score."""

    config: RewardServeConfig

    async def verify(self, body: VerifyRequest) -> VerifyResponse:
        """Return the reply of `POST /verify`, or a masked one where there is none."""
        episode = body.model_dump(mode="json")
        kind, reason = "transport_unreachable", "nothing was sent"
        for attempt in range(self.config.tries):
            if attempt:
                await asyncio.sleep(min(2.0**attempt, 30.0))
            try:
                status, answer = await self._ask(episode)
            except TimeoutError:
                kind, reason = "transport_timeout", f"no answer within {self.config.timeout_s} s"
            except ServerDisconnectedError as error:
                kind, reason = "transport_peer_drop", type(error).__name__
            except ClientError as error:
                kind, reason = "transport_unreachable", type(error).__name__
            else:
                if status == 200:
                    return VerifyResponse.model_validate(answer)
                kind, reason = _failure(status, answer)
                if status in ENDS_THE_RUN:
                    raise HTTPException(status, reason)
                if status not in RETRYABLE_STATUSES:
                    break
        if self.config.failed_reward is None:
            raise HTTPException(502, f"{kind}: {reason}")
        return VerifyResponse.model_validate(_masked(episode, self.config.failed_reward, kind, reason))

    async def _ask(self, episode: dict[str, Any]) -> tuple[int, Any]:
        headers = {"x-run": self.config.run} if self.config.run else {}
        if self.config.api_key:
            headers["Authorization"] = f"Bearer {self.config.api_key}"
        on_failure = "refuse" if self.config.failed_reward is None else "mask"
        async with get_global_aiohttp_client().post(
            f"{self.config.url}/verify?on_failure={on_failure}",
            json=episode,
            headers=headers,
            timeout=ClientTimeout(total=self.config.timeout_s),
        ) as answer:
            content = await answer.read()
            try:
                return answer.status, json.loads(content)
            except ValueError:
                return answer.status if answer.status != 200 else 502, None


def _failure(status: int, answer: Any) -> tuple[str, str]:
    """Return the kind of a failure, in Gym's vocabulary or in ours, and its reason."""
    error = answer.get("error") if isinstance(answer, dict) else None
    details = error if isinstance(error, dict) else {}
    code, message = details.get("reason", details.get("code")), str(details.get("message", ""))[:2000]
    if status in RETRYABLE_STATUSES or not isinstance(code, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", code):
        return "provider_unavailable", f"{status} {code}: {message}"
    return f"rewardserve:{code}", message


def _masked(episode: dict[str, Any], reward: float, kind: str, reason: str) -> dict[str, Any]:
    """Return a reply that counts in no result: Gym reads the mask at the top level, NeMo-RL in `instance_config`."""
    config = episode.get("instance_config")
    return {
        **episode,
        "reward": reward,
        "mask_sample": True,
        "instance_config": {**(config if isinstance(config, dict) else {}), "mask_sample": True},
        "failure_kind": kind,
        "failure_reason": reason,
        "_ng_failure_class": kind.replace("rewardserve:", "reward_"),
    }


if __name__ == "__main__":
    RewardServeResourcesServer.run_webserver()
