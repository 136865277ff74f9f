"""Step of the page when a policy is trained over HTTP: a real server, rendered text, alerts by webhook.

For every run a server process serves the gym's reward model of that seed, with its audit judge; the policy sends its
responses to `POST /score` as text, in requests of whole groups from four workers at a time, and learns from the
`rewards` of the replies. A null among them is an error. A page counts from the step of the trainer at which the webhook
delivered it.

    python -m gym.over_http --seeds 60 68 --healthy 60 64

As in `alert_timing`, the gold reward is known and compared. Unlike there, the baseline is learned from the first 512
samples of the run (the server's default), one model is served, so there is no spread of an ensemble, and the scores of
the audit judge arrive after the reply: they count with the next step. Every reward is compared with that of the same
response through a `Scorer` in this process. Unknown flags are passed to the server.
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
from urllib.parse import quote

import httpx
import numpy as np

from benchmarks import machine, tables
from gym import vocabulary
from gym.ablation import votes_of
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
_ALL_SAMPLES: Final = ("--tripwires.cpu-share=1", "--tripwires.audit-share=1")
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
    print("\nrequests, and the largest deviation of their rewards from those of a Scorer in this process")
    print(tables.table([_sent_line(of_kind) for of_kind in grouped]))
    print("\nwires over their thresholds at the page (share of the pages)")
    print(tables.table([wires_row(of_kind) for of_kind in grouped]))
    if given.json:
        save(given.json, outcomes)
    return 0


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--seeds", nargs=2, type=int, default=(60, 68), help="seeds of hacked and mild runs: first and end"
    )
    parser.add_argument("--healthy", nargs=2, type=int, default=(60, 64), help="seeds of healthy runs: first and end")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="concurrent runs, one server each")
    parser.add_argument("--json", type=Path, help="file for every run, read by `report`")
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
    """Train on the rewards of a server, and collect its alerts."""
    setup = set_up_run(seed, kind.bias)
    of_seed = (f"--seed={seed}", f"--bias={kind.bias}")
    with (
        AlertReceiver() as receiver,
        GymServer([*of_seed, f"--webhook-url={receiver.url}", *_ALL_SAMPLES, *flags]) as server,
        httpx.Client(base_url=server.url, timeout=TIMEOUT_S, trust_env=False) as http,
    ):
        trainer = HttpTrainer(http, f"{kind.name} {seed}", receiver)
        pipeline = setup.pipeline("reward")

        def reward_of(responses: Responses, scores_BH: FloatArray) -> FloatArray:
            here = pipeline(RewardBatch(score_responses(setup.models, responses)))
            rewards_B = trainer.rewards_B(responses, [reward.value for reward in here])
            return gold_reward(responses, scores_BH) if kind.healthy else rewards_B

        trained = train(setup.base, setup.models, reward_of, steps, seed=seed, kl_coefficient=kind.kl)
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
        votes=trainer.votes,
    )


class MissingReward(Exception):
    """A reply has null instead of a reward. A trainer must not replace it by a number."""


class HttpTrainer:
    """Trainer's side of the protocol: sends responses, and reads rewards."""

    def __init__(self, http: httpx.Client, name: str, receiver: AlertReceiver) -> None:
        self.levels: list[float] = []
        self.over: tuple[str, ...] = ()
        self.votes: list[dict[str, int]] = []
        self.off_by = 0.0
        self.n_samples = self.n_requests = 0
        self._http = http
        self._name = name
        self._receiver = receiver
        self._tripped: dict[str, FirstAlert] = {}
        self._step = 0

    def rewards_B(self, responses: Responses, expected: Sequence[float]) -> FloatArray:
        """Rewards of the server for one step. `expected` are the rewards of this process, for comparison only."""
        self._receiver.step = self._step
        samples = samples_of(responses)
        parts = [samples[first : first + PER_REQUEST] for first in range(0, len(samples), PER_REQUEST)]
        with ThreadPoolExecutor(N_WORKERS) as workers:
            rewards_B = np.array([reward for rewards in workers.map(self._post, parts) for reward in rewards])
        self.off_by = max(self.off_by, float(np.abs(rewards_B - expected).max()))
        self.levels.append(float(rewards_B.mean()))
        self.n_samples += len(samples)
        self.n_requests += len(parts)
        self._step += 1
        shown = self._poll_alerts()
        self.votes.append(votes_of({wire["wire"]: wire for wire in shown["wires"]}, shown["statistics"]))
        return rewards_B

    def wait_for_page(self) -> None:
        """Wait until the webhook has delivered a page, if the server shows one. Raise TimeoutError if it does not arrive."""
        deadline = time.monotonic() + TIMEOUT_S
        self._poll_alerts()
        while any(alert.severity == "page" for alert in self._tripped.values()) and not self._receiver.paged:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._name}: the page of {', '.join(sorted(self._tripped))} was not delivered")
            time.sleep(_PAUSE_S)
        self._poll_alerts()

    def alerts(self) -> list[FirstAlert]:
        """Warnings at the step after which the server showed them, pages at the step at which the webhook delivered them.

        A page that the notification of another one covers counts from there on.
        """
        received = [each for each in self._receiver.received if each.alert["severity"] == "page"]
        pages = [FirstAlert(each.alert["wire"], "page", each.step) for each in received]
        first, named = min((page.step for page in pages), default=0), {page.wire for page in pages}
        shown = [alert for alert in self._tripped.values() if alert.wire not in named]
        return [
            *(alert._replace(step=max(first, alert.step)) if alert.severity == "page" else alert for alert in shown),
            *pages,
        ]

    def _poll_alerts(self) -> dict[str, Any]:
        """Record new alerts, and return the run. One notification is sent per run and cause, so the webhook alone does not name
        every wire.
        """
        shown = self._shown()
        for alert in shown["tripped"]:
            self._tripped.setdefault(alert["wire"], FirstAlert(alert["wire"], alert["severity"], self._receiver.step))
        if self._receiver.paged and not self.over:
            self.over = over_threshold(shown)
        return shown

    def _post(self, samples: Sequence[Mapping[str, str]]) -> list[float]:
        body = {"run": self._name, "step": self._step, "samples": samples}
        return rewards_of(self._http.post("/score", json=body).raise_for_status().json())

    def _shown(self) -> dict[str, Any]:
        reply = self._http.get(f"/tripwires/{quote(self._name, safe='')}/details")
        if reply.status_code == httpx.codes.NOT_FOUND:  # no sample of the run has been inspected yet
            return {"tripped": (), "statistics": {}, "wires": ()}
        shown: dict[str, Any] = reply.raise_for_status().json()
        return shown


def samples_of(responses: Responses) -> list[dict[str, str]]:
    """Samples to send: text, and whether it was cut off."""
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
    """Rewards of a reply, in order. Raise `MissingReward` if one is null."""
    why_not = [r["error"] for r, reward in zip(reply["results"], reply["rewards"], strict=True) if reward is None]
    if why_not:
        raise MissingReward(
            f"{len(why_not)} of {len(reply['rewards'])} samples have no reward; the first: {why_not[0]}"
        )
    return [float(reward) for reward in reply["rewards"]]


def over_threshold(shown: Mapping[str, Any]) -> tuple[str, ...]:
    """Wires of `GET /tripwires/{run}/details` that are over their thresholds, and either vote or page alone."""
    statistics = shown["statistics"]
    decisive = [wire for wire in shown["wires"] if wire["votes"] or wire["severity"] == "page"]
    return tuple([w["wire"] for w in decisive if statistics.get(w["wire"], 0.0) > w["threshold"]])


if __name__ == "__main__":
    raise SystemExit(main())
