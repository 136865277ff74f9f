"""`python -m examples.ray_serve.autoscaling_demo`: Ray on this machine, load for a while, and the number of replicas.

Serves what REWARD_MODEL says, by default the default model. Prints a line whenever the replicas change.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time

# Ray's controller takes what it knows from the environment in which Ray is started.
os.environ.setdefault("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("REWARD_ALLOW_UNAUTHENTICATED", "1")
os.environ.setdefault("REWARD_LOG_LEVEL", "warning")
os.environ["PYTHONPATH"] = os.getcwd()

import httpx
import ray
from ray import serve

from examples.ray_serve.app import ScalingOptions, application

_TIMEOUT_S = 300.0
_PLAIN = {"prompt": "What is two plus two?", "response": "Four."}


class ScoreLoad:
    """Clients that send requests of four new samples until they are stopped."""

    def __init__(self, url: str, n_clients: int) -> None:
        self.statuses: list[int] = []
        self._url, self._stop = url, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(n_clients)]
        for thread in self._threads:
            thread.start()

    @property
    def is_over(self) -> bool:
        """Whether the last answer has arrived."""
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Send no new requests."""
        self._stop.set()

    def _ask(self, client: int) -> None:
        with httpx.Client(base_url=self._url, timeout=_TIMEOUT_S) as http:
            step = 0
            while not self._stop.is_set():
                prompt, step = f"{client} {step}: why is the sky blue? " * 8, step + 1
                samples = [{"prompt": prompt, "response": f"because {i} of the light " * 20} for i in range(4)]
                self.statuses.append(http.post("/score", json={"samples": samples}).status_code)


def main() -> int:
    """The exit code: 1 if a request was not answered with 200, or replicas did not rise and fall."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=75.0, help="how long there is load")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, configure_logging=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": given.port})
    scale = ScalingOptions(max_replicas=2, tokens_per_replica=1000, upscale_delay_s=2.0, downscale_delay_s=20.0,
                  look_back_period_s=11.0, cpus=0.0)  # fmt: skip
    try:
        serve.run(application(scale), name="rewardserve", route_prefix="/")
        return _watch(f"http://127.0.0.1:{given.port}", given.seconds, given.clients)
    finally:
        serve.shutdown()
        ray.shutdown()


def _watch(url: str, seconds: float, n_clients: int) -> int:
    print("reward:", _reward(url))
    load, begun, seen = ScoreLoad(url, n_clients), time.monotonic(), [_replicas()]
    n_running = [1]
    while not (load.is_over and n_running[-1] == 1 and len(seen[-1]) == 1):
        elapsed = time.monotonic() - begun
        if elapsed > seconds:
            load.stop()
        if elapsed > seconds + _TIMEOUT_S:
            break
        if (now := _replicas()) != seen[-1]:
            seen.append(now)
            n_running.append(now.get("RUNNING", 0))
            print(f"{elapsed:6.1f} s  {now}  {len(load.statuses)} requests answered", flush=True)
        threading.Event().wait(0.5)
    print("reward:", _reward(url), f" answered: {len(load.statuses)}, all with 200: {set(load.statuses) == {200}}")
    return 0 if set(load.statuses) == {200} and max(n_running) == 2 and n_running[-1] == 1 else 1


def _reward(url: str) -> float:
    reply = httpx.post(f"{url}/score", json={"samples": [_PLAIN]}, timeout=_TIMEOUT_S)
    return float(reply.raise_for_status().json()["rewards"][0])


def _replicas() -> dict[str, int]:
    """Number of replicas by state."""
    states = serve.status().applications["rewardserve"].deployments["rewardserve"].replica_states
    return {str(getattr(state, "value", state)): n for state, n in states.items()}


if __name__ == "__main__":
    sys.exit(main())
