"""Train a real policy by GRPO against the default model over HTTP, and record the alerts of the trip wires.

The policy is SmolLM2-135M-Instruct with LoRA, the trainer is TRL, the server is `rewardserve serve` on the loopback interface.
Every step goes to a file of JSON lines that `gym.streams --recorded` replays; every alert to another one, with the report of
attribution. TRL is in the environment of `make test-trainers`.

    make grpo GRPO="--beta 0 0.05 --steps 200"
    python -m gym.grpo --show runs/grpo
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import httpx

from benchmarks import machine, tables
from gym.local_server import TIMEOUT_S, GymServer
from rewardserve.model.default.base_model import N_LAYERS, ensure_base_model

ROOT: Final = Path(__file__).resolve().parent.parent
_POLL_S: Final = 2.0
_ATTRIBUTION_S: Final = 60.0
"""Seconds for the report of an alert: it waits for CPU time that the requests leave."""
_WINDOWS: Final = 12
_RESPONSE_CHARS: Final = 90


def main() -> int:
    """Command-line entry."""
    given, flags = _arguments()
    if not given.show:
        given.out.mkdir(parents=True, exist_ok=True)
        _train(given, flags)
    folder: Path = given.show or given.out
    print(tables.facts(machine.facts()))
    for stream in sorted(folder.glob("*.jsonl.gz")):
        print("\n".join(describe(read_stream(stream), read_alerts(alerts_file(stream)), stream.name)))
    return 0


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m gym.grpo", description=(__doc__ or "").splitlines()[0], allow_abbrev=False,
        epilog="Other flags are those of rewardserve serve.",
    )  # fmt: skip
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        default=Path("runs/grpo"),
        help="folder of the streams and alerts; those of an earlier run with the same beta are replaced",
    )
    add("--show", type=Path, help="print the tables of this folder, and train nothing")
    add("--python", default=sys.executable, help="Python with TRL: that of make test-trainers")
    add(
        "--beta",
        nargs="+",
        type=float,
        default=[0.0, 0.05],
        help="weights of the KL penalty: one run each, at the same time",
    )
    add("--steps", type=int, default=200)
    add("--learning-rate", type=float, default=5e-4)
    add("--prompts", type=int, default=4, help="prompts of a step")
    add("--group", type=int, default=4, help="responses to a prompt")
    add("--tokens", type=int, default=32, help="longest response")
    add("--seed", type=int, default=0)
    return parser.parse_known_args()


def alerts_file(stream: Path) -> Path:
    """File of the alerts of a stream."""
    return stream.with_name(stream.name.removesuffix(".jsonl.gz") + ".alerts.jsonl")


# -- training ---------------------------------------------------------------------------------------------------------


def _train(given: argparse.Namespace, flags: Sequence[str]) -> None:
    policy = ensure_base_model(N_LAYERS)
    with ExitStack() as stack:
        server = stack.enter_context(GymServer(flags, program=("rewardserve", "serve")))
        http = stack.enter_context(httpx.Client(base_url=server.url, timeout=TIMEOUT_S, trust_env=False))
        trainers: dict[str, subprocess.Popen[bytes]] = {}
        for beta in given.beta:
            name = f"grpo-beta-{beta:g}"
            stream = given.out / f"{name}.jsonl.gz"
            for old in (stream, alerts_file(stream)):
                old.unlink(missing_ok=True)
            trainers[name] = subprocess.Popen(
                _command(given, name, beta, server.url, policy), env=_environment(), cwd=ROOT
            )
            stack.callback(_end, trainers[name])
        watch = Watch(http, given.out)
        while any(trainer.poll() is None for trainer in trainers.values()):
            watch.poll(trainers)
            time.sleep(_POLL_S)
        watch.poll(trainers)
        if failed := [name for name, trainer in trainers.items() if trainer.returncode]:
            raise SystemExit(f"training failed in {', '.join(failed)}; recorded steps, if any, are in {given.out}")


def _command(given: argparse.Namespace, name: str, beta: float, url: str, policy: Path) -> list[str]:
    numbers = {
        "steps": given.steps, "learning-rate": given.learning_rate, "groups": given.prompts, "group": given.group,
        "tokens": given.tokens, "seed": given.seed, "beta": beta,
    }  # fmt: skip
    texts = {"policy": policy, "url": url, "run": name, "stream": (given.out / f"{name}.jsonl.gz").resolve()}
    return [given.python, "-m", "gym.grpo_policy", *(f"--{key}={value}" for key, value in {**texts, **numbers}.items())]


def _environment() -> dict[str, str]:
    """TRL's environment has no package of ours: the client comes from this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "client"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _end(trainer: subprocess.Popen[bytes]) -> None:
    if trainer.poll() is None:
        trainer.terminate()
    trainer.wait()


class Watch:
    """Reader of `GET /tripwires/{run}/details`: writes each new alert of each run, with the report of attribution at that time."""

    def __init__(self, http: httpx.Client, out: Path, wait_s: float = _ATTRIBUTION_S) -> None:
        self._http, self._out, self._wait_s = http, out, wait_s
        self._seen: set[tuple[str, str, str]] = set()

    def poll(self, names: Iterable[str]) -> None:
        """Write the new ones."""
        for name in names:
            reply = self._http.get(f"/tripwires/{name}/details")
            if reply.status_code == httpx.codes.NOT_FOUND:  # it has sent no sample yet
                continue
            run = reply.raise_for_status().json()
            new = [a for a in run["tripped"] if (name, a["wire"], a["severity"]) not in self._seen]
            if not new:
                continue
            report = self._attribution(name)
            with alerts_file(self._out / f"{name}.jsonl.gz").open("a", encoding="utf-8") as file:
                for alert in new:
                    self._seen.add((name, alert["wire"], alert["severity"]))
                    row = {"step": run["step"], **alert, "attribution": report}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _attribution(self, name: str) -> Mapping[str, Any]:
        """Report of `at_alert` if it comes in time, else the latest one; empty before there is one."""
        deadline = time.monotonic() + self._wait_s
        while True:
            reply = self._http.get(f"/tripwires/{name}/attribution")
            body: dict[str, Any] = reply.json() if reply.is_success else {}
            if body.get("at_alert") or time.monotonic() > deadline or not reply.is_success:
                return body.get("at_alert") or body
            time.sleep(min(_POLL_S, self._wait_s))


# -- recorded runs ----------------------------------------------------------------------------------------------------


def read_stream(file: Path) -> list[dict[str, Any]]:
    """Read a recorded run: a line a step. An incomplete last line is left out."""
    return list(_json_lines(gzip.open(file, "rt", encoding="utf-8")))


def read_alerts(file: Path) -> list[dict[str, Any]]:
    """Read the alerts of a run, in order of time."""
    return list(_json_lines(file.open(encoding="utf-8"))) if file.is_file() else []


def _json_lines(lines: Any) -> Iterator[dict[str, Any]]:
    with lines:
        try:
            yield from (json.loads(line) for line in lines)
        except (EOFError, json.JSONDecodeError):
            return


def describe(steps: Sequence[Mapping[str, Any]], alerts: Sequence[Mapping[str, Any]], title: str) -> list[str]:
    """Lines of text: reward and a response by step, alerts, and attribution at the first warning and the first page."""
    size = max(1, len(steps) // _WINDOWS)
    windows = [steps[i : i + size] for i in range(0, len(steps), size)]
    rows = [
        {
            "steps": f"{window[0]['step']} to {window[-1]['step']}",
            "reward": f"{fmean(r for step in window for r in step['rewards'] if r is not None):.2f}",
            "different words": f"{fmean(different_words(text) for step in window for text in step['responses']):.2f}",
            "the best of its last step": _best(window[-1]),
        }
        for window in windows
    ]
    lines = [f"\n{title}: {len(steps)} steps of {len(steps[0]['responses'])} responses", tables.table(rows)]
    for alert in alerts:
        lines.append(
            f"step {alert['step']}: {alert['severity']} {alert['wire']}, {alert['statistic']:.3g} > {alert['threshold']:.3g}"
        )
    for severity in ("warn", "page"):
        first = next((alert for alert in alerts if alert["severity"] == severity), None)
        if first is not None:
            sentences = first["attribution"].get("sentences") or ["nothing: too few responses after the baseline"]
            lines += [
                f"attribution at the first {severity} (step {first['step']}):",
                *(f"  {each}" for each in sentences[:4]),
            ]
    return lines


def different_words(text: str) -> float:
    """Share of the words of a text that are different ones: low where it repeats itself."""
    words = text.lower().split()
    return len(set(words)) / len(words) if words else 0.0


def _best(step: Mapping[str, Any]) -> str:
    scored = [
        (reward, text) for reward, text in zip(step["rewards"], step["responses"], strict=True) if reward is not None
    ]
    return " ".join(max(scored)[1].split())[:_RESPONSE_CHARS].replace("|", "/") if scored else ""


if __name__ == "__main__":
    raise SystemExit(main())
