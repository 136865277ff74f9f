"""A webhook in a container: keeps the alerts that are posted to it, and gives them to whoever asks. Standard library only."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HEARD = []


class Ear(BaseHTTPRequestHandler):
    """POST says something, GET asks what was said."""

    def do_POST(self):
        """Keep the alerts of a message of Alertmanager."""
        HEARD.extend(json.loads(self.rfile.read(int(self.headers["content-length"])))["alerts"])
        self._answer([])

    def do_GET(self):
        """Everything so far; also what the health check of the image asks for."""
        self._answer(HEARD)

    def _answer(self, said):
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


ThreadingHTTPServer(("0.0.0.0", 8000), Ear).serve_forever()
