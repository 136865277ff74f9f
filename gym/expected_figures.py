"""Compare the figures of the gym with their expected values: `python -m gym.expected_figures`.

The expected values were measured in an earlier gym of the same design; they are a target, not a ground truth.
Independent of alerts and pipelines. Over-optimisation in general: Gao et al. 2210.10760.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import numpy as np

from gym.curves import first_fall, means_N
from gym.gold import gold
from gym.labeller import PLANTED, Biases, pairs
from gym.policy import Policy, base_policy
from gym.proxy import MultiModelScorer, seed_models
from gym.responses import FloatArray, Responses, joined
from gym.training import STEPS, Step, gold_reward, head_reward, train

N_REFERENCE: Final = 6_000
SMOOTH: Final = 10  # steps, of every curve of gold
WANTED: Final[dict[str, str]] = {
    "base gold": "1.02",
    "base gold sd": "1.09",
    "base length": "40",
    "accuracy, labels without flips": ".785",
    "accuracy, gold ranking": ".82",
    "corr(r, gold)": ".84",
    "corr(r, log length)": ".75",
    "corr(gold, log length)": ".63",
    "accuracy of the audit judge, gold ranking": "",
    "raw: peak gold": "1.37",
    "raw: final gold": ".88",
    "raw: worst final gold": ".50",
    "raw: KL": "271",
    "raw: final length": "99",
    "raw: runs that fell": "all",
    "raw: step of the fall, first and last": "73-170",
    "KL .05: peak gold": "1.54",
    "KL .05: final gold": "1.48",
    "KL .05: KL": "10",
    "KL .05: final length": "63",
    "KL .05: runs that fell": "0",
    "KL .02: peak gold": "1.73",
    "KL .02: final gold": "1.69",
    "KL .02: KL": "26",
    "gold-RL: final gold": "2.39",
    "gold-RL: KL": "20",
    "gold-RL: final length": "37",
    "seconds a run": "5",
}


@dataclass(frozen=True, slots=True)
class RunFigures:
    """Figures of one RL run."""

    gold_T: FloatArray  # batch means, smoothed
    kl: float
    length: float
    flattery: float
    list_items: float
    repetition: float
    seconds: float

    @property
    def fell_at(self) -> int | None:
        """First step after the peak at which gold is `FALL` below it."""
        fell = first_fall(self.gold_T)
        return None if fell is None else fell + SMOOTH


def run(steps: Iterable[Step]) -> RunFigures:
    """Run all steps and keep the values that the figures need."""
    start = time.perf_counter()
    seen = [(step.gold_B.mean(), step.kl, step.responses) for step in steps]
    gold_T = means_N([gold_mean for gold_mean, _, _ in seen], SMOOTH)
    end = joined([responses for _, _, responses in seen[-SMOOTH:]])
    return RunFigures(
        gold_T=gold_T,
        kl=seen[-1][1],
        length=float(end.lengths_B.mean()),
        flattery=float(end.count_B("flattery").mean()),
        list_items=float(end.count_B("list").mean()),
        repetition=float(end.repetition_B.mean()),
        seconds=time.perf_counter() - start,
    )


def _correlation(left: FloatArray, right: FloatArray) -> float:
    """Pearson."""
    return float(np.corrcoef(left, right)[0, 1])


def static_figures(
    base: Policy, models: MultiModelScorer, reference: Responses, biases: Biases, seed: int
) -> dict[str, float]:
    """Figures of a proxy before RL."""
    gold_B, log_length_B = gold(reference), np.log(np.maximum(reference.lengths_B, 1))
    reward_B = models.models["reward"].scores_B(reference)
    test = pairs(base, N_REFERENCE, biases, np.random.default_rng([seed, 2]))
    margins_NH = models.scores_BH(test.left) - models.scores_BH(test.right)
    prefers_NH = margins_NH > 0
    gold_N = gold(test.left) > gold(test.right)
    reward, audit = models.column("reward"), models.column("audit")
    return {
        "base gold": float(gold_B.mean()),
        "base gold sd": float(gold_B.std()),
        "base length": float(reference.lengths_B.mean()),
        "accuracy, labels without flips": float((prefers_NH[:, reward] == test.left_meant_N).mean()),
        "accuracy, gold ranking": float((prefers_NH[:, reward] == gold_N).mean()),
        "corr(r, gold)": _correlation(reward_B, gold_B),
        "corr(r, log length)": _correlation(reward_B, log_length_B),
        "corr(gold, log length)": _correlation(gold_B, log_length_B),
        "accuracy of the audit judge, gold ranking": float((prefers_NH[:, audit] == gold_N).mean()),
    }


def run_figures(name: str, runs: list[RunFigures]) -> dict[str, float | str]:
    """Means over seeds, and the number of seeds with a fall."""
    falls = [r.fell_at for r in runs if r.fell_at is not None]
    return {
        f"{name}: peak gold": fmean(float(r.gold_T.max()) for r in runs),
        f"{name}: final gold": fmean(float(r.gold_T[-1]) for r in runs),
        f"{name}: worst final gold": min(float(r.gold_T[-1]) for r in runs),
        f"{name}: KL": fmean(r.kl for r in runs),
        f"{name}: final length": fmean(r.length for r in runs),
        f"{name}: final flattery phrases": fmean(r.flattery for r in runs),
        f"{name}: final list items": fmean(r.list_items for r in runs),
        f"{name}: final repetition": fmean(r.repetition for r in runs),
        f"{name}: runs that fell": f"{len(falls)} of {len(runs)}",
        f"{name}: step of the fall, first and last": f"{min(falls)}-{max(falls)}" if falls else "",
    }


def figures(n_seeds: int, biases: Biases, steps: int) -> tuple[dict[str, float | str], dict[str, list[RunFigures]]]:
    """Figures as means over seeds, and the runs by name. Every seed has a separate proxy."""
    base = base_policy()
    reference = base.sample(np.random.default_rng(0), np.zeros(N_REFERENCE, dtype=np.int64))
    static: list[dict[str, float]] = []
    runs: dict[str, list[RunFigures]] = {"raw": [], "KL .05": [], "KL .02": [], "gold-RL": []}
    for seed in range(n_seeds):
        models = seed_models(base, seed, biases)
        static.append(static_figures(base, models, reference, biases, seed))
        proxy = head_reward(models, "reward", reference)
        runs["raw"].append(run(train(base, models, proxy, steps, seed=seed)))
        runs["KL .05"].append(run(train(base, models, proxy, steps, seed=seed, kl_coefficient=0.05)))
        runs["KL .02"].append(run(train(base, models, proxy, steps, seed=seed, kl_coefficient=0.02)))
        runs["gold-RL"].append(run(train(base, models, gold_reward, steps, seed=seed, kl_coefficient=0.02)))
    values: dict[str, float | str] = {name: fmean(row[name] for row in static) for name in static[0]}
    for name, of_name in runs.items():
        values |= run_figures(name, of_name)
    values["seconds a run"] = fmean(r.seconds for of_name in runs.values() for r in of_name)
    return values, runs


def main() -> None:
    """Print the table and the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--bias", choices=PLANTED, default="human", help="bias of the labeller")
    arguments = parser.parse_args()
    values, runs = figures(arguments.seeds, PLANTED[arguments.bias], arguments.steps)
    print(f"{'':45}{'here':>10}{'wanted':>10}")
    for name, value in values.items():
        print(f"{name:45}{value if isinstance(value, str) else f'{value:.3f}':>10}{WANTED.get(name, ''):>10}")
    print("\ngold every 24 steps, then at the end")
    for name, of_name in runs.items():
        for seed, one in enumerate(of_name):
            print(f"{name:8} seed {seed}: " + " ".join(f"{g:5.2f}" for g in [*one.gold_T[::24], one.gold_T[-1]]))


if __name__ == "__main__":
    main()
