"""Where pip of this machine looks for packages, for pip in a container: folders are served on the loopback, addresses are named.

Read from pip's own configuration when it is needed; a folder without a single package is no help and is left out.
"""

from __future__ import annotations

import ast
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zlib import crc32

NAMES = {"index-url": "PIP_INDEX_URL", "extra-index-url": "PIP_EXTRA_INDEX_URL", "find-links": "PIP_FIND_LINKS"}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def build_arguments() -> Iterator[list[str]]:
    """`--build-arg NAME=addresses` for what is configured, good until the `with` is left."""
    with contextlib.ExitStack() as stack:
        given = []
        for setting, places in configured().items():
            addresses = [stack.enter_context(_address(place)) for place in places]
            given += ["--build-arg", f"{NAMES[setting]}={' '.join(addresses)}"]
        yield given


def configured() -> dict[str, list[str]]:
    """The values of each setting that has any."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    found: dict[str, list[str]] = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        setting = name.rpartition(".")[2]
        if setting in NAMES:
            places = found.setdefault(setting, [])
            places += [place for place in str(ast.literal_eval(value)).split() if place not in places]
    return found


@contextlib.contextmanager
def _address(place: str) -> Iterator[str]:
    """`place` as a container on this machine's network can reach it."""
    folder = Path(place.removeprefix("file://"))
    if not folder.is_dir():
        yield place
        return
    # What an index links to lies beside it: `simple/` alone would lead nowhere.
    root = folder.parent if folder.name == "simple" else folder
    server = _server(root)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{folder.relative_to(root)}/".replace("/./", "/")
    finally:
        server.shutdown()
        server.server_close()


def _server(root: Path) -> ThreadingHTTPServer:
    """On the same port each time, if it is free: layers are kept by what they were made with, this address included."""
    usual = 20_000 + crc32(bytes(root)) % 10_000
    serve = partial(_Quiet, directory=str(root))
    try:
        return ThreadingHTTPServer(("127.0.0.1", usual), serve)
    except OSError:
        return ThreadingHTTPServer(("127.0.0.1", 0), serve)
