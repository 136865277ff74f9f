"""Local processes for a run over HTTP: a server with the gym's models, and a receiver of its alerts.

Both listen on free ports of the loopback interface. Independent of policies and gold.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

from benchmarks.webhook_receiver import WebhookRequest, receive_webhooks
from rewardserve.bench.server_process import start_bound

READY: Final = re.compile(r"is ready: .* on (http://\S+)")
TIMEOUT_S: Final = 60.0
_READY_S: Final = 300.0
"""A model is loaded and verified first, on a busy machine too."""
_PAUSE_S: Final = 0.05


class GymServer:
    """A program of servers with these flags as a separate process at `url`: by default `gym.serving`."""

    def __init__(self, flags: Sequence[str], program: Sequence[str] = ("gym.serving",)) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("REWARD_")}
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process that writes it
        self.process = start_bound(
            [sys.executable, "-m", *program, "--port=0", "--log-level=error", *flags],
            env={**clean, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
        )
        self.url = ""

    def __enter__(self) -> GymServer:
        """Wait until the server is ready. Raise RuntimeError with the end of its log if it fails."""
        deadline = time.monotonic() + _READY_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if found := READY.search(self._log()):
                self.url = found.group(1)
                return self
            time.sleep(_PAUSE_S)
        code, log = self.process.poll(), self._log()
        self.__exit__()
        reason = f"is not ready after {_READY_S:g} s" if code is None else f"ended with exit code {code}"
        raise RuntimeError(f"the server {reason}:\n{log}")

    def __exit__(self, *_: object) -> None:
        """Stop the server, by SIGTERM if possible."""
        self.process.terminate()
        try:
            self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._stderr.close()

    def _log(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()


class ReceivedAlert(NamedTuple):
    """Received alert, and the step of the trainer at its arrival."""

    step: int
    alert: dict[str, Any]


class AlertReceiver:
    """Receives alerts by webhook at `url`. The trainer sets `step`."""

    def __init__(self) -> None:
        self.step = 0
        self.received: list[ReceivedAlert] = []
        self.url = ""
        self._open = ExitStack()

    def __enter__(self) -> AlertReceiver:
        """Listen."""
        self.url = self._open.enter_context(receive_webhooks(self._add))
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self._open.close()

    @property
    def paged(self) -> bool:
        """Whether any alert was a page."""
        return any(received.alert["severity"] == "page" for received in self.received)

    def _add(self, request: WebhookRequest) -> None:
        self.received.append(ReceivedAlert(self.step, request.message))
