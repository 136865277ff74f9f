"""`python -m benchmarks.peers`: install the servers, start them, send requests, compare.

One server runs at a time, in rounds of the whole list, so that other load on the machine affects all of them. A server
is restarted in every round, so its caches hold only requests of that round.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks import machine, models, tables
from benchmarks.peers import infinity, litserve, measurements, mosec, ours, plain, rayserve, vllm
from benchmarks.peers.install import HOME, ROOT, NotInstalled, python_of
from benchmarks.peers.measurements import PeerRun
from benchmarks.peers.processes import NotStarted, PeerServer
from benchmarks.peers.record import Launch, Peer
from benchmarks.peers.scenarios import SCENARIOS, OpenLoopRate, Scenario, as_text, make_scenarios, run_scenario
from benchmarks.workloads import tokenizer_of
from rewardserve.bench.server_process import free_port

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (ours.PEER, vllm.PEER, plain.PEER, infinity.PEER, litserve.PEER, mosec.PEER, rayserve.PEER)
}
# Servers in every round; the others are so far behind that one round suffices.
CLOSE = ("ours", "vllm")
SCALES = {"m30": 0.125, "m150": 0.0625}


def main() -> int:
    """Run the comparison. Exit code 1 if a server could not be measured."""
    given = _parser().parse_args()
    machine.run_again_with(1, malloc=not given.no_malloc)
    if given.quick:
        given.rounds, given.scale = 1, given.scale or SCALES[given.model] / 4
    given.peers = given.peers or (CLOSE if given.quick else PEERS)
    HOME.mkdir(exist_ok=True)
    cores = sorted(os.sched_getaffinity(0))
    facts = {**machine.facts(), "model": given.model, "server_threads": given.threads, "form": given.form}
    print(tables.facts(facts), flush=True)
    scenarios = make_scenarios(given.model, given.scenarios, given.scale or SCALES[given.model], given.form, given.seed)
    os.sched_setaffinity(0, cores[given.threads :] or cores)
    absent: dict[str, str] = {}
    runs = list(measure(given, scenarios, cores[: given.threads], absent))
    records = measurements.summary(runs)
    print("\n" + tables.table([measurements.table_row(r) for r in records]))
    for name, why in absent.items():
        print(f"NOT MEASURED {name}: {why}")
    if given.json:
        record = {"facts": facts, "absent": absent, "figures": records, "runs": [asdict(r) for r in runs]}
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if absent else 0


def measure(
    given: argparse.Namespace, scenarios: list[Scenario], cores: list[int], absent: dict[str, str]
) -> Iterator[PeerRun]:
    """Run every server in every round. `absent` collects the servers that cannot be measured, with the reason."""
    rate = OpenLoopRate(given.rate)
    for n in range(given.rounds):
        names = [name for name in given.peers if n == 0 or name in CLOSE]
        for name in names[n % len(names) :] + names[: n % len(names)]:
            if name in absent:
                continue
            try:
                yield from one_server(PEERS[name], n, given, scenarios, cores, rate)
            except (NotInstalled, NotStarted) as error:
                absent[name] = str(error)


def one_server(
    peer: Peer, n: int, given: argparse.Namespace, scenarios: list[Scenario], cores: list[int], rate: OpenLoopRate
) -> Iterator[PeerRun]:
    """Run all scenarios with one server. Raise `NotInstalled` or `NotStarted`."""
    if not peer.takes_ids:
        decode = tokenizer_of(models.folder(given.model)).decode
        scenarios = [as_text(scenario, lambda ids: decode(ids, skip_special_tokens=False)) for scenario in scenarios]
    launch = Launch(python_of(peer), models.folder(given.model), free_port(), given.threads, HOME)
    peer.prepare(launch)
    env = {
        **machine.environment(given.threads, malloc=not given.no_malloc),
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        **peer.extras(launch),
    }
    log = HOME / f"{peer.name}.log"
    with PeerServer(peer.command(launch), env, cores, log, ROOT) as server:
        base = f"http://127.0.0.1:{launch.port}"
        ready_s = server.wait_until_ready(base + peer.ready)
        print(f"round {n + 1}: {peer.name} ready after {ready_s:.0f} s", flush=True)
        for scenario in scenarios:
            run = run_scenario(scenario, base, peer, server, n, rate)
            if run and scenario.name:
                print("  " + tables.facts(measurements.progress_row(run)), flush=True)
                yield run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Compare servers over HTTP.")
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="default: all; with --quick: ours and vllm")
    parser.add_argument("--model", choices=models.MODELS, default="m30")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--rounds", type=int, default=3, help=f"rounds of {' and '.join(CLOSE)}; the others have one")
    parser.add_argument("--scale", type=float, help=f"share of the full size; default {SCALES}")
    parser.add_argument("--threads", type=int, default=1, help="compute threads and cores of the server")
    parser.add_argument(
        "--form", choices=("text", "ids"), default="text", help="ids: for servers that accept token ids"
    )
    parser.add_argument(
        "--rate", type=float, help="pairs a second of `open`; default: 0.6 of the first server's rate in `single`"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="ours and vLLM, one round, small")
    parser.add_argument("--no-malloc", action="store_true", help="keep the default settings of glibc's allocator")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
