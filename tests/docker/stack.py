"""The services of docker-compose.yml, running: how to command them, and how to ask them over the ports that they publish."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx

from tests.docker.engine import Engine

PATIENCE_S = 300.0
EGG = [
    {"prompt": "How do I boil an egg?", "response": "Eight minutes in boiling water, then cool it under the tap."},
    {"prompt": "How do I boil an egg?", "response": "Figure it out yourself, idiot."},
]
"""The example of the README."""


class Stack:
    """One project of Compose, made of the files of a checkout and one more."""

    def __init__(self, engine: Engine, checkout: Path, override: Path, told: dict[str, str]) -> None:
        self.engine, self.told = engine, told
        self._checkout = checkout
        self._files = ("--file", str(checkout / "docker-compose.yml"), "--file", str(override))
        self.key = (checkout / "secrets/trainer.key").read_text().strip()
        self.server, self.prometheus, self.receiver = (
            httpx.Client(base_url=f"http://127.0.0.1:{told[port]}", timeout=60.0)
            for port in ("PORT", "PROMETHEUS_PORT", "RECEIVER_PORT")
        )

    def compose(self, *arguments, check=True, timeout=PATIENCE_S):
        """`docker compose` in the checkout."""
        project = ("--project-name", "rewardserve-test")
        return self.engine.run(
            "compose", *project, *self._files, *arguments, check=check, timeout=timeout, folder=self._checkout, env=self.told
        )  # fmt: skip

    def up(self, *services, wait_s=PATIENCE_S):
        """Start these and what they need; return when they are healthy."""
        self.compose("up", "--detach", "--no-build", "--pull", "never", "--wait", *services, timeout=wait_s)

    def down(self):
        """End everything; nothing is left."""
        for client in (self.server, self.prometheus, self.receiver):
            client.close()
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "20")

    def container(self, service):
        """The id of the one that runs."""
        return self.compose("ps", "--all", "--quiet", service).split()[-1]

    def inside(self, service, *command):
        """A command in a container: its exit code and what it said."""
        done = self.compose("exec", "--no-TTY", service, *command, check=False)
        return done.returncode, done.stdout

    def score(self, samples, key=None, **run):
        """The reply of `POST /score`."""
        headers = {"authorization": f"Bearer {key or self.key}"}
        return self.server.post("/score", headers=headers, json={"samples": samples, **run})

    def query(self, expression):
        """The values that Prometheus has for it now."""
        reply = self.prometheus.get("/api/v1/query", params={"query": expression}).raise_for_status().json()
        return [float(each["value"][1]) for each in reply["data"]["result"]]

    def heard(self, alert):
        """The messages of this name that reached the webhook."""
        return [each for each in self.receiver.get("/").json() if each["labels"]["alertname"] == alert]


def wait_for(what, seconds=PATIENCE_S):
    """What `what` gives as soon as it is true. A server that is away is no answer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if answer := what():
                return answer
        except httpx.HTTPError:
            pass
        threading.Event().wait(0.5)
    raise AssertionError(f"not within {seconds:g} s")
