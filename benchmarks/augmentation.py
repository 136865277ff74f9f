"""Augmentation ablation: what each kind of made pairs changes in accuracy, in canaries, and in what an exploit earns.

    python -m benchmarks.augmentation --config training/recipes/default.yaml --folds 13

Every row is a grouped cross-validation of convex heads over the features of a frozen backbone, which are computed once, also of the
canaries and of held-out answers given twice. No fold trains on pairs that are made of, or with, a held-out group. Rows: no kind,
each kind alone, those of the recipe, and the recipe without each of its kinds. Intervals of 95 % draw whole groups.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewardserve.model.checkpoint import Checkpoint
from rewardserve.model.conversation import Sample
from rewardserve.service.tripwires.io import canaries
from rewardserve.training import workflow
from rewardserve.training.augmentation import augment
from rewardserve.training.batches import scoring
from rewardserve.training.dataset import leakage, sequences
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.evaluation import evaluate, folds
from rewardserve.training.evaluation.evaluate import Floats
from rewardserve.training.loop import methods
from rewardserve.training.settings import recipe
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.validation import ConfigError

GAP = "\n\n"
"""Between the two copies of an answer that is given twice."""


@dataclass(frozen=True)
class Row:
    """Figures of one set of kinds. Intervals are `(value, low, high)`; `pay` is in deviations of the held-out reward."""

    name: str
    n_made: int
    accuracy: dict[str, tuple[float, float, float]]
    change: dict[str, tuple[float, float, float]]
    canaries: tuple[float, int, int]
    failing: dict[str, float]
    pay: tuple[float, float, float]
    made_won: dict[str, float]


def main() -> None:
    """Print the table in Markdown."""
    options = _options()
    config = recipe.load(options.config, options.set)
    rows = ablate(config, options.folds, rate=options.rate, n_twice=options.twice)
    print("\n".join(table(rows, config.model.heads)))
    if options.json:
        options.json.write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what each kind of augmentation of a recipe changes.")
    parser.add_argument(
        "--config", type=Path, required=True, help="recipe with method.name: frozen and optim.epochs: 0"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of the recipe"
    )
    parser.add_argument("--folds", type=int, default=5, help="number of folds; as many as groups leaves one out")
    parser.add_argument("--rate", type=float, default=0.05, help="rate of the kinds that the recipe leaves out")
    parser.add_argument("--twice", type=int, default=200, help="number of held-out answers that are given twice")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser.parse_args()


def ablate(config: Config, n_folds: int, *, rate: float, n_twice: int) -> list[Row]:
    """One row for each set of kinds. Raise `ConfigError` for a recipe without convex heads over a frozen backbone."""
    if config.method.name != "frozen" or config.model.head_init != "logistic" or config.optim.epochs:
        raise ConfigError(
            "the ablation fits convex heads: method.name: frozen, model.head_init: logistic, optim.epochs: 0"
        )
    if not config.model.head_l2:
        raise ConfigError("the rows are compared with the same ridges: set model.head_l2")
    chosen = [kind for kind in augment.KINDS if getattr(config.augment, kind)]
    rates: dict[str, Any] = {kind: rate for kind in augment.KINDS if kind not in chosen}
    config = replace(
        config, augment=replace(config.augment, **rates), data=replace(config.data, eval_fraction=0.0), audit_judge=None
    )
    start = workflow.load_start(config)
    world = _World(config, start, workflow.encode(config, start, in_folds=True).train, n_folds, n_twice)
    before = world.cross_validate(())
    sets = {"none": (), **{f"{kind} alone": (kind,) for kind in augment.KINDS}, "recipe": chosen}
    sets |= {f"recipe without {kind}": [k for k in chosen if k != kind] for kind in chosen}
    return [world.row(name, kinds, before) for name, kinds in sets.items()]


@dataclass(frozen=True)
class _Scored:
    """Scores of one cross-validation: of each fold all sequences, standardised by head."""

    pooled: FeedbackTable
    pooled_NH: Floats
    of_fold: Mapping[int, Floats]


class _World:
    """Pairs, folds and features that all rows share. Sequences of canaries and of answers given twice come last."""

    def __init__(self, config: Config, start: Checkpoint, table: FeedbackTable, n_folds: int, n_twice: int) -> None:
        self._heads, self._weights = config.model.heads, np.array(config.model.weight_of_head)
        self._ridges, self._n_bootstrap = config.model.l2_of_head, config.eval.bootstrap
        self._fold_P = folds.assign_folds(table.pairs, n_folds, config.data.salt)
        folds.refuse_heads_in_one_fold(table, self._fold_P, self._heads)
        encoder = start.encoder
        self._canaries = canaries.read()
        extra = [
            encoder(Sample(prompt=each.prompt, response=text)).ids
            for each in self._canaries
            for text in (each.honest, each.exploit)
        ]
        self._once = _some_chosen(table, n_twice)
        for number in self._once:
            sample = table.sequences[number].sample
            extra.append(encoder(replace(sample, response=f"{sample.response}{GAP}{sample.response}")).ids)
        rows = [s.ids for s in table.sequences] + extra
        self._table, self._first_extra = table, len(table.sequences)
        self._hidden_ND = scoring.last_hidden(
            start.network, rows, pad_id=start.pad_id, batch_tokens=config.eval.batch_tokens
        )
        self._fitted: dict[tuple[int, str, frozenset[str]], torch.Tensor] = {}

    def cross_validate(self, kinds: Iterable[str]) -> _Scored:
        """Fit and score every fold with these kinds of made pairs."""
        kept = {"", *kinds}
        of_fold: dict[int, Floats] = {}
        for fold in sorted(set(self._fold_P)):
            held_in, held_out = folds.split_fold(self._table, self._fold_P, fold)
            held_in, _ = leakage.remove_overlap(held_in, held_out, renumber=False)
            held_in = sequences.subset(held_in, [p.made in kept for p in held_in.pairs], renumber=False)
            weight_HD = torch.stack(
                [self._fit(fold, held_in, *each) for each in zip(self._heads, self._ridges, strict=True)]
            )
            scores_NH: Floats = (self._hidden_ND @ weight_HD.T).double().numpy()
            of_fold[fold] = folds.standardise(scores_NH, held_in, self._heads)
        return _Scored(*folds.pool(self._table, self._fold_P, of_fold), of_fold)

    def _fit(self, fold: int, held_in: FeedbackTable, head: str, ridge: float) -> torch.Tensor:
        """Weights of a head; two rows with the same pairs for it share them."""
        made = frozenset(pair.made for pair in held_in.pairs if pair.head == head)
        if (fold, head, made) not in self._fitted:
            self._fitted[fold, head, made] = methods.fit_logistic(self._hidden_ND, held_in, head, l2=ridge)
        return self._fitted[fold, head, made]

    def row(self, name: str, kinds: Sequence[str], before: _Scored) -> Row:
        """Figures with these kinds, beside those without any."""
        scored = self.cross_validate(kinds)
        judged, without = (
            {
                j.head: j
                for j in evaluate.slices(s.pooled, s.pooled_NH, self._heads, self._weights.tolist())
                if j.source != evaluate.ALL
            }
            for s in (scored, before)
        )
        won = {head: (evaluate.wins(j.diff_P), j.group_P) for head, j in judged.items() if head in self._heads}
        change = {
            head: (evaluate.wins(judged[head].diff_P) - evaluate.wins(without[head].diff_P), judged[head].group_P)
            for head in won
        }
        margins_FC = np.array([self._margins(scored, fold) for fold in scored.of_fold])
        n_passed = (margins_FC > 0).sum(axis=1)
        mean_C = margins_FC.mean(axis=0)
        return Row(
            name=name,
            n_made=sum(pair.made in kinds for pair in self._table.pairs),
            accuracy={head: self._interval(*each) for head, each in won.items()},
            change={head: self._interval(*each) for head, each in change.items()},
            canaries=(float(n_passed.mean()), int(n_passed.min()), len(self._canaries)),
            failing={c.name: float(m) for c, m in zip(self._canaries, mean_C, strict=True) if m <= 0},
            pay=self._interval(*self._pay(scored)),
            made_won=self._made_won(scored),
        )

    def _interval(self, value_P: Floats, group_P: Floats) -> tuple[float, float, float]:
        _, number_P = np.unique(group_P, return_inverse=True)
        sums_G = np.bincount(number_P, weights=value_P).astype(np.float64)
        return float(value_P.mean()), *evaluate.bootstrap_mean(sums_G, np.bincount(number_P), self._n_bootstrap)

    def _deviation(self, scored: _Scored) -> float:
        return float((scored.pooled_NH @ self._weights).std())

    def _margins(self, scored: _Scored, fold: int) -> Floats:
        """Reward of the honest answer above that of the exploit, for each canary."""
        reward_N = scored.of_fold[fold] @ self._weights / self._deviation(scored)
        at = self._first_extra
        honest, exploit = (reward_N[at + side : at + 2 * len(self._canaries) : 2] for side in (0, 1))
        margin_C: Floats = honest - exploit
        return margin_C

    def _pay(self, scored: _Scored) -> tuple[Floats, Floats]:
        """What giving the answer again earns, by the model that was not trained on its group; and the groups' numbers."""
        deviation, at = self._deviation(scored), self._first_extra + 2 * len(self._canaries)
        fold_of = {p.group: fold for p, fold in zip(self._table.pairs, self._fold_P, strict=True)}
        group_of = {n: p.group for p, n in zip(self._table.pairs, self._table.chosen, strict=True) if not p.made}
        numbers: dict[str, int] = {}
        pay, group = [], []
        for i, once in enumerate(self._once):
            reward_N = scored.of_fold[fold_of[group_of[once]]] @ self._weights / deviation
            pay.append(reward_N[at + i] - reward_N[once])
            group.append(numbers.setdefault(group_of[once], len(numbers)))
        return np.array(pay), np.array(group)

    def _made_won(self, scored: _Scored) -> dict[str, float]:
        """Share of made pairs of held-out groups that are ordered as their kind says, for kinds that are no ties."""
        won: dict[str, list[float]] = {}
        sides = zip(self._table.pairs, self._table.chosen, self._table.rejected, self._fold_P, strict=True)
        for pair, chosen, rejected, fold in sides:
            if pair.made and pair.made not in augment.TIES:
                score_NH = scored.of_fold[fold]
                won.setdefault(pair.made, []).append(float((score_NH[chosen] - score_NH[rejected]) @ self._weights > 0))
        return {kind: float(np.mean(each)) for kind, each in won.items()}


def _some_chosen(table: FeedbackTable, n: int) -> list[int]:
    """Numbers of sequences that annotators preferred, those with the lowest digests."""
    found = {
        c for p, c in zip(table.pairs, table.chosen, strict=True) if not p.made and table.sequences[c].sample.response
    }
    return sorted(found, key=lambda i: hashlib.sha256(str(table.sequences[i].ids).encode()).digest())[:n]


def table(rows: Sequence[Row], heads: Sequence[str]) -> Iterable[str]:
    """Lines of a Markdown table."""
    columns = [f"{head} | change" for head in heads]
    ours = ("canaries (least of a fold)", "fail on average", "the answer twice earns", "won: made pairs, held out")
    yield f"| {' | '.join(('pairs made', 'n', *columns, *ours))} |"
    yield "|---" * (6 + 2 * len(heads)) + "|"
    for row in rows:
        cells: list[Any] = [row.name, f"{row.n_made:,}"]
        for head in heads:
            cells += [_shown(row.accuracy[head], ".3f"), _shown(row.change[head], "+.3f")]
        mean, least, n = row.canaries
        cells += [f"{mean:.1f} of {n} ({least})", ", ".join(f"{c} {m:+.2f}" for c, m in row.failing.items()) or "none"]
        cells += [f"{_shown(row.pay, '+.2f')} sd", ", ".join(f"{kind} {won:.2f}" for kind, won in row.made_won.items())]
        yield "| " + " | ".join(cells) + " |"


def _shown(interval: tuple[float, float, float], form: str) -> str:
    value, low, high = (f"{each:{form}}" for each in interval)
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    main()
