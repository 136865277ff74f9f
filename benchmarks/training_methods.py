"""Ablation of training methods on real data: which weights learn, means of several trainings, made pairs, rankings and ties.

    python -m benchmarks.training_methods --suite methods --set data.sources.0.path=pairs.jsonl --docs PAGE
    python -m benchmarks.training_methods --suite rankings --set data.sources.0.path=rankings.jsonl --docs PAGE

Every row is a grouped cross-validation with the same folds, judged on the same held-out pairs: of rankings, those in them.
Intervals of 95 % draw whole groups; those of a change, the groups of both rows together. `--docs` replaces the table of this suite
and data in a page.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.training_options import FeatureCache
from rewardserve.model.checkpoint import Checkpoint
from rewardserve.training import averaging, workflow
from rewardserve.training.dataset import leakage
from rewardserve.training.dataset.comparisons import comparisons
from rewardserve.training.dataset.feedback import Pair
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.errors import ModelUnusable
from rewardserve.training.evaluation import evaluate, folds
from rewardserve.training.evaluation.evaluate import Floats, bootstrap_mean, wins
from rewardserve.training.finish import EncodedData, score
from rewardserve.training.loop.methods import merge
from rewardserve.training.settings import recipe
from rewardserve.training.settings.config import Config

RECIPE = Path(__file__).with_suffix(".yaml")
Interval = tuple[float, float, float]
Scores = Mapping[int, Floats]
"""Fold -> score of every sequence by the model of that fold."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train: overrides of the recipe, and the training items that a fold has.

    `seeds` trainings of a fold give further rows: the mean of their weights, and the mean of their scores.
    """

    overrides: tuple[str, ...] = ()
    items: Callable[[FeedbackTable], FeedbackTable] = lambda table: table
    seeds: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one arm over all held-out pairs. `change`: its accuracy less that of the first row; `minutes` of training."""

    name: str
    n_pairs: int
    accuracy: Interval
    change: Interval
    minutes: float
    note: str = ""


def as_pairs(table: FeedbackTable) -> FeedbackTable:
    """The decided pairs of rankings."""
    return replace(comparisons(table), dropped={})


def as_pairs_and_ties(table: FeedbackTable) -> FeedbackTable:
    """All pairs of rankings, equal ranks as ties."""
    pairs: list[Pair] = []
    rows: list[tuple[int, ...]] = []
    for item, row in zip(table.items, table.rows, strict=True):
        for a, b in combinations(range(len(row)), 2):
            first, second = (a, b) if item.values[a] >= item.values[b] else (b, a)
            pairs.append(
                Pair(
                    f"{item.id}#{first + 1}>{second + 1}", item.source, item.group, item.head,
                    item.samples[first], item.samples[second], item.texts[first], item.texts[second],
                    tie=item.values[a] == item.values[b],
                )
            )  # fmt: skip
            rows.append((row[first], row[second]))
    return replace(table, items=tuple(pairs), rows=tuple(rows))


_BATCHES = ("optim.batching=grouped", "optim.batch_sequences=32", "optim.schedule=cosine", "optim.warmup=0.05")
_STEPS = (*_BATCHES, "method.name=frozen", "optim.lr=0.002", "optim.epochs=6")
_LORA = (*_BATCHES, "method.name=lora", "optim.lr=0.0003", "optim.head_lr=0.002")
_FULL = (*_BATCHES, "method.name=full", "optim.lr=0.00003", "optim.head_lr=0.002")
_CONVEX = ("method.name=frozen", "model.head_init=logistic", "optim.epochs=0")
_LOGISTIC = (*_CONVEX, "model.head_l2=[0.1]")
_AUGMENT = tuple(
    f"augment.{k}" for k in ("truncated=0.1", "empty=0.05", "repeated=0.1", "flattery=0.1", "injection=0.1")
)

SUITES: dict[str, dict[str, Arm]] = {
    "methods": {
        "frozen, head by steps": Arm(_STEPS),
        "frozen, convex head": Arm(_CONVEX),
        "frozen, convex head, augment": Arm((*_CONVEX, *_AUGMENT)),
        "frozen, convex head, augment.weight=0.25": Arm((*_CONVEX, *_AUGMENT, "augment.weight=0.25")),
        "lora": Arm(_LORA),
        "lora from the convex head": Arm((*_LORA, "model.head_init=logistic")),
        "full": Arm(_FULL, seeds=3),
    },
    "ridges": {
        "ridge 0.1": Arm(_LOGISTIC),
        "ridge chosen within the training groups": Arm(_CONVEX),
        "ridge 0.01": Arm((*_CONVEX, "model.head_l2=[0.01]")),
        "ridge 1": Arm((*_CONVEX, "model.head_l2=[1]")),
        "ridge 10": Arm((*_CONVEX, "model.head_l2=[10]")),
    },
    "rankings": {
        "decided pairs": Arm(_STEPS, as_pairs),
        "pairs and ties": Arm(_STEPS, as_pairs_and_ties),
        "rankings": Arm(_STEPS),
        "decided pairs, convex head": Arm(_LOGISTIC, as_pairs),
    },
}  # fmt: skip
"""Rows of each table. The first row is what the others are compared with."""


def main() -> None:
    """Print the table of a suite in Markdown."""
    parser = argparse.ArgumentParser(description="Measure training methods on held-out pairs.")
    parser.add_argument("--suite", choices=SUITES, required=True, help="table to measure")
    parser.add_argument("--config", type=Path, default=RECIPE, help="recipe that all rows override")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    parser.add_argument("--folds", type=int, default=5, help="number of folds")
    parser.add_argument("--arms", default="", help="names of rows to train, separated by '; '; default: all")
    parser.add_argument("--data", default="", help="name of the data in the heading of the table; default: its path")
    parser.add_argument("--json", type=Path, help="also write the rows to this file, after each of them")
    parser.add_argument("--docs", type=Path, help="page whose table of this suite and data is replaced")
    given = parser.parse_args()
    config = recipe.load(given.config, given.set)
    arms = {name: SUITES[given.suite][name] for name in given.arms.split("; ")} if given.arms else SUITES[given.suite]
    rows: list[Row] = []
    for row in ablate(config, given.folds, arms):
        rows.append(row)
        print(_line(row), flush=True)
        if given.json:
            given.json.write_text(json.dumps([asdict(each) for each in rows], indent=1) + "\n")
    name = given.data or Path(config.data.sources[0].path).name
    print("\n".join(table(rows)))
    if given.docs:
        given.docs.write_text(with_table(given.docs.read_text(), f"{given.suite} on {name}", rows))


def ablate(config: Config, n_folds: int, arms: Mapping[str, Arm]) -> Iterator[Row]:
    """The rows of each arm, one after the other."""
    config = replace(
        config, data=replace(config.data, eval_fraction=0.0), output=replace(config.output, report_to=()), audit_judge=None
    )  # fmt: skip
    cache: FeatureCache | None = None
    first: _HeldOut | None = None
    for name, arm in arms.items():
        own = recipe.parse(recipe.plain(config), arm.overrides)
        torch.manual_seed(own.seed)
        start = workflow.load_start(own)
        cache = cache or FeatureCache(start, own.eval.batch_tokens, None)
        began = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            found = _cross_validate(own, arm, n_folds, start, cache)
        minutes = (time.monotonic() - began) / 60
        for label, (held_out, note) in found.items():
            first = first or held_out
            yield _row(f"{name}{label}", held_out, first, own.eval.bootstrap, minutes, note)


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """Wins of the held-out pairs, and their groups in a fixed order."""

    won_P: Floats
    group_P: tuple[str, ...]

    def by_group(self) -> tuple[Floats, np.ndarray]:
        """Won pairs and pairs of each group."""
        names = {name: n for n, name in enumerate(sorted(set(self.group_P)))}
        numbers = np.array([names[group] for group in self.group_P])
        return np.bincount(numbers, weights=self.won_P).astype(np.float64), np.bincount(numbers)


def _cross_validate(
    config: Config, arm: Arm, n_folds: int, start: Checkpoint, cache: FeatureCache
) -> dict[str, tuple[_HeldOut, str]]:
    """Held-out pairs of the arm, and of the means of its trainings, by the end of the row's name; with a note each."""
    tables = workflow.encode(config, start, in_folds=True)
    whole = tables.train
    fold_I = folds.assign_folds(whole.items, n_folds, config.data.salt)
    needs_features = config.method.name == "frozen" or config.model.head_init == "logistic"
    features = cache.of([s.ids for s in whole.sequences]) if needs_features else None
    scores: dict[str, dict[int, Floats]] = {"": {}}
    refused = 0
    for fold in sorted(set(fold_I)):
        held_in, held_out = folds.split_fold(whole, fold_I, fold)
        held_in, _ = leakage.remove_overlap(held_in, held_out, renumber=False)
        own = tables.with_tables(arm.items(held_in), held_out)
        trained = [_train(replace(config, seed=config.seed + n), own, features) for n in range(arm.seeds)]
        judge = partial(_scores, config, whole, features)
        scored = [judge(each) for each in trained]
        scores[""][fold] = scored[0]
        if arm.seeds > 1:
            scores.setdefault(f", mean of the scores of {arm.seeds}", {})[fold] = np.mean(scored, axis=0)
            mean = _average(trained, partial(_accuracy, own.held_out, config, judge))
            refused += mean is None
            scores.setdefault(f", mean of the weights of {arm.seeds}", {})[fold] = judge(mean or trained[0])
        del trained
        gc.collect()
    note = f"{refused} folds refused, which count as the first training" if refused else ""
    return {
        label: (_held_out(whole, fold_I, each), note if "weights" in label else "") for label, each in scores.items()
    }


def _train(config: Config, tables: EncodedData, features: torch.Tensor | None) -> Checkpoint:
    """A checkpoint trained on the items of one fold; the start and the fresh heads are those of the recipe's seed 0."""
    torch.manual_seed(0)
    start = replace(workflow.load_start(config), policy=tables.policy)
    workflow.initialise_heads(config, start, tables.train, features)
    torch.manual_seed(config.seed)
    with TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):
        trained, _ = workflow.fit(config, start, tables, features, Path(scratch), None)
    assert trained is not None
    trained.network.requires_grad_(False).eval()
    merge(trained.network)
    return trained


def _average(trained: Sequence[Checkpoint], accuracy: Callable[[Checkpoint], float]) -> Checkpoint | None:
    """The mean of the weights as `rewardserve average` makes it; None where that refuses it."""
    names = [str(n) for n in range(len(trained))]
    try:
        return averaging.average(names, lambda name: copy.deepcopy(trained[int(name)]), accuracy)[0]
    except ModelUnusable:
        return None


def _scores(config: Config, table: FeedbackTable, features: torch.Tensor | None, trained: Checkpoint) -> Floats:
    if config.method.name == "frozen" and features is not None:
        cached: Floats = (features @ trained.network.heads.weight.detach().float().T).double().numpy()
        return cached
    with contextlib.redirect_stderr(io.StringIO()):
        return score(config, trained, table).scores_NH


def _accuracy(
    held_out: FeedbackTable, config: Config, judge: Callable[[Checkpoint], Floats], each: Checkpoint
) -> float:
    return evaluate.own_head_accuracy(held_out, judge(each), config.model.heads)


def _held_out(whole: FeedbackTable, fold_I: Sequence[int], scores: Scores) -> _HeldOut:
    pooled, scores_NH = folds.pool(whole, fold_I, scores)
    compared = comparisons(pooled)
    diff_P = scores_NH[list(compared.chosen), 0] - scores_NH[list(compared.rejected), 0]
    return _HeldOut(wins(diff_P), tuple(item.group for item in compared.items))


def _row(name: str, found: _HeldOut, first: _HeldOut, n_bootstrap: int, minutes: float, note: str) -> Row:
    won_G, size_G = found.by_group()
    less_G = won_G - first.by_group()[0]
    accuracy = (float(won_G.sum() / size_G.sum()), *bootstrap_mean(won_G, size_G, n_bootstrap))
    change = (float(less_G.sum() / size_G.sum()), *bootstrap_mean(less_G, size_G, n_bootstrap))
    return Row(name, len(found.won_P), accuracy, change, minutes, note)


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of a Markdown table."""
    return ["| row | accuracy | less that of the first row | minutes |", "|---|---|---|---|", *map(_line, rows)]


def _line(row: Row) -> str:
    value, low, high = row.accuracy
    change = "" if row.change == (0.0, 0.0, 0.0) else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row.change)
    name = f"{row.name} ({row.note})" if row.note else row.name
    return f"| {name} | {value:.3f} [{low:.3f}, {high:.3f}] | {change} | {row.minutes:.1f} |"


def with_table(page: str, name: str, rows: Sequence[Row]) -> str:
    """The page with this table in place of the one of that name, or with it at the end."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    block = "\n".join((begin, f"{rows[0].n_pairs:,} held-out pairs:", "", *table(rows), end))
    if begin in page:
        return re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: block, page, flags=re.DOTALL)
    return f"{page.rstrip()}\n\n{block}\n"


if __name__ == "__main__":
    main()
