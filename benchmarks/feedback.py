"""Ablation of ratings: accuracy on held-out pairs of a head that learned from pairs alone, or from ratings too.

    python -m benchmarks.feedback --config training/recipes/ratings.yaml --pairs 30,100,300,1000

Every row is a grouped cross-validation over the features of a frozen backbone, which are computed once. Each arm takes the steps
of the recipe on the same pairs; of the training pairs of a fold the first by digest are used. Intervals of 95 % draw whole groups,
those of a difference the groups of both arms together.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch

from rewardserve.model.checkpoint import Checkpoint
from rewardserve.training import workflow
from rewardserve.training.dataset import leakage
from rewardserve.training.dataset.comparisons import comparisons
from rewardserve.training.dataset.sequences import FeedbackTable, subset
from rewardserve.training.evaluation import folds
from rewardserve.training.evaluation.evaluate import Floats, bootstrap_mean, wins
from rewardserve.training.evaluation.graded_metrics import grade
from rewardserve.training.finish import EncodedData
from rewardserve.training.settings import recipe
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.optim_config import StageConfig
from rewardserve.training.settings.validation import ConfigError

ARMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "pairs": (("pairs",),),
    "pairs twice": (("pairs",), ("pairs",)),
    "ratings, then pairs": (("ratings",), ("pairs",)),
    "both together": (("pairs", "ratings"),),
    "ratings": (("ratings",),),
}
"""Name of an arm -> the kinds of its stages. `pairs twice` takes as many steps as ratings and pairs one after the other."""


class Interval(NamedTuple):
    """A figure with the ends of its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """The figure in a table."""
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Row:
    """Figures of one arm with at most `n_pairs` training pairs. `change`: its accuracy less that of the pairs alone."""

    n_pairs: int
    arm: str
    accuracy: Interval
    change: Interval | None
    spearman_within: float | None


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description="Measure what ratings add to pairs.")
    parser.add_argument("--config", type=Path, required=True, help="recipe with method.name: frozen, pairs and ratings")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of the recipe"
    )
    parser.add_argument("--folds", type=int, default=5, help="number of folds; as many as groups leaves one out")
    parser.add_argument("--pairs", default="30,100,300,1000,100000", help="numbers of training pairs, with commas")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    config = recipe.load(options.config, options.set)
    rows = list(ablate(config, options.folds, [int(n) for n in options.pairs.split(",")]))
    print("\n".join(table(rows)))
    if options.json:
        options.json.write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n")


def ablate(config: Config, n_folds: int, numbers: Sequence[int]) -> Iterator[Row]:
    """A row for each arm and number of pairs. Raise `ConfigError` for a recipe whose backbone is trained."""
    if config.method.name != "frozen":
        raise ConfigError("the ablation trains heads over a frozen backbone: set method.name: frozen")
    config = replace(
        config, stages=(), data=replace(config.data, eval_fraction=0.0), output=replace(config.output, report_to=())
    )
    torch.manual_seed(config.seed)
    start = workflow.load_start(config)
    world = _World(config, start, workflow.encode(config, start, in_folds=True), n_folds)
    for n in numbers:
        alone = None
        for arm in ARMS:
            if arm == "ratings" and n != numbers[0]:
                continue
            scored = world.cross_validate(arm, n)
            row = world.row(arm, n, scored, alone)
            alone = scored if arm == "pairs" else alone
            yield row


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield "| training pairs | arm | accuracy | less that of pairs | Spearman within prompts |"
    yield "|---|---|---|---|---|"
    for row in rows:
        n = "none" if row.arm == "ratings" else f"{row.n_pairs:,}"
        spearman = "" if row.spearman_within is None else f"{row.spearman_within:.3f}"
        value, low, high = row.accuracy
        yield f"| {n} | {row.arm} | {value:.3f} [{low:.3f}, {high:.3f}] | {row.change or ''} | {spearman} |"


@dataclass(frozen=True)
class _Scored:
    """A cross-validation: the pooled table, and the score of each of its sequences."""

    table: FeedbackTable
    scores_NH: Floats


class _World:
    """Items, folds and features that all rows share."""

    def __init__(self, config: Config, start: Checkpoint, tables: EncodedData, n_folds: int) -> None:
        self._config, self._start, self._tables = config, start, tables
        self._fold_I = folds.assign_folds(tables.train.items, n_folds, config.data.salt)
        self._features = workflow.features(config, start, tables.train)
        self._heads_HD = start.network.heads.weight.detach().clone()

    def cross_validate(self, arm: str, n_pairs: int) -> _Scored:
        """Train an arm on every fold, and score the items that it holds out."""
        table, scores_of = self._tables.train, {}
        for fold in sorted(set(self._fold_I)):
            held_in, held_out = folds.split_fold(table, self._fold_I, fold)
            held_in, _ = leakage.remove_overlap(held_in, held_out, renumber=False)
            scores_NH = self._fit(_at_most(held_in, n_pairs, ARMS[arm]), ARMS[arm])
            scores_of[fold] = folds.standardise(scores_NH, held_in, self._config.model.heads)
        return _Scored(*folds.pool(table, self._fold_I, scores_of))

    def _fit(self, held_in: FeedbackTable, stages: Sequence[tuple[str, ...]]) -> Floats:
        loss = (
            self._config.loss
            if any("ratings" in kinds for kinds in stages)
            else replace(self._config.loss, ratings="mse")
        )
        own = tuple(StageConfig(kinds, loss, self._config.optim) for kinds in stages)  # type: ignore[arg-type]
        config = replace(self._config, stages=own)
        self._start.network.heads.weight.data.copy_(self._heads_HD)
        torch.manual_seed(config.seed)
        nothing = subset(held_in, [False] * len(held_in), renumber=False)
        tables = self._tables.with_tables(held_in, nothing)
        with TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
            workflow.fit(config, self._start, tables, self._features, Path(scratch), None)
        weight_HD = self._start.network.heads.weight.detach().float()
        assert self._features is not None
        scores_NH: Floats = (self._features @ weight_HD.T).double().numpy()
        return scores_NH

    def row(self, arm: str, n_pairs: int, scored: _Scored, alone: _Scored | None) -> Row:
        """Figures of an arm on the held-out pairs of the source of pairs."""
        n_bootstrap = self._config.eval.bootstrap
        won_G, size_G = _won_by_group(scored)
        change = None
        if alone is not None:
            less_G = won_G - _won_by_group(alone)[0]
            change = Interval(float(less_G.sum() / size_G.sum()), *bootstrap_mean(less_G, size_G, n_bootstrap))
        graded = grade(scored.table, scored.scores_NH, self._config.model.heads, n_bootstrap=1)
        accuracy = Interval(float(won_G.sum() / size_G.sum()), *bootstrap_mean(won_G, size_G, n_bootstrap))
        return Row(n_pairs, arm, accuracy, change, graded[0].within if graded else None)


def _at_most(held_in: FeedbackTable, n_pairs: int, stages: Sequence[tuple[str, ...]]) -> FeedbackTable:
    """The items of the stages, with the first `n_pairs` pairs by digest."""
    kinds = {kind for stage in stages for kind in stage}
    pairs = [i for i, item in enumerate(held_in.items) if item.kind == "pairs"]
    kept = set(sorted(pairs, key=lambda i: hashlib.sha256(held_in.items[i].id.encode()).digest())[:n_pairs])
    keep = [item.kind in kinds and (item.kind != "pairs" or i in kept) for i, item in enumerate(held_in.items)]
    return subset(held_in, keep, renumber=False)


def _won_by_group(scored: _Scored) -> tuple[Floats, np.ndarray]:
    """Won pairs and pairs of each group, in a fixed order."""
    is_pair = [item.kind == "pairs" for item in scored.table.items]
    table = comparisons(subset(scored.table, is_pair, renumber=False))
    diff_P = scored.scores_NH[list(table.chosen), 0] - scored.scores_NH[list(table.rejected), 0]
    groups = sorted({pair.group for pair in table.items})
    number_P = np.array([groups.index(pair.group) for pair in table.items])
    won_G: Floats = np.bincount(number_P, weights=wins(diff_P)).astype(np.float64)
    return won_G, np.bincount(number_P)


if __name__ == "__main__":
    main()
