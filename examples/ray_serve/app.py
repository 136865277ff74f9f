"""RewardServe on Ray Serve: every replica is the whole server but for its socket, which is Ray's.

    serve run examples.ray_serve.app:application max_replicas=4

Settings are the server's own, from the environment of the replicas; host and port mean nothing here.
"""

# No annotations from the future here: `serve run` looks for the class that `application` takes, not for its name.
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_settings import SettingsError
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from starlette.types import ASGIApp

from examples.ray_serve.autoscaling_policy import QUEUE_TOKENS, QueueLengthPolicy
from rewardserve.service.app import running_app
from rewardserve.service.observability import logs
from rewardserve.service.settings import ServeSettings


class ScalingOptions(BaseModel):
    """Options of `serve run`, as NAME=VALUE."""

    model_config = ConfigDict(extra="forbid")

    min_replicas: int = 1
    max_replicas: int = 4
    tokens_per_replica: int = 4000
    """Waiting tokens for each replica; k8s/README.md shows how to find the number."""
    upscale_delay_s: float = 5.0
    downscale_delay_s: float = 600.0
    look_back_period_s: float = 15.0
    """Longer than the 10 s after which replicas report to the controller."""
    cpus: float = 1.0
    gpus: float = 0.0
    drain_s: float = 75.0
    """More than REWARD_DRAIN_TIMEOUT_S: after it Ray kills the replica."""


@serve.deployment(name="rewardserve")
@serve.ingress()
class Replica:
    """Replica that is ready once its model is, and ends once every accepted request is answered."""

    async def __init__(self) -> None:
        settings = ServeSettings()
        logs.configure(settings.log_level, settings.log_format)
        keys = settings.read_keys()
        if settings.keys_file is None and not settings.allow_unauthenticated:
            raise SettingsError(
                "Ray's proxy may be reachable from other machines. Set REWARD_KEYS_FILE, or REWARD_ALLOW_UNAUTHENTICATED=1 to "
                "serve without authentication."
            )
        self._opened = running_app(settings, keys, settings.read_webhook_secrets())
        self._application, self._models = await self._opened.__aenter__()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application; Ray calls this after the constructor."""
        return self._application.app

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the statistics that the autoscaling policy reads."""
        return {QUEUE_TOKENS: float(self._models.n_queued_tokens)}

    async def check_health(self) -> None:
        """Raise where `/livez` would fail, so that Ray restarts the replica."""
        if not self._application.active_models.is_alive or self._application.active_models.is_scorer_dead:
            raise RuntimeError("the scorer of this replica has stopped; the log has the reason")

    async def __del__(self) -> None:
        """Close the application; Ray awaits this when it ends the replica. A replica that was never ready has none."""
        if hasattr(self, "_application"):
            await self._opened.__aexit__(None, None, None)


def application(scale: ScalingOptions) -> Any:
    """Build the application for `serve run`."""
    autoscaling = AutoscalingConfig(
        min_replicas=scale.min_replicas,
        max_replicas=scale.max_replicas,
        upscale_delay_s=scale.upscale_delay_s,
        downscale_delay_s=scale.downscale_delay_s,
        look_back_period_s=scale.look_back_period_s,
        policy=AutoscalingPolicy(
            policy_function=QueueLengthPolicy, policy_kwargs={"tokens_per_replica": scale.tokens_per_replica}
        ),
    )
    return Replica.options(
        # Admission says no, in words; Ray would let five requests in and keep the others waiting.
        max_ongoing_requests=4096,
        autoscaling_config=autoscaling,
        graceful_shutdown_timeout_s=scale.drain_s,
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
    ).bind()
