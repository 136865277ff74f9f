"""Receive webhooks on a free port of the loopback interface. Standard library only."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class WebhookRequest(NamedTuple):
    """A received request."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def message(self) -> Any:
        """The body, parsed from JSON."""
        return json.loads(self.body)


@contextmanager
def receive_webhooks(on_request: Callable[[WebhookRequest], None]) -> Iterator[str]:
    """Call `on_request` on a thread with every POST while the body runs, and reply 204. Yield the address of the receiver."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            on_request(WebhookRequest(dict(self.headers), body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log no requests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
