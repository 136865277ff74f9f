"""What stands around a run that is scored over HTTP: a server with the gym's models, and the receiver of its alerts.

Both on the loopback interface, on ports that are free. It knows neither policies nor gold.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple

READY: Final = re.compile(r"is ready: .* on (http://\S+)")
TIMEOUT_S: Final = 60.0
_PAUSE_S: Final = 0.05


class GymServer:
    """`gym.serving` with these flags, as a process of its own. `url` is where it is."""

    def __init__(self, flags: Sequence[str]) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("REWARD_")}
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  # it is closed with the process that writes it
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gym.serving", "--port=0", "--log-level=error", *flags],
            env={**clean, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
        )
        self.url = ""

    def __enter__(self) -> GymServer:
        """Wait until it is ready. RuntimeError with its own words if it never is."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if found := READY.search(self._words()):
                self.url = found.group(1)
                return self
            time.sleep(_PAUSE_S)
        words = self._words()
        self.__exit__()
        raise RuntimeError(f"the server is not ready (exit code {self.process.returncode}):\n{words}")

    def __exit__(self, *_: object) -> None:
        """End it, in order if it can."""
        self.process.terminate()
        try:
            self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._stderr.close()

    def _words(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()


class ReceivedAlert(NamedTuple):
    """An alert as it was told, and the step that the trainer was at when it arrived."""

    step: int
    alert: dict[str, Any]


class AlertReceiver:
    """Hears alerts by webhook at `url`. The trainer says at which `step` it is."""

    def __init__(self) -> None:
        self.step = 0
        self.received: list[ReceivedAlert] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}/alerts"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> AlertReceiver:
        """Listen."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def paged(self) -> bool:
        """Whether any alert was a page."""
        return any(received.alert["severity"] == "page" for received in self.received)


def _handler_of(receiver: AlertReceiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.received.append(ReceivedAlert(receiver.step, json.loads(body)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: every request is an alert, and those are kept."""

    return Handler
