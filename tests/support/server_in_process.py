"""A server in the test's process: its answers, without the seconds that a process takes to import torch and load a model.

Not for signals, exit codes, logs, limits of connections or anything else that belongs to a process.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from unittest.mock import patch

import httpx
import uvicorn

from rewardserve.service.app import running_app
from rewardserve.service.cli.options import from_command_line
from rewardserve.service.settings import ServeSettings
from tests.support.service_server import TIMEOUT_S, Api


@contextmanager
def serve_in_process(*flags: str) -> Iterator[Api]:
    """`rewardserve serve FLAGS` on a free port, on a thread."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("REWARD_")}
    with patch.dict(os.environ, clean, clear=True):
        settings = from_command_line(ServeSettings, "rewardserve serve", flags)
    ready: Future[uvicorn.Server] = Future()
    # The tests' own objects are frozen (`tests/conftest.py`), and those of a server are to be freed after it.
    with patch("rewardserve.service.app.tune_garbage_collector"), socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(_serve(settings, listener, ready)))
        thread.start()
        try:
            server = ready.result(TIMEOUT_S)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
                yield Api(url, client)
            server.should_exit = True
        finally:
            thread.join(TIMEOUT_S)


async def _serve(settings: ServeSettings, listener: socket.socket, ready: Future[uvicorn.Server]) -> None:
    try:
        async with running_app(settings, settings.read_keys()) as (application, _):
            server = uvicorn.Server(uvicorn.Config(application.app, lifespan="off", ws="none", log_config=None))
            ready.set_result(server)  # the listener already accepts connections
            await server.serve([listener])
    except BaseException as error:
        if not ready.done():
            ready.set_exception(error)
