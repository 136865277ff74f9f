"""The server on a real Ray Serve: the same rewards, replicas that follow the queue, and nothing accepted is lost."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

import httpx
import pytest
from pydantic_settings import SettingsError

from tests.support.service_server import ROOT, drill

ray = pytest.importorskip("ray", reason="Ray is not installed; make test-ray has it in an environment of its own")
serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed; make test-ray has it")

PATIENCE_S = 300.0  # a replica is a Python that imports everything and loads a model, on slow cores
N_REQUESTS = 8
PLAIN = {"prompt": "What is two plus two?", "response": "Four."}


class Asked:
    """Requests of which nobody waits for another; `statuses` has those that were answered.

    `what` makes their texts new: what was scored before needs no forward.
    """

    def __init__(self, url, what, n=N_REQUESTS):
        self._url, self._what = url, what
        self.statuses = []
        self._threads = [threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(n)]
        for thread in self._threads:
            thread.start()

    def _ask(self, i):
        samples = [{"prompt": f"{self._what} {i}", "response": f"answer {j} " * 30} for j in range(4)]
        self.statuses.append(
            httpx.post(f"{self._url}/score", json={"samples": samples}, timeout=PATIENCE_S).status_code
        )

    def answered(self):
        for thread in self._threads:
            thread.join(PATIENCE_S)
        return self.statuses


class World:
    """Ray on this machine, and the server on it. While the gate is there, every forward waits at it."""

    def __init__(self, folder):
        self.gate = folder / "gate"
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S)
        settings = {"REWARD_BACKEND": "drill", "REWARD_MODEL": self.model, "REWARD_ALLOW_UNAUTHENTICATED": "1"}
        # The controller and the proxy are processes of their own, which take what they know from here.
        os.environ |= {"RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        hook = "tests.ray_serve.drilled.register"
        ray.init(
            num_cpus=2, include_dashboard=False, configure_logging=False,
            runtime_env={"env_vars": {**settings, "PYTHONPATH": str(ROOT)}, "worker_process_setup_hook": hook},
        )  # fmt: skip
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        from examples.ray_serve.app import ScalingOptions, application

        scale = ScalingOptions(max_replicas=2, tokens_per_replica=200, upscale_delay_s=0.0, downscale_delay_s=1.0,
                      look_back_period_s=11.0, cpus=0.0)  # fmt: skip
        serve.run(application(scale), name="rewardserve", route_prefix="/")

    @property
    def model(self):
        return f"waits-while-there-is:{self.gate}"

    def close_gate(self):
        os.mkfifo(self.gate)

    def open_gate(self):
        descriptor = os.open(self.gate, os.O_WRONLY)  # returns once a forward is inside
        self.gate.unlink()
        os.close(descriptor)

    def replicas(self):
        """How many there are, by their state."""
        application = serve.status().applications.get("rewardserve")
        deployment = application.deployments.get("rewardserve") if application else None
        states = deployment.replica_states if deployment else {}
        return {str(getattr(state, "value", state)): n for state, n in states.items()}

    def wait_until(self, condition):
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.replicas()
            threading.Event().wait(0.25)

    def queue(self):
        (line,) = [
            line for line in self.client.get("/metrics").text.splitlines()
            if line.startswith("rewardserve_queue_tokens ")
        ]  # fmt: skip
        return float(line.split()[1])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    sys.path.insert(0, str(ROOT))
    there = World(tmp_path_factory.mktemp("ray"))
    yield there
    there.client.close()
    serve.shutdown()
    ray.shutdown()


def test_a_reward_through_the_proxy_is_that_of_the_server_on_its_own_socket(world):
    with drill(world.model) as server:
        own = server.score(PLAIN).json()
    through = world.client.post("/score", json={"samples": [PLAIN]}).json()
    assert through["rewards"] == own["rewards"]
    assert through["contract"] == own["contract"]


def test_errors_keep_their_shape(world):
    reply = world.client.post("/score", content=b"{")
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json")


def test_replicas_come_while_tokens_wait_and_go_when_none_do(world):
    assert world.replicas() == {"RUNNING": 1}
    world.close_gate()
    asked = Asked(world.url, "rise")
    world.wait_until(lambda: world.replicas() == {"RUNNING": 2})
    world.open_gate()
    assert asked.answered() == [200] * N_REQUESTS
    world.wait_until(lambda: world.replicas() == {"RUNNING": 1})


def test_serve_run_can_be_told_how_far_to_scale():
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    from examples.ray_serve.app import application

    call_user_app_builder_with_args_if_necessary(application, {"max_replicas": "3"})
    with pytest.raises(ValueError, match="replicas"):
        call_user_app_builder_with_args_if_necessary(application, {"replicas": "3"})


async def test_without_keys_it_must_be_said_that_anybody_may_use_it(monkeypatch):
    from examples.ray_serve.app import Replica

    monkeypatch.delenv("REWARD_ALLOW_UNAUTHENTICATED", raising=False)
    with pytest.raises(SettingsError, match="REWARD_ALLOW_UNAUTHENTICATED"):
        await Replica.func_or_class.__init__(object())


def test_what_was_accepted_is_answered_while_everything_is_taken_down(world):
    world.close_gate()
    asked = Asked(world.url, "down")
    world.wait_until(lambda: world.queue() > 0)
    serve.delete("rewardserve", _blocking=False)
    world.wait_until(lambda: "RUNNING" not in world.replicas())
    world.open_gate()
    assert asked.answered() == [200] * N_REQUESTS
