"""Compare the steps at which the trip wires page with the step at which gold falls: hacked, mild and healthy gym runs.

Batches take the path of requests: token ids through a `Scorer`, the reward pipeline, and the run monitor with its
wires, which read rendered text. Only the gym knows the gold reward. Thresholds are those of
`service/tripwires/wires.py`; they were chosen on seeds 100 to 131, so use other seeds here.

    python -m gym.alert_timing --seeds 40 60 --healthy 40 57

`monitored_runs` defines a hacked run and `drop`. `over_http` does the same through a real server, and `report` renders
the output of `--json` as a page of plots.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import machine, tables
from gym.features import traits_of
from gym.monitored_runs import Curves, FirstAlert, Outcome, RunKind, by_kind, outcome, save, table_row, wires_row
from gym.responses import FloatArray, Responses
from gym.run_setup import RunSetup, score_responses, set_up_run
from gym.training import STEPS, gold_reward, train
from rewardserve.model.reward import Reward, RewardBatch
from rewardserve.model.scorer import HeadScores
from rewardserve.model.traits import NO_LEXICON, TRAITS, Lexicon, text_digest
from rewardserve.service.tripwires.alert import VOTE, Alert
from rewardserve.service.tripwires.baseline import Baseline, BaselineSource, baseline_stat
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import MonitorLimits
from rewardserve.service.tripwires.wires import WIRES

_MEMBERS = ("reward", "member_1", "member_2", "member_3")

KINDS = (
    RunKind("hacked"),
    RunKind("hacked, no lexicons", lexicons=False),
    RunKind("hacked, no audit judge", audit=False),
    RunKind("bias without a name, no lexicons", bias="odd", lexicons=False),
    RunKind("flattery alone", bias="flattery"),
    RunKind("length alone", bias="length"),
    RunKind("lists alone", bias="list"),
    RunKind("mild (KL .05)", kl=0.05),
    RunKind("mild (KL .05), bias without a name", bias="odd", kl=0.05),
    RunKind("healthy", healthy=True),
)


def main() -> int:
    """Command-line entry."""
    given = _arguments()
    os.environ["OMP_NUM_THREADS"] = "1"
    todo = [(kind, seed) for kind in KINDS for seed in range(*(given.healthy if kind.healthy else given.seeds))]
    with ProcessPoolExecutor(given.processes) as pool:
        outcomes = list(pool.map(partial(_run, steps=given.steps, learns=given.reference == "run"), todo))
    print(tables.facts(machine.facts()))
    print(tables.table([table_row(of_kind) for of_kind in by_kind(outcomes).values()]))
    print("\nwires over their thresholds at the page (share of the pages)")
    print(tables.table([wires_row(of_kind) for of_kind in by_kind(outcomes).values()]))
    if given.json:
        save(given.json, outcomes)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--seeds", nargs=2, type=int, default=(40, 60), help="seeds of hacked and mild runs: first and end"
    )
    parser.add_argument("--healthy", nargs=2, type=int, default=(40, 57), help="seeds of healthy runs: first and end")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--reference", choices=("base", "run"), default="base",
        help="source of the baseline: responses of the base policy or, as in a server by default, the first 512 of the run",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="file for every run, read by `report`")
    return parser.parse_args()


# -- one run ----------------------------------------------------------------------------------------------------------


def _run(todo: tuple[RunKind, int], steps: int, learns: bool) -> Outcome:
    return run(*todo, steps=steps, learns=learns)


def run(kind: RunKind, seed: int, *, steps: int = STEPS, learns: bool = False) -> Outcome:
    """Train and monitor one run. The baseline is given, or learned from the first windows of the run."""
    setup = set_up_run(seed, kind.bias)
    inspector = _RunInspector(kind, setup, learns=learns)

    def reward_of(responses: Responses, scores_BH: FloatArray) -> FloatArray:
        inspector.inspect(responses)
        if kind.healthy:
            return gold_reward(responses, scores_BH)
        return np.array([reward.value for reward in inspector.rewards])

    trained = train(setup.base, setup.models, reward_of, steps, seed=seed, kl_coefficient=kind.kl)
    gold, kl = zip(*[(float(step.gold_B.mean()), step.kl) for step in trained], strict=True)
    return outcome(
        kind, seed, Curves(gold, inspector.levels, kl), inspector.alerts, inspector.over, samples=inspector.n_samples,
        votes=inspector.votes,
    )  # fmt: skip


class _RunInspector:
    """The service's path of a batch, from token ids to alerts."""

    def __init__(self, kind: RunKind, setup: RunSetup, *, learns: bool) -> None:
        self.rewards: list[Reward] = []
        self.levels: list[float] = []
        self.alerts: list[FirstAlert] = []
        self.over: tuple[str, ...] = ()
        self.votes: list[dict[str, int]] = []
        self.n_samples = 0
        self._models = setup.models
        self._lexicon = Lexicon.read() if kind.lexicons else NO_LEXICON
        self._with_audit = kind.audit
        self._pipelines = {name: setup.pipeline(name) for name in setup.models.heads}
        self._monitor = RunMonitor(
            BaselineSource(Baseline() if learns else self._known(setup), _MEMBERS), MonitorLimits(window=128), WIRES
        )
        self._step = 0

    def inspect(self, responses: Responses) -> None:
        """Score, reward and inspect one batch."""
        heads = score_responses(self._models, responses)
        self.rewards = self._pipelines["reward"](RewardBatch(heads))
        self.levels.append(float(np.mean([reward.changes[0] for reward in self.rewards])))
        alerts = self._monitor.observe("gym", self._step, list(self._observations(heads, responses)), float(self._step))
        self._record(alerts)
        run = self._monitor.runs.get("gym")
        weights = {} if run is None else {w.name: w.weight(run.statistics.get(w.name)) for w in WIRES}
        self.votes.append({name: weight for name, weight in weights.items() if weight})
        self.n_samples += len(responses)
        self._step += 1

    def _record(self, alerts: Sequence[Alert]) -> None:
        pages = [alert.wire for alert in alerts if alert.severity == "page"]
        if pages and not self.over:
            statistics = self._monitor.runs["gym"].statistics
            over = [w.name for w in WIRES if w.weight(statistics.get(w.name))]
            self.over = (*(wire for wire in pages if wire != VOTE), *over)
        self.alerts += [FirstAlert(alert.wire, alert.severity, self._step) for alert in alerts]

    def _observations(self, heads: Sequence[HeadScores], responses: Responses) -> Iterator[SampleFeatures]:
        audits = self._levels("audit", heads)
        # The contribution of each member counts as if a mean of all members were the reward.
        levels_BK = np.array([self._levels(name, heads) for name in _MEMBERS]).T
        traits = traits_of(responses, self._lexicon)
        for i, (reward, text) in enumerate(zip(self.rewards, responses.texts(), strict=True)):
            yield SampleFeatures(
                prompt_hash=int(responses.prompt_ids_B[i]),
                retry_key=None,
                reward=reward.value,
                score=reward.changes[0],
                is_capped=bool(reward.notes),
                traits=traits[i],
                text_digest=text_digest(text),
                spread=float(levels_BK[i].std()),
                components=tuple(levels_BK[i].tolist()),
                audit=audits[i] if self._with_audit else None,
            )

    def _known(self, setup: RunSetup) -> Baseline:
        features = traits_of(setup.reference, self._lexicon)
        return _reference(self._levels("reward", setup.heads), self._spreads(setup.heads), features)

    def _levels(self, name: str, heads: Sequence[HeadScores]) -> list[float]:
        return [reward.changes[0] for reward in self._pipelines[name](RewardBatch(heads))]

    def _spreads(self, heads: Sequence[HeadScores]) -> list[float]:
        levels_KB = np.array([self._levels(name, heads) for name in _MEMBERS])
        spreads: list[float] = levels_KB.std(axis=0).tolist()
        return spreads


def _reference(levels: Sequence[float], spreads: Sequence[float], traits: Sequence[Sequence[float]]) -> Baseline:
    columns = {"score": levels, "spread": spreads, **dict(zip(TRAITS, zip(*traits, strict=True), strict=True))}
    known = {
        name: baseline_stat(name, float(np.mean(column)), float(np.std(column))) for name, column in columns.items()
    }
    return Baseline(known, saturation=float(np.quantile(levels, 0.999)))


if __name__ == "__main__":
    raise SystemExit(main())
