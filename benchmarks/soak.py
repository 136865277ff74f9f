"""Soak test of the client: servers are killed, stopped and restarted while workers score; every sample must get a result.

Starts real servers on the loopback, lets blocking and asynchronous clients score without pause, and meanwhile ends one
server after the other, by SIGKILL or SIGTERM, and restarts it on the same port. In the end every sample must have one
result with its id: the reward of an independent computation, or a documented error. For the echo backend that reward is
`echo_score` of the bytes sent; for torch it is the score of an undisturbed server. Prints a table; exit code 1 if a
sample was lost, duplicated or given another number.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from benchmarks.tables import table
from rewardserve.bench.server_process import free_port, start_bound
from rewardserve.model.backends.echo import echo_score
from rewardserve_client import AsyncRewardClient, Backoff, RewardClient, Scores

PLAIN = ("--normalize=false", "--shape=none", "--log-level=error")
BACKOFF = Backoff(first_s=0.05, longest_s=1.0)
TORCH_TOLERANCE = 2e-3  # float32 kernels differ a little with the shape of the batch
EMPTY_EVERY = 53
"""One response in this many is empty: it has a documented error, among others with rewards."""

SampleDict = dict[str, str]
RewardOf = Callable[[SampleDict], float]


@dataclass
class WorkerLog:
    """Requests and results of one worker, written by that worker alone."""

    sent: list[str] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    n_scored: int = 0
    longest_call_s: float = 0.0

    def record_sent(self, samples: Sequence[SampleDict]) -> None:
        """Record samples before they are sent."""
        self.sent += [sample["id"] for sample in samples]

    def record_results(
        self, samples: Sequence[SampleDict], scores: Scores, reward_of: RewardOf, tolerance: float, seconds: float
    ) -> None:
        """Compare every result with the independent reference."""
        self.longest_call_s = max(self.longest_call_s, seconds)
        self.answered.update(result.id for result in scores.results)
        for sample, result in zip(samples, scores.results, strict=True):
            if result.id != sample["id"]:
                self.wrong.append(f"{sample['id']} has a result with the id {result.id}")
            elif result.error is not None:
                self.codes[result.error.code] += 1
                if result.error.code not in ("unavailable", "" if sample["response"] else "empty_response"):
                    self.wrong.append(f"{sample['id']} has the error {result.error.code}")
            elif result.reward is None or not sample["response"]:
                self.wrong.append(f"{sample['id']} got the reward {result.reward}")
            elif not abs(result.reward - reward_of(sample)) <= tolerance:
                self.wrong.append(f"{sample['id']} got the reward {result.reward}, not {reward_of(sample)}")
            else:
                self.n_scored += 1


class RestartingServer:
    """Successive server processes on one port."""

    def __init__(self, flags: Sequence[str], env_model: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.exit_codes: Counter[str] = Counter()
        self._command = [
            sys.executable,
            "-m",
            "rewardserve",
            "serve",
            f"--port={self.port}",
            f"{env_model}",
            *flags,
        ]
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return start_bound(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end(self, number: signal.Signals, timeout_s: float = 60.0) -> None:
        """Send a signal, wait for the end, and record how the server ended."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        else:
            self.exit_codes["ended by itself"] += 1
        code = self.process.wait(timeout_s)
        self.exit_codes[f"{number.name} -> {code}"] += 1

    @property
    def is_listening(self) -> bool:
        """Whether the server listens and thus handles signals; before that, a signal just kills it."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def start_again(self) -> None:
        """Restart on the same port."""
        self.process = self._start()

    def wait_until_ready(self, timeout_s: float) -> None:
        """Raise TimeoutError."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise ChildProcessError(f"the server ended with {self.process.returncode}")
            try:
                if httpx.get(self.url + "/readyz", timeout=2.0).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise TimeoutError("the server did not become ready")

    def __enter__(self) -> Self:
        """For `with`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class CountingTransport(httpx.AsyncBaseTransport):
    """Transport that counts requests and replies."""

    def __init__(self, counts: Counter[str]) -> None:
        self._inner = httpx.AsyncHTTPTransport()
        self._counts = counts

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Forward the request and count its outcome."""
        self._counts["attempts"] += 1
        try:
            response = await self._inner.handle_async_request(request)
        except httpx.HTTPError as error:
            self._counts[type(error).__name__] += 1
            raise
        if response.status_code != 200:
            self._counts[f"replied {response.status_code}"] += 1
        return response

    async def aclose(self) -> None:
        """Hang up."""
        await self._inner.aclose()


class SoakPlan:
    """Shared state of the workers: addresses, samples, end time."""

    def __init__(
        self, given: argparse.Namespace, urls: Sequence[str], texts: Sequence[SampleDict], reward_of: RewardOf
    ) -> None:
        self.urls = urls
        self.until = time.monotonic() + given.seconds
        self.reward_of = reward_of
        self.tolerance = 0.0 if given.backend == "echo" else TORCH_TOLERANCE
        self.most = given.most
        self.deadline_s = given.deadline
        self.texts = texts

    def calls(self, worker: int, seed: int) -> Iterator[list[SampleDict]]:
        """Yield ragged calls until the time is over: groups of four responses to a prompt, each sample with a unique id."""
        rng = random.Random(f"{seed}-{worker}")
        n_calls = 0
        while time.monotonic() < self.until:
            n_calls += 1
            n = rng.randint(1, self.most)
            yield [self._sample(f"{worker}-{n_calls}-{i}", rng, i) for i in range(n)]

    def _sample(self, name: str, rng: random.Random, i: int) -> SampleDict:
        if self.texts:
            return {**rng.choice(self.texts), "id": name}
        response = "" if rng.randrange(EMPTY_EVERY) == 0 else f"response {name} " + "word " * rng.randrange(40)
        return {"id": name, "prompt": f"prompt {name.rpartition('-')[0]} {i // 4}", "response": response}


def main() -> int:
    """Run the soak test. Exit code 1 if a check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=16, help="number of workers: half threads, half asyncio tasks")
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--backend", choices=("echo", "torch"), default="echo")
    parser.add_argument("--model", default="", help="model of the torch backend; default: the embedded model")
    parser.add_argument("--delay-ms", type=float, default=5.0, help="duration of a batch with the echo backend")
    parser.add_argument("--every", type=float, help="seconds between two server ends; default: 2, torch 20")
    parser.add_argument("--most", type=int, help="samples in the largest call; default: 200, torch 8")
    parser.add_argument("--deadline", type=float, default=120.0, help="deadline of a call in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.every = given.every or (2.0 if given.backend == "echo" else 20.0)
    given.most = given.most or (200 if given.backend == "echo" else 8)
    figures = run(given)
    print(table([{"what": name, "n": str(value)} for name, value in figures.items() if name != "wrong"]))
    for line in figures["wrong"]:
        print(f"WRONG: {line}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if figures["wrong"] else 0


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Run one measurement."""
    model = f"echo:delay_ms={given.delay_ms}" if given.backend == "echo" else given.model
    flags = (
        f"--backend={given.backend}",
        "--cache.scores=0",
        *PLAIN,
    )  # without caches, so that every score is computed
    servers = [RestartingServer(flags, model) for _ in range(given.servers)]
    logs, counts = [WorkerLog() for _ in range(given.workers)], [Counter[str]() for _ in range(given.workers)]
    try:
        for server in servers:
            server.wait_until_ready(120.0)
        texts, reward_of = _reference(given, servers[0].url)
        plan = SoakPlan(given, [server.url for server in servers], texts, reward_of)
        started_at = time.monotonic()
        workers = _start_workers(plan, logs, counts, given.seed)
        _inject_faults(servers, plan.until, given.every, random.Random(given.seed))
        for worker in workers:
            worker.join(2 * given.deadline)
        is_stuck = any(worker.is_alive() for worker in workers)
        seconds = time.monotonic() - started_at
    finally:
        for server in servers:
            server.__exit__(None, None, None)
    return figures(servers, logs, sum(counts, Counter()), seconds, is_stuck=is_stuck)


def _start_workers(
    plan: SoakPlan, logs: Sequence[WorkerLog], counts: Sequence[Counter[str]], seed: int
) -> list[threading.Thread]:
    """Start the first half as threads with a blocking client each, the others as tasks that share an asynchronous client."""
    half = len(logs) // 2
    blocking = [
        threading.Thread(target=_score_blocking, args=(plan, i, logs[i], counts[i], seed), daemon=True)
        for i in range(half)
    ]
    tasks = threading.Thread(
        target=lambda: asyncio.run(_score_together(plan, half, logs[half:], counts[half], seed)), daemon=True
    )
    for thread in (workers := [*blocking, tasks]):
        thread.start()
    return workers


def _score_blocking(plan: SoakPlan, worker: int, log: WorkerLog, counts: Counter[str], seed: int) -> None:
    with RewardClient(
        plan.urls, deadline_s=plan.deadline_s, backoff=BACKOFF, transport=CountingTransport(counts)
    ) as client:
        for samples in plan.calls(worker, seed):
            log.record_sent(samples)
            began = time.monotonic()
            scores = client.score(samples, run="soak", on_failure="none")
            log.record_results(samples, scores, plan.reward_of, plan.tolerance, time.monotonic() - began)


async def _score_together(
    plan: SoakPlan, first: int, logs: Sequence[WorkerLog], counts: Counter[str], seed: int
) -> None:
    async def score(worker: int, log: WorkerLog) -> None:
        for samples in plan.calls(worker, seed):
            log.record_sent(samples)
            began = time.monotonic()
            scores = await client.score(samples, run="soak", on_failure="none")
            log.record_results(samples, scores, plan.reward_of, plan.tolerance, time.monotonic() - began)

    transport = CountingTransport(counts)
    async with AsyncRewardClient(plan.urls, deadline_s=plan.deadline_s, backoff=BACKOFF, transport=transport) as client:
        await asyncio.gather(*[score(first + i, log) for i, log in enumerate(logs)])


def _inject_faults(servers: Sequence[RestartingServer], until: float, every_s: float, rng: random.Random) -> None:
    """End and restart one server after the other by either signal until the time is over. All are running in the end."""
    ended: Counter[signal.Signals] = Counter()
    while (left_s := until - time.monotonic()) > 0:
        time.sleep(min(left_s, every_s * rng.uniform(0.5, 1.5)))
        server = rng.choice(servers)
        is_terms_turn = ended[signal.SIGTERM] < ended[signal.SIGKILL]
        number = signal.SIGTERM if is_terms_turn and server.is_listening else signal.SIGKILL
        server.end(number)
        server.start_again()
        ended[number] += 1


def _reference(given: argparse.Namespace, url: str) -> tuple[list[SampleDict], RewardOf]:
    """Texts to send and their reference scores, computed without the disturbed servers."""
    if given.backend == "echo":
        return [], lambda sample: echo_score((*f"{sample['prompt']}\n{sample['response']}".encode(), 0))
    texts = [
        {"prompt": f"What is {i} plus {i + 1}?", "response": f"It is {2 * i + 1}." + " Surely." * (i % 7)}
        for i in range(96)
    ]
    with RewardClient(url, deadline_s=600.0) as client:
        rewards = client.score(texts).rewards
    known = {(t["prompt"], t["response"]): reward for t, reward in zip(texts, rewards, strict=True)}
    assert None not in known.values(), "the undisturbed run has a failure"
    return texts, lambda sample: known[sample["prompt"], sample["response"]] or 0.0


def figures(
    servers: Sequence[RestartingServer],
    logs: Sequence[WorkerLog],
    counts: Counter[str],
    seconds: float,
    *,
    is_stuck: bool,
) -> dict[str, Any]:
    """Figures of the run; `wrong` names every violation."""
    sent = [name for log in logs for name in log.sent]
    answered = sum((log.answered for log in logs), Counter[str]())
    lost = [name for name in sent if answered[name] == 0]
    duplicated = [name for name, n in answered.items() if n > 1]
    strange = set(answered) - set(sent)
    ends = sum((server.exit_codes for server in servers), Counter[str]())
    wrong = [line for log in logs for line in log.wrong][:20]
    wrong += [f"lost: {lost[:3]}"] * bool(lost) + [f"duplicated: {duplicated[:3]}"] * bool(duplicated)
    wrong += [f"never sent: {sorted(strange)[:3]}"] * bool(strange) + ["a worker never ended"] * is_stuck
    n_scored = sum(log.n_scored for log in logs)
    wrong += ["no sample was scored"] * (not n_scored) + ["no server was killed"] * (not ends)
    wrong += [f"a server ended as {how}" for how in ends if how not in ("SIGKILL -> -9", "SIGTERM -> 0")]
    return {
        "seconds": round(seconds, 1),
        "samples sent": len(sent),
        "with the right reward": n_scored,
        **{f"failed: {code}": n for code, n in sum((log.codes for log in logs), Counter[str]()).items()},
        "lost": len(lost),
        "duplicated": len(duplicated),
        "wrong results": sum(len(log.wrong) for log in logs),
        **{f"servers ended: {how}": n for how, n in sorted(ends.items())},
        **{f"requests: {what}": n for what, n in sorted(counts.items())},
        "longest call, s": round(max(log.longest_call_s for log in logs), 2),
        "wrong": wrong,
    }


if __name__ == "__main__":
    sys.exit(main())
