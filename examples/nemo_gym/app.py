"""A resources server of NeMo-Gym that asks RewardServe: Gym starts it like its own, and tells it where to ask.

Put this folder under Gym's `resources_servers/` as `rewardserve`, with `resources_server.yaml` as its configuration.
"""

from __future__ import annotations

from nemo_gym.base_resources_server import (
    BaseResourcesServerConfig,
    BaseVerifyRequest,
    BaseVerifyResponse,
    SimpleResourcesServer,
)
from nemo_gym.server_utils import get_response_json, raise_for_status, request
from pydantic import ConfigDict


class RewardServeConfig(BaseResourcesServerConfig):
    """Where the rewards come from. `api_key` and `run` may be empty."""

    url: str
    api_key: str = ""
    run: str = ""


class VerifyRequest(BaseVerifyRequest):
    """Whatever the agent sends goes on to the server, and comes back."""

    model_config = ConfigDict(extra="allow")


class VerifyResponse(BaseVerifyResponse):
    """`reward_components`, `mask_sample` and, for a failure, `_ng_failure_class` stand beside the reward."""

    model_config = ConfigDict(extra="allow")


class RewardServeResourcesServer(SimpleResourcesServer):
    """Verifies an episode by its score."""

    config: RewardServeConfig

    async def verify(self, body: VerifyRequest) -> VerifyResponse:
        """The answer of `POST /verify`."""
        headers = {"x-run": self.config.run} if self.config.run else {}
        if self.config.api_key:
            headers["Authorization"] = f"Bearer {self.config.api_key}"
        answer = await request("POST", f"{self.config.url}/verify", json=body.model_dump(mode="json"), headers=headers)
        await raise_for_status(answer)
        return VerifyResponse.model_validate(await get_response_json(answer))


if __name__ == "__main__":
    RewardServeResourcesServer.run_webserver()
