"""Cost of the server without a model: requests a CPU second with a backend that has no weights.

Starts `python -m rewardserve serve --backend echo` on a free port of the loopback interface and keeps it busy over
keep-alive connections with requests of 1, 16, 64 and 256 samples, once as token ids and once as text: single samples
from as many clients as in the other benchmarks, 32, larger requests from 4. No sample is sent twice. Every reply is
complete; its status is always checked, and the scores of some.

Requests are counted against the CPU seconds (user and system, every thread) of the server's process, so a client on
another core and other load on the machine matter little. Cases are interleaved over the rounds; figures are medians.
Then follow the CPU time by component, and the cost of tokenising beside the forward of a 150M model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import uvloop

from benchmarks import component_cost, machine, tables, tokenizing
from benchmarks.traffic import Bodies, Case
from rewardserve.bench.server_process import ServerProcess
from rewardserve.model.backends.echo import END_ID, echo_score

FORMS = ("ids", "text")
SIZES = (1, 16, 64, 256)
TARGETS = {Case("ids", 1): 2500, Case("ids", 64): 500}
"""Requests a CPU second."""
SINGLE_CLIENTS, CLIENTS = 32, 4
_COMPONENTS_FOR = (1, 64)
_TIMEOUT_S = 30.0
ECHO = ("--backend=echo", "echo")


@dataclass(frozen=True, slots=True)
class RoundResult:
    """Figures of the server in one round of one case."""

    n_requests: int
    cpu_s: float
    wall_s: float
    n_bytes_in: int
    n_bytes_out: int


@dataclass(frozen=True, slots=True)
class CaseResult:
    """Figures of one case over all rounds."""

    form: str
    n_samples: int
    connections: int
    requests_per_cpu_s: float
    requests_per_wall_s: float
    us_per_request: float
    us_per_sample: float
    kib_in: float
    kib_out: float
    target: int | None


def main() -> int:
    """Run the measurement. Exit code 1 if a target was missed."""
    given, flags = _arguments()
    print(tables.facts(machine.facts()))
    rows = over_http(given, flags)
    print(f"\necho backend, {given.tokens} ids (or characters) a sample, full replies")
    print(tables.table([_http_cells(row) for row in rows]))
    by_component = [_by_component(row, given) for row in rows if row.form == "ids" and row.n_samples in _COMPONENTS_FOR]
    print("\nCPU time of a request by component, in microseconds (token ids)")
    print(
        tables.table([_component_cells(name, by_component) for name in by_component[0]["components"]])
        if by_component
        else "(not measured)"
    )
    prices = [] if given.no_tokenizing else tokenizing.tokenizing_costs(forward=given.forward)
    print("\ntokenising a sample, on one core")
    print(tables.table([_tokenizing_cells(price) for price in prices]))
    if given.json:
        figures = {
            "facts": machine.facts(),
            "tokens": given.tokens,
            "http": [asdict(row) for row in rows],
            "components": by_component,
            "tokenizing": [asdict(price) for price in prices],
        }
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if any(row.target is not None and row.requests_per_cpu_s < row.target for row in rows) else 0


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], epilog="unknown flags are passed to the server"
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="samples a request")
    parser.add_argument("--tokens", type=int, default=200, help="mean ids a sample; lengths vary by half of it")
    parser.add_argument("--connections", type=int, help=f"default: {SINGLE_CLIENTS} for single samples, else {CLIENTS}")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of a case in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--component-samples", type=int, default=2_000, help="samples in each repetition of each component"
    )
    parser.add_argument("--no-tokenizing", action="store_true", help="do not measure tokenising")
    parser.add_argument("--forward", action="store_true", help="also measure the forward of the 150M model (a minute)")
    parser.add_argument("--json", type=Path)
    return parser.parse_known_args()


def over_http(given: argparse.Namespace, flags: Sequence[str]) -> list[CaseResult]:
    """Measure the real server over real connections."""
    cases = [Case(form, n) for form in given.forms for n in given.sizes]
    loads: dict[Case, list[RoundResult]] = {case: [] for case in cases}
    with ServerProcess("--log-level=warning", *ECHO, *flags) as server:
        for round_ in range(given.rounds + 1):
            for case in cases:
                bodies = Bodies(case, given.tokens, seed=round_)
                load = uvloop.run(drive(server, bodies, _connections(case, given), given.seconds))
                if round_:  # the first round only warms up
                    loads[case].append(load)
    return [summary(case, _connections(case, given), loads[case]) for case in cases]


def _connections(case: Case, given: argparse.Namespace) -> int:
    n: int = given.connections or (SINGLE_CLIENTS if case.n_samples == 1 else CLIENTS)
    return n


# -- the client -------------------------------------------------------------------------------------------------


class KeepAliveClient(asyncio.Protocol):
    """One keep-alive connection with one request in flight, until it is stopped."""

    def __init__(self, next_body: Callable[[], bytes]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.n_requests = self.n_bytes_in = self.n_bytes_out = 0
        self.stopping = False
        self._next_body = next_body
        self._sent = b""
        self._reply = bytearray()
        self._length = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self._send_next()

    def data_received(self, data: bytes) -> None:
        """Send the next request once the reply is complete."""
        self._reply += data
        if self._length < 0:
            self._read_head()
        if self._length < 0 or len(self._reply) < self._length:
            return
        self.n_requests += 1
        self.n_bytes_out += self._length
        if self.n_requests == 1:
            check(self._sent, bytes(self._reply).partition(b"\r\n\r\n")[2])
        self._reply.clear()
        self._length = -1
        if self.stopping:
            self._transport.close()
            self.done.set_result(None)
        else:
            self._send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail unless the client was stopped before."""
        self._fail(f"the server closed the connection: {exc}")

    def _send_next(self) -> None:
        self._sent = self._next_body()
        head = "POST /score HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        sent = (head % len(self._sent)).encode() + self._sent
        self.n_bytes_in += len(sent)
        self._transport.write(sent)

    def _read_head(self) -> None:
        end = self._reply.find(b"\r\n\r\n")
        if end < 0:
            return
        if not self._reply.startswith(b"HTTP/1.1 200"):
            self._fail(f"the server replied {bytes(self._reply[:300])!r}")
            return
        start = self._reply.index(b"content-length: ") + 16
        self._length = end + 4 + int(self._reply[start : self._reply.index(b"\r\n", start)])

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(why))


def check(content: bytes, reply: bytes) -> None:
    """Raise unless the reply has the right score for every sample of the request."""
    samples, results = json.loads(content)["samples"], json.loads(reply)["results"]
    for i, (sample, result) in enumerate(zip(samples, results, strict=True)):
        ids = sample.get("input_ids") or (sample["prompt"] + "\n" + sample["response"]).encode()
        if (result["id"], result["raw"]) != (str(i), echo_score((*ids, END_ID))):
            raise RuntimeError(f"sample {i} has a wrong result: {result}")


async def drive(server: ServerProcess, bodies: Bodies, connections: int, seconds: float) -> RoundResult:
    """Keep the server busy for `seconds`."""
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: KeepAliveClient(bodies.next_body), "127.0.0.1", server.port))[1]
        for _ in range(connections)
    ]
    await asyncio.sleep(0.2)
    before = [(c.n_requests, c.n_bytes_in, c.n_bytes_out) for c in clients]
    cpu_s, started = server.cpu_s(), time.monotonic()
    await asyncio.wait([c.done for c in clients], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    cpu_s, wall_s = server.cpu_s() - cpu_s, time.monotonic() - started
    after = [(c.n_requests, c.n_bytes_in, c.n_bytes_out) for c in clients]
    for client in clients:
        client.stopping = True
    async with asyncio.timeout(_TIMEOUT_S):
        await asyncio.gather(*(c.done for c in clients))
    n_requests, n_in, n_out = (sum(a[k] - b[k] for a, b in zip(after, before, strict=True)) for k in range(3))
    return RoundResult(n_requests, cpu_s, wall_s, n_in, n_out)


# -- the figures ------------------------------------------------------------------------------------------------


def summary(case: Case, connections: int, loads: Sequence[RoundResult]) -> CaseResult:
    """Medians over the rounds."""
    per_cpu_s = statistics.median(load.n_requests / load.cpu_s for load in loads)
    n_requests = sum(load.n_requests for load in loads)
    return CaseResult(
        form=case.form,
        n_samples=case.n_samples,
        connections=connections,
        requests_per_cpu_s=round(per_cpu_s, 1),
        requests_per_wall_s=round(statistics.median(load.n_requests / load.wall_s for load in loads), 1),
        us_per_request=round(1e6 / per_cpu_s, 1),
        us_per_sample=round(1e6 / per_cpu_s / case.n_samples, 2),
        kib_in=round(sum(load.n_bytes_in for load in loads) / n_requests / 1024, 2),
        kib_out=round(sum(load.n_bytes_out for load in loads) / n_requests / 1024, 2),
        target=TARGETS.get(case),
    )


def _by_component(row: CaseResult, given: argparse.Namespace) -> dict[str, dict[str, float]]:
    found = component_cost.measure(
        Case(row.form, row.n_samples), given.tokens, row.connections, given.component_samples
    )
    rest = {"http": row.us_per_request - sum(found.values())}
    return {
        "request": {"samples": row.n_samples},
        "components": {name: round(us, 1) for name, us in (found | rest).items()},
    }


def _http_cells(row: CaseResult) -> dict[str, str]:
    return {
        "form": row.form,
        "samples": str(row.n_samples),
        "clients": str(row.connections),
        "req/CPU s": f"{row.requests_per_cpu_s:,.0f}",
        "target": "-" if row.target is None else f"{row.target:,}",
        "req/wall s": f"{row.requests_per_wall_s:,.0f}",
        "us/request": f"{row.us_per_request:,.0f}",
        "us/sample": f"{row.us_per_sample:.1f}",
        "KiB in": f"{row.kib_in:.1f}",
        "KiB out": f"{row.kib_out:.1f}",
    }


def _component_cells(name: str, by_component: Sequence[dict[str, dict[str, float]]]) -> dict[str, str]:
    us = {f"{found['request']['samples']:.0f} samples": f"{found['components'][name]:,.0f}" for found in by_component}
    return (
        {"component": name}
        | us
        | {"meaning": component_cost.MEANINGS.get(name, "sockets, uvicorn, the event loop and the rest")}
    )


def _tokenizing_cells(price: tokenizing.TokenizingCost) -> dict[str, str]:
    return {
        "tokenizer": price.tokenizer,
        "workload": price.workload,
        "tokens": f"{price.tokens:.0f}",
        "us/sample": f"{price.encode_us:.0f}",
        "us/token": f"{price.encode_us / price.tokens:.2f}",
        "plain us/sample": f"{price.plain_us:.0f}",
        "forward ms": "-" if price.forward_ms is None else f"{price.forward_ms:,.0f}",
        "of the forward": "-" if price.share is None else f"{100 * price.share:.3f} %",
    }


if __name__ == "__main__":
    sys.exit(main())
