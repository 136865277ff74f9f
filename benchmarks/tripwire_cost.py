"""Cost of trip wires: the server with and without them, in alternation, and the inspection time of a sample by its length.

    python -m benchmarks.tripwire_cost

Echo backend, requests of text and of ids, none sent twice. Exit code 1 if the wires take 5 % of the requests a CPU
second.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import uvloop

from benchmarks import machine, tables
from benchmarks.models import corpus
from benchmarks.overhead import CLIENTS, ECHO, SINGLE_CLIENTS, drive
from benchmarks.traffic import Bodies, Case
from rewardserve.bench.server_process import ServerProcess
from rewardserve.model.backends import ModelSpec, echo
from rewardserve.model.conversation import Sample
from rewardserve.model.encoding import Encoded
from rewardserve.model.reward import EnsembleMember, Reward, RewardSettings, build_pipeline
from rewardserve.model.traits import Lexicon
from rewardserve.service.clock import MonotonicClock
from rewardserve.service.inference.rewards import ScoredRow
from rewardserve.service.models.registry import tune_garbage_collector
from rewardserve.service.observability import logs
from rewardserve.service.observability.metrics import Metrics
from rewardserve.service.observability.tripwire_report import TripwireReport
from rewardserve.service.tripwires.baseline import BaselineSource
from rewardserve.service.tripwires.cpu_budget import CpuBudget
from rewardserve.service.tripwires.io.alert_sender import AlertSender
from rewardserve.service.tripwires.io.run_watcher import RunWatcher
from rewardserve.service.tripwires.run_context import RunContext
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import MonitorLimits

CASES = (Case("text", 1), Case("text", 64), Case("ids", 64))
MOST = 0.05
LENGTHS = (200, 1_000, 4_000, 16_000)
_OFF = ["--tripwires.cpu-share=0"]


def main() -> int:
    """Command-line entry."""
    given = _arguments()
    print(tables.facts(machine.facts()))
    rates: dict[tuple[Case, bool], list[float]] = {}
    for round_ in range(given.rounds):
        for has_wires in (False, True):
            with ServerProcess("--log-level=warning", *ECHO, *([] if has_wires else _OFF)) as server:
                for case in CASES:
                    rates.setdefault((case, has_wires), []).append(_rate(server, case, given.seconds, round_))
    shares = {
        case: 1.0 - statistics.median(rates[case, True]) / statistics.median(rates[case, False]) for case in CASES
    }
    print(tables.table([_line(case, rates[case, False], rates[case, True], shares[case]) for case in CASES]))
    print("\ninspection of one sample, all wires on")
    print(tables.table([{"characters": f"{n:,}", "us": f"{_inspection_us(n):.0f}"} for n in LENGTHS]))
    return int(max(shares.values()) >= MOST)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of a case in a round")
    return parser.parse_args()


def _rate(server: ServerProcess, case: Case, seconds: float, round_: int) -> float:
    """Requests a CPU second."""
    clients = SINGLE_CLIENTS if case.n_samples == 1 else CLIENTS
    uvloop.run(drive(server, Bodies(case, 200, seed=-1), clients, seconds / 3))
    load = uvloop.run(drive(server, Bodies(case, 200, seed=round_), clients, seconds))
    return load.n_requests / load.cpu_s


def _line(case: Case, off: list[float], on: list[float], share: float) -> dict[str, str]:
    return {
        "form": case.form,
        "samples": str(case.n_samples),
        "without wires, req/CPU s": f"{statistics.median(off):,.0f}",
        "with wires": f"{statistics.median(on):,.0f}",
        "cost": f"{share:.1%}",
    }


def _inspection_us(n_chars: int) -> float:
    """Microseconds for one sample of `n_chars` characters and a quarter as many ids."""
    words, rng = corpus().split(), random.Random(n_chars)
    rows = []
    for _ in range(64):
        text = " ".join(rng.choices(words, k=n_chars // 5))[:n_chars]
        ids = tuple(rng.randrange(30_000) for _ in range(n_chars // 4))
        rows.append(ScoredRow(Sample(prompt="why?", response=text), Encoded((1, *ids), 1), {"score": 0.0}))
    reward = Reward(0.0, 0.0, 0.0, (), (0.0, 0.0))
    logs.configure("critical", "text")  # random words trip wires
    baseline_source, clock = BaselineSource(), MonotonicClock()
    monitor = RunMonitor(baseline_source, MonitorLimits())
    watcher = RunWatcher(
        monitor,
        baseline_source,
        Lexicon.read(),
        clock,
        AlertSender(monitor, TripwireReport(Metrics())),
        encoder=echo.load(ModelSpec()).encode,
        pipeline=build_pipeline([EnsembleMember("model", (("score", 1.0),), None)], RewardSettings()),
        model={},
        cpu_budget=CpuBudget(1.0, clock.now()),
    )
    tune_garbage_collector()  # as the server does
    took = []
    for step in range(20):
        started = time.process_time()
        watcher.inspect(RunContext("run", step), rows, [reward] * len(rows))
        took.append((time.process_time() - started) / len(rows))
    return 1e6 * statistics.median(took)


if __name__ == "__main__":
    raise SystemExit(main())
