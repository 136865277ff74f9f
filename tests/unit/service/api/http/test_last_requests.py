"""A server that ends answers what is already on its way: on connections that wait to be accepted, and on idle ones."""

from __future__ import annotations

import asyncio
import socket
from functools import partial

import pytest
import uvicorn
import uvloop

from rewardserve.service.api.http.load_shedder import LoadShedder
from rewardserve.service.api.http.protocol import ConnectionLimits, Connections, HttpProtocol
from rewardserve.service.app import _UvicornServer
from tests.support.service_fakes import HttpLog

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


async def answer(_scope, _receive, send):
    await send(
        {
            "type": "http.response.start",
            "status": 503,
            "headers": [(b"content-length", b"0"), (b"connection", b"close")],
        }
    )
    await send({"type": "http.response.body", "body": b""})


async def started():
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    shared = Connections(ConnectionLimits(64, 60.0, 60.0), HttpLog(), LoadShedder(frozenset(), None, HttpLog()))
    server = _UvicornServer(
        uvicorn.Config(answer, http=partial(HttpProtocol, shared=shared), ws="none", lifespan="off", log_config=None)
    )
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listening])
    return server, listening


@pytest.mark.parametrize("n", [1, 40])
def test_connections_that_wait_to_be_accepted_are_answered(n):
    async def story():
        server, listening = await started()
        clients = [
            socket.create_connection(listening.getsockname(), timeout=20) for _ in range(n)
        ]  # the event loop has no turn in between
        for client in clients:
            client.sendall(GET)
        await server.shutdown([listening])
        return clients

    clients = uvloop.run(story())
    for client in clients:
        with client:
            assert client.recv(9999).startswith(b"HTTP/1.1 503")
            assert client.recv(9999) == b""


def test_a_request_on_an_idle_connection_is_answered_before_it_is_closed():
    async def story():
        server, listening = await started()
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        while not server.server_state.connections:  # noqa: ASYNC110  # turns of the loop, not a time
            await asyncio.sleep(0)
        ending = asyncio.create_task(server.shutdown([listening]))
        while server.servers[0].is_serving():  # noqa: ASYNC110
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        writer.write(GET)
        reply = await reader.read()
        await ending
        writer.close()
        await writer.wait_closed()
        return reply

    assert uvloop.run(story()).startswith(b"HTTP/1.1 503")
