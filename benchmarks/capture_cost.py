"""Cost of capture: the server without and with a review store, in alternation, by the share of prompts that is captured.

    python -m benchmarks.capture_cost

Echo backend, so all of the CPU is the server's: with a model the share of capture is smaller. SQLite on this disk, requests of
text, none sent twice. Exit code 1 if `share:0.01` takes 2 % of the requests a CPU second.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import uvloop

from benchmarks import machine, tables
from benchmarks.overhead import CLIENTS, ECHO, SINGLE_CLIENTS, drive
from benchmarks.traffic import Bodies, Case
from rewardserve.bench.server_process import ServerProcess

CASES = (Case("text", 1), Case("text", 64))
CAPTURES = ("off", "flagged", "share:0.01", "share:1")
MOST = 0.02
JUDGED = "share:0.01"


def main() -> int:
    """Command-line entry."""
    given = _arguments()
    print(tables.facts(machine.facts()))
    rates: dict[tuple[Case, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(given.rounds):
            for capture in CAPTURES if round_ % 2 else reversed(CAPTURES):
                for case, rate in _rates(capture, given.seconds, round_, Path(folder)):
                    rates.setdefault((case, capture), []).append(rate)
    costs = {
        (case, capture): 1.0
        - statistics.median(on / off for on, off in zip(rates[case, capture], rates[case, "off"], strict=True))
        for case in CASES
        for capture in CAPTURES
    }
    print(tables.table([_line(case, rates, costs) for case in CASES]))
    return int(max(costs[case, JUDGED] for case in CASES) >= MOST)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of a case in a round")
    return parser.parse_args()


def _rates(capture: str, seconds: float, round_: int, folder: Path) -> list[tuple[Case, float]]:
    """Requests a CPU second of each case, all threads of the server included."""
    store = (
        [] if capture == "off" else [f"--capture={capture}", f"--review.database={folder}/{round_}-{capture[-1]}.db"]
    )
    with ServerProcess("--log-level=warning", *ECHO, *store) as server:
        return [(case, _rate(server, case, seconds, round_)) for case in CASES]


def _rate(server: ServerProcess, case: Case, seconds: float, round_: int) -> float:
    clients = SINGLE_CLIENTS if case.n_samples == 1 else CLIENTS
    uvloop.run(drive(server, Bodies(case, 200, seed=-1), clients, seconds / 3))
    load = uvloop.run(drive(server, Bodies(case, 200, seed=round_), clients, seconds))
    return load.n_requests / load.cpu_s


def _line(
    case: Case, rates: dict[tuple[Case, str], list[float]], costs: dict[tuple[Case, str], float]
) -> dict[str, str]:
    return {
        "form": case.form,
        "samples": str(case.n_samples),
        "without, req/CPU s": f"{statistics.median(rates[case, 'off']):,.0f}",
        **{capture: f"{costs[case, capture]:.1%}" for capture in CAPTURES[1:]},
    }


if __name__ == "__main__":
    raise SystemExit(main())
