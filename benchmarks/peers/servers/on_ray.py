"""Ray Serve: one replica, up to 16 requests that arrive within 5 ms form a batch."""

from __future__ import annotations

import os
import signal
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.peers.servers.forward import BATCH, TransformersModel, arguments


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class RayReward:
    """Replica with the model."""

    def __init__(self, folder: str) -> None:
        self.forward = TransformersModel(folder)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.005)  # type: ignore[untyped-decorator]
    async def score(self, requests: list[dict[str, Any]]) -> list[dict[str, list[float]]]:
        """Score the requests of a batch together."""
        return self.forward.many(requests)

    async def __call__(self, request: Request) -> dict[str, list[float]]:
        """One request."""
        reply: dict[str, list[float]] = await self.score(await request.json())
        return reply


def main() -> None:
    """Serve until SIGTERM."""
    given = arguments()
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}  # Ray sets it to 1 for its workers
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, runtime_env={"env_vars": threads})
    serve.start(http_options={"host": "127.0.0.1", "port": given.port})
    serve.run(RayReward.bind(given.model), route_prefix="/score")  # type: ignore[attr-defined]
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()


if __name__ == "__main__":
    main()
