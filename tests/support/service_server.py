"""Real server processes on free ports of the loopback, and their ends."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx

from tests.support.documented import check
from tests.support.forked import MODEL, SERVICE, ForkedProcess

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 60.0  # a busy machine with slow cores loads a model slowly
LISTENING = re.compile(r"listening on (https?://\S+)")
READY = re.compile(r"is ready")


class Api:
    """What a test asks a running server, with a client of it."""

    def __init__(self, url: str, client: httpx.Client):
        self.url, self.client = url, client

    def score(self, *samples, **headers):
        body = json.dumps({"samples": list(samples)})  # ASCII: the encoder of httpx cannot write a lone surrogate
        named = {k.replace("_", "-"): v for k, v in headers.items()}
        return self.client.post("/score", content=body, headers={"content-type": "application/json"} | named)

    def metric(self, name, **labels):
        from prometheus_client.parser import text_string_to_metric_families

        text = self.client.get("/metrics").text
        found = [s for family in text_string_to_metric_families(text) for s in family.samples if s.name == name]
        return sum(s.value for s in found if labels.items() <= s.labels.items())


class Server(Api):
    """`rewardserve serve` with these flags. `lines` has its output. `tls`: the client's verification of the server.

    A fork of a process that has imported its libraries (`forked`), unless it has an `env` or is to be `fresh`.
    """

    def __init__(
        self, *flags, module="rewardserve", env=None, wait_for=READY, patience_s=TIMEOUT_S, port=0, tls=True, fresh=False
    ):  # fmt: skip
        self._patience_s = patience_s
        arguments = [f"--port={port}", *flags]
        self.process = _start_fresh(module, arguments, env) if fresh or env else _fork(module, arguments)
        self.lines: list[str] = []
        self._new: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.url = self._find(LISTENING).group(1)
            if wait_for is not None:
                self._find(wait_for)
        except BaseException:  # the caller gets no object with which it could end the server later
            self.process.kill()
            self.ended()
            raise
        client = httpx.Client(base_url=self.url, timeout=patience_s, verify=tls, event_hooks={"response": [check]})
        super().__init__(self.url, client)

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            self._new.put(line)
        self._new.put(None)

    def _find(self, pattern):
        """The first unread line that matches. Blocks; fails when the process ends before it."""
        while (line := self._new.get(timeout=self._patience_s)) is not None:
            if found := pattern.search(line):
                return found
        raise AssertionError(f"the server ended without saying {pattern.pattern!r}:\n{self.log}")

    def wait_for(self, pattern):
        return self._find(re.compile(pattern))

    @property
    def log(self):
        return "".join(self.lines)

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def ended(self):
        """The exit code."""
        code = self.process.wait(self._patience_s)
        self._reader.join(TIMEOUT_S)
        return code

    def close(self):
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.ended()
        self.process.stderr.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def drill(model, *flags, **kwargs):
    """A server with a model of `tests.support.service_backends`."""
    return Server("--backend=drill", f"{model}", *flags, module="tests.support.service_backends", **kwargs)


def run_to_end(*flags, module="rewardserve", env=None, patience_s=TIMEOUT_S):
    """Run a server that is expected to end by itself. Return its exit code and output."""
    process = _start_fresh(module, flags, env) if env else _fork(module, flags)
    with process.stderr:
        output = process.stderr.read()
    return process.wait(patience_s), output


def _start_fresh(module, arguments, env):
    return subprocess.Popen(
        [sys.executable, "-m", module, "serve", *arguments], cwd=ROOT, env=_without_settings() | (env or {}),
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def _fork(module, arguments):
    has_model = module == "rewardserve" and "--backend=echo" not in arguments
    return ForkedProcess(MODEL if has_model else SERVICE, [module, "serve", *arguments], _without_settings())


def _without_settings():
    return {k: v for k, v in os.environ.items() if not k.startswith("REWARD_")}


def wait_until(condition, seconds=4.0):
    """Repeat a check until it holds: every check is a request to the server, so this is no busy loop."""
    for _ in range(int(seconds * 500)):
        if condition():
            return
        threading.Event().wait(0.002)
    raise AssertionError("it never came to be")
