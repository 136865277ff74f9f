"""When the trip wires page if a policy is trained over HTTP: a real server, rendered text, alerts by webhook.

For every run a server process serves the gym's reward model of that seed, with its audit judge; the policy sends what it
wrote to `POST /score` as text, in requests of whole groups from four workers at a time, and learns from the `rewards` that come
back. A null among them is an error. A page counts from the step that the trainer was at when the webhook told of it.

    python -m gym.over_http --seeds 60 68 --healthy 60 64

As `alarms` does, it knows the gold reward and compares. Other than there, what is usual is learnt from the first 512 samples
of the run (the server's default), one model is served, so there is no spread of an ensemble, and the audit judge's opinions
come after the reply: they are counted with the next step. Every reward is compared with that of the same response through a
`Scorer` in this process. Flags that are not known here are the server's.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from benchmarks import machine, tables
from gym import vocabulary
from gym.local_server import TIMEOUT_S, AlertReceiver, GymServer
from gym.monitored_runs import Curves, FirstAlert, Outcome, RunKind, by_kind, outcome, save, table_row, wires_row
from gym.responses import FloatArray, Responses
from gym.run_setup import score_responses, set_up_run
from gym.training import BATCH, STEPS, gold_reward, train
from rewardserve.model.reward import RewardBatch

KINDS: Final = (
    RunKind("hacked, over HTTP"),
    RunKind("flattery alone, over HTTP", bias="flattery"),
    RunKind("mild (KL .05), over HTTP", kl=0.05),
    RunKind("healthy, over HTTP", healthy=True),
)
N_WORKERS: Final = 4
PER_REQUEST: Final = BATCH // N_WORKERS  # four prompts with all their responses
_WATCHED: Final = ("--tripwires.cpu-share=1", "--tripwires.audit-share=1")
_PAUSE_S: Final = 0.02


def main() -> int:
    """Command-line entry."""
    given, flags = _arguments()
    os.environ["OMP_NUM_THREADS"] = "1"
    todo = [(kind, seed) for kind in KINDS for seed in range(*(given.healthy if kind.healthy else given.seeds))]
    with ProcessPoolExecutor(given.processes) as pool:
        outcomes = list(pool.map(partial(_run, steps=given.steps, flags=flags), todo))
    grouped = by_kind(outcomes).values()
    print(tables.facts(machine.facts()))
    print(tables.table([table_row(of_kind) for of_kind in grouped]))
    print("\nwhat was sent, and how far its rewards were from those of a Scorer in this process")
    print(tables.table([_sent_line(of_kind) for of_kind in grouped]))
    print("\nwhat was over its threshold at the page (share of the pages)")
    print(tables.table([wires_row(of_kind) for of_kind in grouped]))
    if given.json:
        save(given.json, outcomes)
    return 0


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seeds", nargs=2, type=int, default=(60, 68), help="of hacked and mild runs: from, up to")
    parser.add_argument("--healthy", nargs=2, type=int, default=(60, 64), help="of healthy runs: from, up to")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time, a server each")
    parser.add_argument("--json", type=Path, help="where to write every run, for `report`")
    return parser.parse_known_args()


def _sent_line(outcomes: Sequence[Outcome]) -> dict[str, str]:
    return {
        "runs": outcomes[0].kind,
        "requests": f"{sum(each.requests for each in outcomes):,}",
        "samples": f"{sum(each.samples for each in outcomes):,}",
        "off by at most": f"{max(each.off_by for each in outcomes):.1e}",
    }


# -- one run ----------------------------------------------------------------------------------------------------------


def _run(todo: tuple[RunKind, int], steps: int, flags: Sequence[str]) -> Outcome:
    return run(*todo, steps=steps, flags=flags)


def run(kind: RunKind, seed: int, *, steps: int = STEPS, flags: Sequence[str] = ()) -> Outcome:
    """Train on what a server answers, and listen to its alerts."""
    started = set_up_run(seed, kind.bias)
    of_seed = (f"--seed={seed}", f"--bias={kind.bias}")
    with (
        AlertReceiver() as receiver,
        GymServer([*of_seed, f"--webhook-url={receiver.url}", *_WATCHED, *flags]) as server,
        httpx.Client(base_url=server.url, timeout=TIMEOUT_S, trust_env=False) as http,
    ):
        trainer = HttpTrainer(http, f"{kind.name} {seed}", receiver)
        pipeline = started.pipeline("reward")

        def reward_of(responses: Responses, scores_BH: FloatArray) -> FloatArray:
            here = pipeline(RewardBatch(score_responses(started.models, responses)))
            rewards_B = trainer.rewards_B(responses, [reward.value for reward in here])
            return gold_reward(responses, scores_BH) if kind.healthy else rewards_B

        trained = train(started.base, started.models, reward_of, steps, seed=seed, kl_coefficient=kind.kl)
        gold, kl = zip(*[(float(step.gold_B.mean()), step.kl) for step in trained], strict=True)
        trainer.wait_for_page()
    return outcome(
        kind,
        seed,
        Curves(gold, trainer.levels, kl),
        trainer.alerts(),
        trainer.over,
        samples=trainer.n_samples,
        requests=trainer.n_requests,
        off_by=trainer.off_by,
    )


class MissingReward(Exception):
    """A reply has null where a reward should be. Whoever trains must not put a number of their own there."""


class HttpTrainer:
    """The side of a trainer: sends what the policy wrote, and takes what comes back."""

    def __init__(self, http: httpx.Client, name: str, receiver: AlertReceiver) -> None:
        self.levels: list[float] = []
        self.over: tuple[str, ...] = ()
        self.off_by = 0.0
        self.n_samples = self.n_requests = 0
        self._http = http
        self._name = name
        self._receiver = receiver
        self._tripped: dict[str, FirstAlert] = {}
        self._step = 0

    def rewards_B(self, responses: Responses, expected: Sequence[float]) -> FloatArray:
        """What the server answers for one step. `expected` is what it should be, and is compared only."""
        self._receiver.step = self._step
        samples = samples_of(responses)
        parts = [samples[first : first + PER_REQUEST] for first in range(0, len(samples), PER_REQUEST)]
        with ThreadPoolExecutor(N_WORKERS) as workers:
            rewards_B = np.array([reward for answer in workers.map(self._ask, parts) for reward in answer])
        self.off_by = max(self.off_by, float(np.abs(rewards_B - expected).max()))
        self.levels.append(float(rewards_B.mean()))
        self.n_samples += len(samples)
        self.n_requests += len(parts)
        self._step += 1
        self._look()
        return rewards_B

    def wait_for_page(self) -> None:
        """Wait until the webhook has delivered a page, if `GET /tripwires` shows one. TimeoutError if it does not come."""
        deadline = time.monotonic() + TIMEOUT_S
        self._look()
        while any(alert.severity == "page" for alert in self._tripped.values()) and not self._receiver.paged:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._name}: the page of {', '.join(sorted(self._tripped))} was not delivered")
            time.sleep(_PAUSE_S)
        self._look()

    def alerts(self) -> list[FirstAlert]:
        """Warnings at the step after which `GET /tripwires` showed them, pages at the step at which the webhook delivered them."""
        pages = [h for h in self._receiver.received if h.alert["severity"] == "page"]
        return [alert for alert in self._tripped.values() if alert.severity != "page"] + [
            FirstAlert(received.alert["wire"], "page", received.step) for received in pages
        ]

    def _look(self) -> None:
        """Note new alerts: one notification is sent for a run and cause, so the webhook does not name every wire."""
        page = self._tripwires()
        for alert in page["runs"].get(self._name, {"tripped": ()})["tripped"]:
            self._tripped.setdefault(alert["wire"], FirstAlert(alert["wire"], alert["severity"], self._receiver.step))
        if self._receiver.paged and not self.over:
            self.over = over_threshold(page, self._name)

    def _ask(self, samples: Sequence[Mapping[str, str]]) -> list[float]:
        body = {"run": self._name, "step": self._step, "samples": samples}
        return rewards_of(self._http.post("/score", json=body).raise_for_status().json())

    def _tripwires(self) -> dict[str, Any]:
        page: dict[str, Any] = self._http.get("/tripwires").raise_for_status().json()
        return page


def samples_of(responses: Responses) -> list[dict[str, str]]:
    """What is sent: text, and whether it was cut off."""
    rows = zip(responses.prompt_ids_B, responses.texts(), responses.ended_B, strict=True)
    return [
        {
            "prompt": vocabulary.prompt(int(prompt)),
            "response": text,
            "finish_reason": "stop" if ended else "length",
        }
        for prompt, text, ended in rows
    ]


def rewards_of(reply: Mapping[str, Any]) -> list[float]:
    """The rewards of a reply, in order. `MissingReward` where one is null."""
    why_not = [r["error"] for r, reward in zip(reply["results"], reply["rewards"], strict=True) if reward is None]
    if why_not:
        raise MissingReward(
            f"{len(why_not)} of {len(reply['rewards'])} samples have no reward; the first: {why_not[0]}"
        )
    return [float(reward) for reward in reply["rewards"]]


def over_threshold(page: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The wires of `GET /tripwires` that are over their thresholds in this run, and have votes or page by themselves."""
    statistics = page["runs"][name]["statistics"]
    weighty = [wire for wire in page["wires"] if wire["votes"] or wire["severity"] == "page"]
    return tuple([w["wire"] for w in weighty if statistics.get(w["wire"], 0.0) > w["threshold"]])


if __name__ == "__main__":
    raise SystemExit(main())
