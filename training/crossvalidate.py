"""Cross-validation: every pair is scored once, by a model of the same recipe that was not trained on its group.

`folds` assigns pairs to folds; the steps of a run are those of `workflow`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from rewardserve.model.checkpoint import Checkpoint
from rewardserve.training import finish, run_folder, workflow
from rewardserve.training.console import say
from rewardserve.training.dataset import data, leakage, row_counts
from rewardserve.training.dataset.comparisons import comparisons
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.evaluation import evaluate, folds
from rewardserve.training.evaluation.evaluate import Floats, SliceMetrics
from rewardserve.training.evaluation.graded_metrics import GradedMetrics, grade
from rewardserve.training.evaluation.members import of_heads
from rewardserve.training.finish import EncodedData
from rewardserve.training.loop.methods import check_quantization
from rewardserve.training.loop.trainer import check_optimizer
from rewardserve.training.results import export, report
from rewardserve.training.settings import recipe
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.validation import ConfigError

_MOST_FOLDS = 10_000


@dataclass(frozen=True, slots=True)
class CrossValidationResult:
    """Result of a cross-validation: a line of figures and the accuracies of the groups, for each slice."""

    metrics: tuple[SliceMetrics, ...]
    crossed: tuple[SliceMetrics, ...]
    by_group: tuple[tuple[float, ...], ...]
    page: Path
    graded: tuple[GradedMetrics, ...] = ()


def crossvalidate(config: Config, n_folds: int) -> CrossValidationResult:
    """Train and evaluate `n_folds` times; write `crossvalidation.json` and `.html`. Raise `ConfigError`."""
    _refuse(config, n_folds)
    with run_folder.lock_folder(Path(config.output.folder)):
        return _crossvalidate(config, n_folds)


def _crossvalidate(config: Config, n_folds: int) -> CrossValidationResult:
    timer = finish.RunTimer()
    check_optimizer(config)
    # Every pair of the sources is held out once, so the recipe's held-out share is not used. A fold reports to no tracker.
    config = replace(config, data=replace(config.data, eval_fraction=0.0), output=replace(config.output, report_to=()))
    check_quantization(config.method)
    if config.eval.best_by:
        say("eval.best_by is left out: each fold is trained to its end, since its held-out pairs judge it")
        config = replace(config, eval=replace(config.eval, best_by=None, patience=0))
    torch.manual_seed(config.seed)
    start = workflow.load_start(config)
    workflow.print_not_adapted(config, start)
    notes = {"notes": list(start.notes)} if start.notes else {}
    tables = workflow.encode(config, start, in_folds=True)
    table = tables.train
    fold_P = folds.assign_folds(table.items, n_folds, config.data.salt)
    folds.refuse_heads_in_one_fold(table, fold_P, config.model.heads)
    features = workflow.features(config, start, table)
    fresh = restored(start) if _is_cached(config) else _read_again(config)
    del start
    scores_of, n_leaked = score_folds(config, fresh, tables, fold_P, features)
    pooled, scores_NH = folds.pool(table, fold_P, scores_of)
    facts = _facts(config, tables, n_folds) | notes | {"pairs left out of a fold's training": n_leaked} | timer.facts()
    return _report(config, facts, pooled, scores_NH, n_leaked)


def score_folds(
    config: Config,
    fresh: Callable[[], Checkpoint],
    tables: EncodedData,
    fold_P: Sequence[int],
    features: torch.Tensor | None,
) -> tuple[dict[int, Floats], int]:
    """Scores `(N, H)` of every sequence by the model of each fold, and how often a training pair was left out as held out.

    `fresh` returns the initial checkpoint. Scores are divided by the deviation over the responses that trained the head.
    """
    table = tables.train
    scores_of: dict[int, Floats] = {}
    n_leaked = 0
    for fold in sorted(set(fold_P)):
        held_in, held_out = folds.split_fold(table, fold_P, fold)
        n_before = len(held_in)
        held_in, overlap = leakage.remove_overlap(held_in, held_out, renumber=False)
        row_counts.refuse_fold(n_before, overlap, config.data.max_dropped)
        n_leaked += overlap.n_dropped
        folds.refuse_empty(held_in, config.model.heads)
        scores_NH = _scores(config, fresh(), tables.with_tables(held_in, held_out), table, features)
        scores_of[fold] = folds.standardise(scores_NH, held_in, config.model.heads)
    return scores_of, n_leaked


def _refuse(config: Config, n_folds: int) -> None:
    if not 2 <= n_folds <= _MOST_FOLDS:
        raise ConfigError(f"--folds is {n_folds}; it must be two or more, and at most {_MOST_FOLDS}")
    if config.data.eval_sources:
        raise ConfigError("crossvalidate holds out every pair of data.sources in turn; leave data.eval_sources out")
    if config.counterexamples is not None:
        raise ConfigError(
            "crossvalidate reads no counterexamples; leave them out, or make their pairs a source of data.sources"
        )
    if workflow.n_processes() > 1:
        raise ConfigError("crossvalidate runs in one process; start it without accelerate launch or torchrun")


# -- one fold ---------------------------------------------------------------------------------------------


def _is_cached(config: Config) -> bool:
    """Whether the backbone never changes, so that one pass over it serves every fold."""
    return config.method.name == "frozen"


def restored(start: Checkpoint) -> Callable[[], Checkpoint]:
    """Return a function that returns the same backbone for every fold, with the initial heads."""
    heads_HD = start.network.heads.weight.detach().clone()

    def fresh() -> Checkpoint:
        start.network.heads.weight.data.copy_(heads_HD)
        return start

    return fresh


def _read_again(config: Config) -> Callable[[], Checkpoint]:
    """Read the weights from disk for every fold, with the same fresh heads."""

    def fresh() -> Checkpoint:
        # A Trainer and its network refer to each other in cycles: without this, two folds' weights are in memory at
        # once.
        gc.collect()
        torch.manual_seed(config.seed)
        return workflow.load_start(config)

    return fresh


def _scores(
    config: Config, start: Checkpoint, tables: EncodedData, table: FeedbackTable, features: torch.Tensor | None
) -> Floats:
    """Train on the pairs of one fold, and score every sequence, `(N, H)`."""
    workflow.initialise_heads(config, start, tables.train, features)
    folder = Path(config.output.folder)
    with TemporaryDirectory(dir=folder, prefix="fold-") as scratch:
        trained, _ = workflow.fit(config, start, tables, features, Path(scratch), None)
    if trained is None:
        raise RuntimeError("training returned no weights to the only process. This is a bug in workflow.fit.")
    if _is_cached(config) and features is not None:
        weight_HD = trained.network.heads.weight.detach().float().cpu()
        cached_NH = (features @ weight_HD.T).double().numpy()
        return of_heads(trained.network.head_names, trained.network.head_weights, cached_NH).scores_NH
    trained.network.requires_grad_(False).eval()
    return finish.score(config, trained, table).scores_NH


# -- results ----------------------------------------------------------------------------------------------


def _report(
    config: Config, facts: dict[str, Any], pooled: FeedbackTable, scores_NH: Floats, n_leaked: int
) -> CrossValidationResult:
    names, weights = config.model.heads, config.model.weight_of_head
    compared = comparisons(pooled)
    judged = evaluate.slices(compared, scores_NH, names, weights)
    crossed = finish.figures(config, evaluate.cross_slices(compared, scores_NH, names, weights))
    graded = grade(pooled, scores_NH, names, n_bootstrap=config.eval.bootstrap)
    by_group = tuple(tuple(evaluate.accuracy_by_group(j).tolist()) for j in judged)
    metrics = finish.figures(config, judged)
    page = Path(config.output.folder) / "crossvalidation.html"
    ranges = {f"accuracy of groups, {m.head} · {m.source}": spread(g) for m, g in zip(metrics, by_group, strict=True)}
    shown = report.Page(
        f"Cross-validation of {page.resolve().parent.name}", facts | ranges, metrics, (), judged,
        recipe.plain(config), crossed, independence=(
            "Each pair was scored by a model that was trained on no pair of its group, and on no pair with one of its "
            f"responses to the same prompt (ignoring blanks and case; {n_leaked} times a training pair was left out for that)."
        ),
        graded=graded,
    )  # fmt: skip
    report.write(page, shown)
    plain = _plain(config, facts, metrics, by_group, crossed) | {"graded": [asdict(g) for g in graded]}
    run_folder.write_json(page.with_suffix(".json"), plain)
    return CrossValidationResult(tuple(metrics), tuple(crossed), by_group, page, tuple(graded))


def _facts(config: Config, tables: EncodedData, n_folds: int) -> dict[str, Any]:
    table = tables.train
    return {
        "made by": f"rewardserve crossvalidate --folds {n_folds}",
        "model": f"{config.model.path} ({config.model.start})",
        "method": config.method.name,
        "rows read": tables.split.n_rows,
        "rows skipped": len(tables.split.bad),
        "pairs": tables.account.n_train,
        "pairs made": tables.account.made,
        "sequences": len(table.sequences),
        "groups": len({item.group for item in table.items}),
        "pairs dropped": dict(table.dropped),
        "sequences truncated": sum(s.truncated for s in table.sequences),
        "data": data.digest(table.items),
        "scale": "scores of a fold are divided by the standard deviation over the responses that trained its head",
    }


def _plain(
    config: Config,
    facts: dict[str, Any],
    metrics: Sequence[SliceMetrics],
    by_group: Sequence[tuple[float, ...]],
    crossed: Sequence[SliceMetrics],
) -> dict[str, Any]:
    """The result as plain values. Groups are not named: the name of a group may be a text that must not be published."""
    lines = [
        asdict(m) | {"group_accuracy": {"low": min(g), "median": sorted(g)[len(g) // 2], "high": max(g)}}
        for m, g in zip(metrics, by_group, strict=True)
    ]
    return {
        "facts": facts,
        "metrics": lines,
        "cross-use": [asdict(m) for m in crossed],
        "recipe": recipe.plain(config),
        "versions": export.versions(),
    }


def spread(accuracy_G: Sequence[float]) -> str:
    """Lowest and highest accuracy of a group, in words."""
    return f"{min(accuracy_G):.3f} to {max(accuracy_G):.3f}"
