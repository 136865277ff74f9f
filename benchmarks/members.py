"""Best of n by heads over a frozen backbone: one head against the members of an ensemble, for few or many noisy pairs.

    python -m benchmarks.members --config training/recipes/ratings.yaml --pairs 100,1000 --noise 0.25

The recipe has pairs, and ratings of responses to the same prompts. Each arm fits ridge-penalised logistic heads on pairs, of which
a share is reversed, and chooses the best of n rated responses of each held-out prompt. The place of that response among the ratings
counts: 1 is the best response, 0.5 that of chance. Groups are held out whole. Intervals of 95 % draw groups, those of a change
the same ones.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.training_options import FeatureCache
from rewardserve.model.checkpoint import Checkpoint
from rewardserve.training import workflow
from rewardserve.training.batches.members import of_output, trained_outputs
from rewardserve.training.dataset.leakage import prompt_key
from rewardserve.training.dataset.sequences import FeedbackTable, subset
from rewardserve.training.evaluation import folds
from rewardserve.training.evaluation.evaluate import Floats, ranks, wins
from rewardserve.training.loop.methods import fit_logistic
from rewardserve.training.settings import recipe
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.model_config import ModelConfig

N_BEST = (4, 16)
N_MEMBERS = 4
BETA = 0.5
FIGURES = ("accuracy", *(f"best of {n}" for n in N_BEST))


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to make a score: the data of the members, None for one head, how they are combined, and the ridge."""

    data: Literal["bootstrap", "folds"] | None = None
    combine: Literal["mean", "softmin"] = "mean"
    ridge: float = 0.1


ARMS: dict[str, Arm] = {
    "one head": Arm(),
    "one head, ridge 1": Arm(ridge=1.0),
    "one head, ridge 3": Arm(ridge=3.0),
    "bootstrap, mean": Arm("bootstrap"),
    "bootstrap, softmin": Arm("bootstrap", "softmin"),
    "folds, mean": Arm("folds"),
    "folds, softmin": Arm("folds", "softmin"),
    "folds, ridge 1, softmin": Arm("folds", "softmin", 1.0),
}
"""The first one is what the others are compared with."""

Found = dict[tuple[str, str], dict[str, list[float]]]
"""Arm and figure -> group -> values."""


def main() -> None:
    """Print a table in Markdown for each number of pairs."""
    options = _options()
    config = recipe.load(options.config, options.set)
    config = replace(config, stages=(), data=replace(config.data, eval_fraction=0.0))
    start = workflow.load_start(config)
    table = workflow.encode(config, start, in_folds=True).train
    hidden_ND = _features(config, start, table, options.features)
    for n_pairs in map(int, options.pairs.split(",")):
        found: Found = defaultdict(lambda: defaultdict(list))
        for seed in range(options.seeds):
            measure(table, hidden_ND, n_pairs, options.noise, seed, options.folds, found)
        print(
            f"\n{n_pairs} pairs, {options.noise:.0%} of them reversed, {options.seeds} draws\n\n{table_of(found)}",
            flush=True,
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure members of an ensemble by the best of n.")
    parser.add_argument(
        "--config", type=Path, default=Path("training/recipes/ratings.yaml"), help="recipe with ratings"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of the recipe"
    )
    parser.add_argument("--pairs", default="100,1000", help="numbers of training pairs")
    parser.add_argument("--noise", type=float, default=0.25, help="share of the training pairs that are reversed")
    parser.add_argument("--seeds", type=int, default=5, help="draws of the training pairs")
    parser.add_argument("--folds", type=int, default=5, help="number of folds of groups")
    parser.add_argument("--features", type=Path, help="file that keeps the features for the next run")
    return parser.parse_args()


def _features(config: Config, start: Checkpoint, table: FeedbackTable, file: Path | None) -> torch.Tensor:
    return FeatureCache(start, config.eval.batch_tokens, file).of([s.ids for s in table.sequences]).float()


def measure(
    table: FeedbackTable, hidden_ND: torch.Tensor, n_pairs: int, noise: float, seed: int, n_folds: int, found: Found
) -> None:
    """Add the figures of every arm on each held-out group to `found`."""
    rng = np.random.default_rng(seed)
    fold_P = folds.assign_folds(table.items, n_folds, "members")
    is_pair_P = [item.kind == "pairs" for item in table.items]
    for fold in sorted(set(fold_P)):
        places = [i for i, (f, is_pair) in enumerate(zip(fold_P, is_pair_P, strict=True)) if is_pair and f != fold]
        drawn = set(rng.choice(places, min(n_pairs, len(places)), replace=False).tolist())
        train = reversed_pairs(subset(table, [i in drawn for i in range(len(table))], renumber=False), noise, rng)
        held = subset(table, [f == fold for f in fold_P], renumber=False)
        fitted: dict[tuple[str | None, float], Floats] = {}
        for name, arm in ARMS.items():
            key = arm.data, arm.ridge
            fitted[key] = fitted[key] if key in fitted else members(arm, train, hidden_ND, seed)
            _judge(name, held, combined(fitted[key], arm.combine), found)


def reversed_pairs(table: FeedbackTable, share: float, rng: np.random.Generator) -> FeedbackTable:
    """The table with the responses of a share of its pairs exchanged."""
    flipped = rng.random(len(table)) < share
    rows = tuple(row[::-1] if flip else row for row, flip in zip(table.rows, flipped, strict=True))
    return replace(table, rows=rows)


def members(arm: Arm, train: FeedbackTable, hidden_ND: torch.Tensor, seed: int) -> Floats:
    """Score of every sequence by each member, standardised on the training responses, `(N, M)`."""
    tables = [train]
    if arm.data is not None:
        model = ModelConfig("backbone", members=N_MEMBERS, member_data=arm.data)
        shares = trained_outputs(train.items, model, seed)
        tables = [of_output(train, shares, m) for m in range(N_MEMBERS)]
    head = train.items[0].head
    score_NM = torch.stack([hidden_ND @ fit_logistic(hidden_ND, each, head, l2=arm.ridge) for each in tables], 1)
    seen = sorted({number for rows in train.rows for number in rows})
    z_NM: Floats = ((score_NM - score_NM[seen].mean(0)) / score_NM[seen].std(0)).double().numpy()
    return z_NM


def combined(z_NM: Floats, how: Literal["mean", "softmin"]) -> Floats:
    """Combine as the reward pipeline does by default, or by the mean."""
    low_N1 = z_NM.min(1, keepdims=True)
    score_N: Floats = low_N1[:, 0] - BETA * np.log(np.exp((low_N1 - z_NM) / BETA).mean(1))
    return z_NM.mean(1) if how == "mean" else score_N


def _judge(name: str, held: FeedbackTable, score_N: Floats, found: Found) -> None:
    of_prompt: dict[tuple[str, bytes], list[tuple[float, float]]] = defaultdict(list)
    for item, rows in zip(held.items, held.rows, strict=True):
        if item.kind == "pairs":
            won = float(wins(score_N[rows[0]] - score_N[rows[-1]]))
            found[name, "accuracy"][item.group].append(won)
        else:
            of_prompt[item.group, prompt_key(item)].append((float(score_N[rows[0]]), item.values[0]))
    for (group, _), rated in of_prompt.items():
        score_R, gold_R = (np.array(column) for column in zip(*rated, strict=True))
        for n in N_BEST:
            if len(score_R) >= n:
                found[name, f"best of {n}"][group].append(best_of(score_R, gold_R, n))


def best_of(score_R: Floats, gold_R: Floats, n: int) -> float:
    """Mean place in gold, from 0 to 1, of the highest score among n of the responses, over all choices of n."""
    place_R = (ranks(gold_R) - 1) / (len(gold_R) - 1)
    by_score_R = place_R[np.argsort(score_R, kind="stable")]
    weights_R = np.array([comb(i, n - 1) for i in range(len(score_R))], dtype=float)
    return float((by_score_R * weights_R).sum() / weights_R.sum())


def table_of(found: Found, n_draws: int = 1000) -> str:
    """One row for each arm: figures, and changes against the first arm with intervals over groups."""
    lines = [f"| arm | {' | '.join(FIGURES)} |", f"|---|{'---|' * len(FIGURES)}"]
    first = next(iter(ARMS))
    for name in ARMS:
        cells = [_cell(found[name, figure], found[first, figure], n_draws) for figure in FIGURES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(own: Mapping[str, Sequence[float]], first: Mapping[str, Sequence[float]], n_draws: int) -> str:
    groups = sorted(first)
    rng = np.random.default_rng(0)
    draws = [np.arange(len(groups)), *(rng.integers(len(groups), size=len(groups)) for _ in range(n_draws))]
    sums = [np.array([(np.sum(of[group]), len(of[group])) for group in groups]) for of in (own, first)]
    means = np.array([[each[draw, 0].sum() / each[draw, 1].sum() for each in sums] for draw in draws])
    change = means[:, 0] - means[:, 1]
    low, high = np.quantile(change[1:], [0.025, 0.975])
    return f"{means[0, 0]:.3f} ({change[0]:+.3f} [{low:+.3f}, {high:+.3f}])"


if __name__ == "__main__":
    main()
