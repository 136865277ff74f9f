"""Correct clients over plain sockets, each with one connection, which record how every request ended.

Their samples are unique texts, scored by echo, so each reply can be checked without a server.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from rewardserve.model.backends.echo import echo_score


@dataclass
class RequestLog:
    """Outcomes by request id: `answered`, the code of an error reply, `unreachable` or `broken`."""

    ended: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.ended.values())

    def ids(self, how: str) -> set[str]:
        return {name for name, ended in self.ended.items() if ended == how}


class _HungUp(Exception):
    """The server has announced it."""


class LoadClients:
    """`with LoadClients(url, 32) as clients:` they send requests until the end of the block, or until the server is gone."""

    def __init__(self, url: str, n: int, *, n_samples: int = 4, gives_up: bool = True) -> None:
        self.book = RequestLog()
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port, self._n, self._n_samples, self._gives_up = int(port), n, n_samples, gives_up
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), daemon=True)

    def wait_for(self, n: int, how: str = "answered", patience_s: float = 60.0) -> None:
        """Wait until so many requests have this outcome."""
        until = time.monotonic() + patience_s
        while self.book.counts[how] < n:
            assert time.monotonic() < until, self.book.counts
            threading.Event().wait(0.005)

    async def _all(self) -> None:
        await asyncio.gather(*[self._one(i) for i in range(self._n)])

    async def _one(self, client: int) -> None:
        n = 0
        while not self._stop.is_set():
            n += 1
            name = f"{client}.{n}"
            try:
                reader, writer = await asyncio.open_connection(self._host, self._port)
            except OSError:
                self.book.ended[name] = "unreachable"
                if self._gives_up:
                    return
                await asyncio.sleep(0.05)
                continue
            try:
                while not self._stop.is_set():
                    n += 1
                    name = f"{client}.{n}"
                    await self._ask(name, reader, writer)
            except _HungUp:
                pass
            except (OSError, asyncio.IncompleteReadError):
                self.book.ended[name] = "broken"
            finally:
                writer.close()

    async def _ask(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        texts = [f"text {name} {i}" for i in range(self._n_samples)]
        body = json.dumps({"samples": [{"text": text} for text in texts]}).encode()
        began = time.monotonic()
        head = f"POST /score HTTP/1.1\r\nhost: localhost\r\nx-request-id: {name}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        reply = json.loads(await reader.readexactly(length))
        self.book.seconds.append(time.monotonic() - began)
        if " 200 " not in head.partition("\r\n")[0]:
            self.book.ended[name] = reply["error"]["code"]
            if "connection: close" in head:
                raise _HungUp
            await asyncio.sleep(0.005)
            return
        self.book.ended[name] = "answered"
        if [r["raw"] for r in reply["results"]] != [echo_score((*text.encode(), 0)) for text in texts]:
            self.book.wrong.append(name)

    def __enter__(self) -> LoadClients:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(60.0)
        assert not self._thread.is_alive(), "a client never ended"
