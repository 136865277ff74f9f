"""What the server itself costs: requests a CPU second with a backend that has no weights.

Starts `python -m service --backend echo` on a free port of the loopback interface and keeps it busy over a few
keep-alive connections with requests of 1, 16, 64 and 256 samples, once as token ids and once as text. No sample is ever
sent twice, so no cache can answer. Every reply is a full one; of each its status, of some its content is checked.

Requests are counted against the CPU seconds (user and system, every thread) of the server's process, so a client on
another core and neighbours on the machine matter little. Cases are interleaved over the rounds; figures are medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import uvloop

from model.backends.echo import END_ID, echo_score

FORMS = ("ids", "text")
SIZES = (1, 16, 64, 256)
_SALT = "100,101,102,103"
"""Four three-digit ids at the start of every sample, replaced in every request: equal in length, never equal twice."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of request."""

    form: str
    n_samples: int


@dataclass(frozen=True, slots=True)
class Load:
    """What the server did in one round of one case."""

    n_requests: int
    cpu_s: float
    wall_s: float
    n_bytes_in: int
    n_bytes_out: int


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    form: str
    n_samples: int
    requests_per_cpu_s: float
    requests_per_wall_s: float
    us_per_request: float
    us_per_sample: float
    kib_in: float
    kib_out: float


def main() -> int:
    """Command-line entry."""
    given = _arguments()
    cases = [Case(form, n) for form in given.forms for n in given.sizes]
    loads: dict[Case, list[Load]] = {case: [] for case in cases}
    with Server(given.flags) as server:
        for round_ in range(given.rounds + 1):
            for case in cases:
                load = uvloop.run(drive(server, case, given, seed=round_))
                if round_:  # the first round only warms up
                    loads[case].append(load)
    rows = [summary(case, loads[case]) for case in cases]
    print(f"echo server, about {given.tokens} ids (or bytes of text) a sample, {given.connections} connections")
    print_table(rows)
    if given.json:
        figures = {"tokens": given.tokens, "connections": given.connections, "http": [asdict(row) for row in rows]}
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="samples a request")
    parser.add_argument(
        "--tokens", type=int, default=200, help="mean ids (or bytes of text) a sample; half to one and a half of it"
    )
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a case in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--flags", nargs="*", default=[], help="more flags for the server")
    return parser.parse_args()


# -- the server -------------------------------------------------------------------------------------------------


class Server:
    """The real thing, as a process of its own."""

    def __init__(self, flags: list[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        command = [sys.executable, "-m", "service", "--port", str(self.port), "--backend", "echo", "--model", "echo"]
        self.process = subprocess.Popen([*command, "--log-level", "warning", *flags], stderr=subprocess.DEVNULL)

    def __enter__(self) -> Server:
        """Wait until it is ready."""
        for _ in range(600):
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended with {self.process.returncode} before it was ready")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz"):
                    return self
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise SystemExit("the server did not become ready in 60 s")

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(30)

    def cpu_s(self) -> float:
        """User and system time of all its threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- the client -------------------------------------------------------------------------------------------------


def lengths(n: int, mean: int, rng: random.Random) -> list[int]:
    """Ragged: from half to one and a half of the mean."""
    return [rng.randint(mean // 2, mean + mean // 2) for _ in range(n)]


def body_of(case: Case, mean: int, rng: random.Random) -> bytes:
    """A request with the salt still in it."""
    samples: list[dict[str, object]] = []
    for n in lengths(case.n_samples, mean, rng):
        if case.form == "ids":
            ids = [rng.randrange(1, 256) for _ in range(n - 4)]
            samples.append({"input_ids": [*map(int, _SALT.split(",")), *ids]})
        else:
            text = " ".join(rng.choice(_WORDS) for _ in range(n // 4))
            samples.append({"prompt": f"[{_SALT}] {text[: n // 2]}", "response": text[n // 2 : n - 18]})
    return json.dumps({"run": "overhead", "step": 1, "samples": samples}, separators=(",", ":")).encode()


_WORDS = Path(__file__).resolve().parent.parent.joinpath("ARCHITECTURE.md").read_text().split()


class Bodies:
    """Requests without end, none of which has a sample of an earlier one."""

    def __init__(self, case: Case, mean: int, seed: int) -> None:
        rng = random.Random(f"{case}{seed}")
        self._templates = [body_of(case, mean, rng) for _ in range(max(2, 64 // case.n_samples))]
        self._n = rng.randrange(156**3)

    def next(self) -> bytes:
        """One more. All samples of a request share a salt; they differ in the rest."""
        self._n += 1
        digits = [100 + self._n // 156**k % 156 for k in range(4)]
        salted = b"[%d,%d,%d,%d" % tuple(digits)
        body = self._templates[self._n % len(self._templates)].replace(b"[" + _SALT.encode(), salted)
        head = (
            f"POST /score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class Client(asyncio.Protocol):
    """One keep-alive connection with one request under way, until it is told to stop."""

    def __init__(self, next_body: Callable[[], bytes]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.n_requests = self.n_bytes_in = self.n_bytes_out = 0
        self.stopping = False
        self.sent = b""
        self._next_body = next_body
        self._reply = bytearray()
        self._length = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._ask()

    def _ask(self) -> None:
        self.sent = self._next_body()
        self.n_bytes_in += len(self.sent)
        self._transport.write(self.sent)

    def data_received(self, data: bytes) -> None:
        self._reply += data
        if self._length < 0:
            end = self._reply.find(b"\r\n\r\n")
            if end < 0:
                return
            if not self._reply.startswith(b"HTTP/1.1 200"):
                self._fail(f"the server said {bytes(self._reply[:300])!r}")
                return
            start = self._reply.index(b"content-length: ") + 16
            self._length = end + 4 + int(self._reply[start : self._reply.index(b"\r\n", start)])
        if len(self._reply) < self._length:
            return
        self.n_requests += 1
        self.n_bytes_out += self._length
        if self.n_requests == 1:
            check(self.sent, bytes(self._reply))
        self._reply.clear()
        self._length = -1
        if self.stopping:
            self._transport.close()
            self.done.set_result(None)
        else:
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the server closed the connection: {exc}")

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(why))


def check(request: bytes, reply: bytes) -> None:
    """Raise unless every sample of the request has its own right score in the reply."""
    asked = json.loads(request.partition(b"\r\n\r\n")[2])["samples"]
    results = json.loads(reply.partition(b"\r\n\r\n")[2])["results"]
    for i, (sample, result) in enumerate(zip(asked, results, strict=True)):
        ids = sample.get("input_ids") or (sample["prompt"] + "\n" + sample["response"]).encode()
        if (result["id"], result["raw"]) != (str(i), echo_score((*ids, END_ID))):
            raise RuntimeError(f"sample {i} has a wrong answer: {result}")


async def drive(server: Server, case: Case, given: argparse.Namespace, seed: int) -> Load:
    """Keep the server busy for some seconds."""
    bodies, loop = Bodies(case, given.tokens, seed), asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: Client(bodies.next), "127.0.0.1", server.port))[1]
        for _ in range(given.connections)
    ]
    await asyncio.sleep(0.2)
    before = [(c.n_requests, c.n_bytes_in, c.n_bytes_out) for c in clients]
    cpu_s, started = server.cpu_s(), time.monotonic()
    await asyncio.wait([c.done for c in clients], timeout=given.seconds)
    cpu_s, wall_s = server.cpu_s() - cpu_s, time.monotonic() - started
    after = [(c.n_requests, c.n_bytes_in, c.n_bytes_out) for c in clients]
    for client in clients:
        client.stopping = True
    async with asyncio.timeout(30):
        await asyncio.gather(*(c.done for c in clients))
    n_requests, n_in, n_out = (sum(a[k] - b[k] for a, b in zip(after, before, strict=True)) for k in range(3))
    return Load(n_requests, cpu_s, wall_s, n_in, n_out)


# -- the figures ------------------------------------------------------------------------------------------------


def summary(case: Case, loads: list[Load]) -> Row:
    """Medians over the rounds."""
    per_cpu_s = statistics.median(load.n_requests / load.cpu_s for load in loads)
    n_requests = sum(load.n_requests for load in loads)
    return Row(
        form=case.form,
        n_samples=case.n_samples,
        requests_per_cpu_s=round(per_cpu_s, 1),
        requests_per_wall_s=round(statistics.median(load.n_requests / load.wall_s for load in loads), 1),
        us_per_request=round(1e6 / per_cpu_s, 1),
        us_per_sample=round(1e6 / per_cpu_s / case.n_samples, 2),
        kib_in=round(sum(load.n_bytes_in for load in loads) / n_requests / 1024, 2),
        kib_out=round(sum(load.n_bytes_out for load in loads) / n_requests / 1024, 2),
    )


def print_table(rows: list[Row]) -> None:
    """One line a case."""
    print(
        f"{'form':6}{'samples':>8}{'req/CPU s':>12}{'req/wall s':>12}{'us/request':>12}{'us/sample':>11}{'KiB in':>9}{'KiB out':>9}"
    )
    for row in rows:
        print(
            f"{row.form:6}{row.n_samples:8}{row.requests_per_cpu_s:12,.0f}{row.requests_per_wall_s:12,.0f}"
            f"{row.us_per_request:12,.0f}{row.us_per_sample:11.1f}{row.kib_in:9.1f}{row.kib_out:9.1f}"
        )


if __name__ == "__main__":
    sys.exit(main())
