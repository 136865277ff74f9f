"""Ablation of training options: accuracy, its balance in length, correlation with length and invariance of each row of `ROWS`.

    python -m benchmarks.training_options --set data.sources.0.path=pairs.jsonl --folds 5

A row is a name and overrides of the recipe, which has `method.name: frozen`. Every row is a grouped cross-validation with the same
folds; features of the backbone are computed once for each text. Figures are of held-out pairs, with 95 % intervals that draw whole
groups, and changes against the first row over the same draws.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from rewardserve.model.checkpoint import Checkpoint
from rewardserve.model.conversation import Sample
from rewardserve.training import crossvalidate, workflow
from rewardserve.training.batches import scoring
from rewardserve.training.dataset.sequences import Ids, TokenSequence
from rewardserve.training.evaluation import evaluate, folds, invariance
from rewardserve.training.evaluation.evaluate import Floats, Ints
from rewardserve.training.settings import recipe
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.validation import ConfigError
from rewardserve.training.transforms import TRANSFORMS

RECIPE = Path(__file__).with_suffix(".yaml")

SEEN = ("trailing_newlines", "sentence_lines", "opener", "emoji", "quotes", "spelling")
"""Half of the changes: the row `consistency=1, half` trains on these, so that the others measure changes that it has not seen."""

ROWS: dict[str, tuple[str, ...]] = {
    "none": (),
    "balance_length": ("data.balance_length=true",),
    "indifference.length=0.3": ("indifference.length=0.3",),
    "indifference.length=1": ("indifference.length=1",),
    "indifference.length=3": ("indifference.length=3",),
    "indifference.length=1, responses": ("indifference.length=1", "indifference.between=responses"),
    "indifference.markup=1": ("indifference.markup=1",),
    "length_head=1, 1": ("length_head.correlation=1", "length_head.orthogonality=1"),
    "length_head=0.3, 0.3": ("length_head.correlation=0.3", "length_head.orthogonality=0.3"),
    "length_head=1, 0": ("length_head.correlation=1",),
    "weight_decay=5": ("optim.weight_decay=5",),  # whether a smaller head is all that consistency needs
    "consistency=0.1": ("consistency.weight=0.1", "consistency.twins=2"),
    "consistency=1": ("consistency.weight=1", "consistency.twins=2"),
    "consistency=1, half": ("consistency.weight=1", "consistency.twins=2", f"consistency.transforms=[{', '.join(SEEN)}]"),
    "length=1 and consistency=1": ("indifference.length=1", "consistency.weight=1", "consistency.twins=2"),
}  # fmt: skip
"""Name -> overrides of the recipe. The first row is what the others are compared with."""

Interval = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Scores of one row on the held-out pairs; `shift_Q`: mean size of the shift of each sampled pair, by kind of change."""

    diff_P: Floats
    longer_P: Floats
    score_2P: Floats
    log_tokens_2P: Floats
    group_P: Ints
    shift_Q: Mapping[str, Floats]
    group_Q: Ints


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one row, and their changes against the first one; `refused` has the reason where the recipe is refused."""

    name: str
    figures: Mapping[str, Interval]
    changes: Mapping[str, Interval]
    refused: str = ""


class FeatureCache:
    """Hidden states of the frozen backbone by token ids, each computed once over all rows; kept in a file where one is named."""

    def __init__(self, start: Checkpoint, batch_tokens: int, file: Path | None) -> None:
        self._start, self._batch_tokens, self._file = start, batch_tokens, file
        self._known: dict[Ids, torch.Tensor] = torch.load(file) if file and file.is_file() else {}

    def of(self, rows: Sequence[Ids]) -> torch.Tensor:
        """Features `(N, D)` of these sequences."""
        new = sorted(set(rows) - self._known.keys())
        if new:
            found_ND = scoring.last_hidden(
                self._start.network, new, pad_id=self._start.pad_id, batch_tokens=self._batch_tokens
            )
            self._known |= dict(zip(new, found_ND, strict=True))
            if self._file:
                torch.save(self._known, self._file)
        return torch.stack([self._known[ids] for ids in rows])


def main() -> None:
    """Print the table in Markdown."""
    options = _options()
    config = recipe.load(options.config, options.set)
    names = options.rows.split("; ") if options.rows else list(ROWS)
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise SystemExit(f"no row is called {', '.join(unknown)}; rows are: {'; '.join(ROWS)}")
    rows = ablate(config, options.folds, {name: ROWS[name] for name in names}, options.features)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure training options on held-out pairs.")
    parser.add_argument("--config", type=Path, default=RECIPE, help="recipe with method.name: frozen")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of the recipe"
    )
    parser.add_argument("--folds", type=int, default=5, help="number of folds; as many as groups leaves one out")
    parser.add_argument("--rows", default="", help="names of rows, separated by '; '; default: all")
    parser.add_argument(
        "--features", type=Path, help="file that keeps the features for the next run over the same backbone"
    )
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser.parse_args()


def ablate(config: Config, n_folds: int, rows: Mapping[str, Sequence[str]], features: Path | None = None) -> list[Row]:
    """One row for each set of overrides. Raise `ConfigError` unless the backbone is frozen and has one head."""
    if config.method.name != "frozen" or len(config.model.heads) != 1:
        raise ConfigError(
            "the ablation reads cached features of one head: method.name: frozen, one name in model.heads"
        )
    config = replace(
        config,
        data=replace(config.data, eval_fraction=0.0),
        output=replace(config.output, report_to=()),
        audit_judge=None,
    )
    Path(config.output.folder).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    start = workflow.load_start(config)
    cache, fresh = FeatureCache(start, config.eval.batch_tokens, features), crossvalidate.restored(start)
    found: list[Row] = []
    first: HeldOutScores | None = None
    for name, overrides in rows.items():
        try:
            row = recipe.parse(recipe.plain(config), overrides)
            scores = _cross_validate(row, n_folds, start, fresh, cache)
        except ConfigError as error:
            found.append(Row(name, {}, {}, str(error)))
            continue
        first = first or scores
        found.append(_row(name, scores, first, config.eval.bootstrap))
        print(table(found[-1:]), flush=True)
    return found


def _cross_validate(
    config: Config, n_folds: int, start: Checkpoint, fresh: Callable[[], Checkpoint], cache: FeatureCache
) -> HeldOutScores:
    """Train each fold, and score its held-out pairs and their changed responses."""
    tables = workflow.encode(config, start, in_folds=True)
    table = tables.train
    fold_P = folds.assign_folds(table.pairs, n_folds, config.data.salt)
    folds.refuse_heads_in_one_fold(table, fold_P, config.model.heads)
    changed = invariance.changed_responses(table, start.encoder, config.eval.invariance_pairs, config.data.salt)
    extra = tuple(TokenSequence(ids, 0, Sample(prompt="changed response", response=str(ids))) for ids in changed.rows)
    n = len(table.sequences)
    # The changed responses come last: no pair has them, so no fold trains on them.
    table = replace(table, sequences=(*table.sequences, *extra))
    features = cache.of([s.ids for s in table.sequences])
    scores_of, _ = crossvalidate.score_folds(config, fresh, replace(tables, train=table), fold_P, features)
    own = np.stack([scores_of[fold][:, 0] for fold in range(n_folds) if fold in scores_of])
    place = {fold: i for i, fold in enumerate(f for f in range(n_folds) if f in scores_of)}
    at_P = np.array([place[fold] for fold in fold_P])
    chosen_P, rejected_P = (own[at_P, list(side)] for side in (table.chosen, table.rejected))
    tokens = np.array([s.n_response for s in table.sequences])
    chosen_t, rejected_t = (np.log(np.maximum(tokens[list(side)], 1)) for side in (table.chosen, table.rejected))
    numbers: dict[str, int] = {}
    group_P = np.array([numbers.setdefault(pair.group, len(numbers)) for pair in table.pairs])
    return HeldOutScores(
        diff_P=chosen_P - rejected_P,
        longer_P=np.array([np.sign(len(p.chosen_text) - len(p.rejected_text)) for p in table.pairs]),
        score_2P=np.concatenate([chosen_P, rejected_P]),
        log_tokens_2P=np.concatenate([chosen_t, rejected_t]),
        group_P=group_P,
        shift_Q=_shifts(changed, table.chosen, table.rejected, own, at_P, n),
        group_Q=group_P[list(changed.pairs)],
    )


def _shifts(
    changed: invariance.ChangedResponses,
    chosen: Sequence[int],
    rejected: Sequence[int],
    own: Floats,
    at_P: Ints,
    n: int,
) -> dict[str, Floats]:
    """Mean size of the shift of both responses of each sampled pair, over all changes, those of `SEEN`, and the others."""
    kinds = {"all": tuple(TRANSFORMS), "seen": SEEN, "unseen": tuple(name for name in TRANSFORMS if name not in SEEN)}
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for i in changed.pairs:
        score = own[at_P[i]]
        sizes = {
            name: [abs(score[n + row[s]] - score[s]) for s in (chosen[i], rejected[i]) if s in row]
            for name, row in changed.row_of.items()
        }
        for kind, names in kinds.items():
            all_sizes = [size for name in names for size in sizes[name]]
            found[kind].append(float(np.mean(all_sizes)) if all_sizes else 0.0)
    return {kind: np.array(each) for kind, each in found.items()}


def _row(name: str, scores: HeldOutScores, first: HeldOutScores, n_bootstrap: int) -> Row:
    figures: dict[str, Interval] = {}
    changes: dict[str, Interval] = {}
    for figure, of in FIGURES.items():
        value, before = of(scores), of(first)
        drawn = np.array([(value(d), before(d)) for d in _draws(figure, scores, n_bootstrap)])
        everything = next(_draws(figure, scores, 0))
        figures[figure] = _interval(value(everything), drawn[:, 0])
        changes[figure] = _interval(value(everything) - before(everything), drawn[:, 0] - drawn[:, 1])
    return Row(name, figures, changes)


def _draws(figure: str, scores: HeldOutScores, n: int) -> Iterator[Ints]:
    """Places of the pairs of `n` draws of whole groups, the same for each row; without a draw, all pairs once."""
    group = scores.group_Q if figure.startswith("shift") else scores.group_P
    if not n:
        yield np.arange(len(group))
        return
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(group == g) for g in np.unique(group)]
    for _ in range(n):
        yield np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])


def _interval(value: float, drawn: Floats) -> Interval:
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(value), float(low), float(high)


def _accuracy(scores: HeldOutScores) -> Callable[[Ints], float]:
    won_P = evaluate.wins(scores.diff_P)
    return lambda drawn: float(won_P[drawn].mean())


def _balanced(scores: HeldOutScores) -> Callable[[Ints], float]:
    """Mean of the accuracies where the chosen text is the longer one, and where it is the shorter one."""
    won_P = evaluate.wins(scores.diff_P)

    def balanced(drawn: Ints) -> float:
        sides = [won_P[drawn][scores.longer_P[drawn] == side] for side in (1, -1)]
        return float(np.mean([side.mean() for side in sides])) if all(map(len, sides)) else float("nan")

    return balanced


def _length(scores: HeldOutScores) -> Callable[[Ints], float]:
    """Correlation of scores and log tokens, over both responses of each pair."""
    n = len(scores.diff_P)

    def correlation(drawn: Ints) -> float:
        both = np.concatenate([drawn, drawn + n])
        return evaluate.pearson(scores.score_2P[both], scores.log_tokens_2P[both])

    return correlation


def _shift(kind: str) -> Callable[[HeldOutScores], Callable[[Ints], float]]:
    return lambda scores: lambda drawn: float(scores.shift_Q[kind][drawn].mean())


FIGURES: dict[str, Callable[[HeldOutScores], Callable[[Ints], float]]] = {
    "accuracy": _accuracy,
    "length-balanced": _balanced,
    "r of length": _length,
    "shift, sd": _shift("all"),
    "shift, seen half": _shift("seen"),
    "shift, other half": _shift("unseen"),
}
"""Name of a figure -> its value on drawn pairs."""


def table(rows: Sequence[Row]) -> str:
    """A Markdown table: each figure with its change against the first row."""
    lines = [f"| {' | '.join(('row', *FIGURES))} |", "|---" * (1 + len(FIGURES)) + "|"]
    for row in rows:
        cells = (
            [f"refused: {row.refused}"] if row.refused else list(map(_cell, row.figures.values(), row.changes.values()))
        )
        lines.append(f"| {' | '.join((row.name, *cells))} |")
    return "\n".join(lines)


def _cell(value: Interval, change: Interval) -> str:
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}], {change[0]:+.3f} [{change[1]:+.3f}, {change[2]:+.3f}]"


if __name__ == "__main__":
    main()
