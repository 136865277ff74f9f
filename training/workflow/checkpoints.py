"""Evaluate, calibrate and average reward models that exist already, on the held-out pairs of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from rewardserve.model.checkpoint import Checkpoint, ReadOptions, read
from rewardserve.training import averaging, run_folder
from rewardserve.training.console import show
from rewardserve.training.dataset import data, hub
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.evaluation import evaluate
from rewardserve.training.evaluation.benchmark import Scored, score_with_checkpoint
from rewardserve.training.evaluation.benchmark_files import Benchmark
from rewardserve.training.evaluation.evaluate import SliceMetrics
from rewardserve.training.evaluation.graded_metrics import grade, graded_lines
from rewardserve.training.evaluation.invariance import InvarianceReport
from rewardserve.training.finish import (
    EncodedData,
    RunTimer,
    TrainingRecord,
    audited_figures,
    audited_lines,
    facts_of,
    figures,
    finish,
    independence,
    invariance_report,
    score,
    style_report,
)
from rewardserve.training.results import report
from rewardserve.training.settings import recipe
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.validation import ConfigError
from rewardserve.training.workflow.processes import process
from rewardserve.training.workflow.resume import lock_folder
from rewardserve.training.workflow.start import (
    as_written,
    name_setting,
    read_reward_model,
    require_padding_safe,
    with_limits,
    with_own_heads,
)
from rewardserve.training.workflow.tables import encode


def evaluate_checkpoint(
    config: Config, path: str, *, measures_invariance: bool = False
) -> tuple[list[SliceMetrics], InvarianceReport | None, Path]:
    """Evaluate an existing reward model on the recipe's held-out pairs; write a report. Return figures and its path."""
    if measures_invariance and not config.eval.invariance_pairs:
        raise ConfigError("--invariance with eval.invariance_pairs: 0 would score no response; raise it")
    if not measures_invariance:
        config = replace(config, eval=replace(config.eval, invariance_pairs=0))
    timer, folder = RunTimer(), Path(config.output.folder)
    run_folder.require_writable(folder)
    checkpoint = with_limits(config, read_reward_model(config, path))
    tables = encode(with_own_heads(config, checkpoint), checkpoint, is_bound=True)
    _require_held_out(tables, "evaluate")
    page = folder / "evaluation.html"
    made = TrainingRecord(f"evaluate --checkpoint {path}", timer)
    metrics, invariant = _write_report(config, checkpoint, tables, page, made, f"Evaluation of {path}")
    run_folder.write_json(page.with_suffix(".json"), [asdict(m) for m in metrics])
    if invariant is not None:
        run_folder.write_json(folder / "invariance.json", asdict(invariant))
    return metrics, invariant, page


def score_benchmark(benchmark: Benchmark, path: str) -> Scored:
    """Score a benchmark file with a checkpoint."""
    with name_setting("--checkpoint", path, how="--checkpoint=PATH"):
        checkpoint = read(path, ReadOptions(dtype="float32"), device=str(process().device))
    name = path if hub.is_hub_model(path) else Path(path).resolve().name
    return score_with_checkpoint(require_padding_safe(checkpoint), benchmark.samples(), name)


def _write_report(
    config: Config, checkpoint: Checkpoint, tables: EncodedData, page: Path, made: TrainingRecord, title: str
) -> tuple[list[SliceMetrics], InvarianceReport | None]:
    """Judge a written checkpoint on the held-out pairs, and write the page. Return the figures."""
    scored = score(config, checkpoint, tables.held_out)
    heads, scores_NH = (scored.names, scored.weights), scored.scores_NH
    judged = evaluate.slices(tables.held_out, scores_NH, *heads)
    metrics = figures(config, judged)
    crossed = figures(config, evaluate.cross_slices(tables.held_out, scores_NH, *heads))
    graded = grade(tables.held_items, scores_NH, scored.names, n_bootstrap=config.eval.bootstrap)
    invariant = invariance_report(config, checkpoint, tables.held_out, scores_NH)
    facts = {"made by": f"rewardserve {made.verb}", **facts_of(config, tables), **made.facts(), **made.timer.facts()}
    for line in (about := audited_lines(made.audited_before, audited_figures(config, checkpoint, tables), tables)):
        show(line)
    facts |= {"accuracy on held-out counterexamples": about} if about else {}
    shown = report.Page(
        title, facts, metrics, made.before, judged, recipe.plain(config), crossed, made.history,
        independence(tables, (checkpoint.folder,)), invariant, style_report(config, checkpoint, tables.held_out, scores_NH),
        graded,
    )  # fmt: skip
    report.write(page, shown)
    for line in graded_lines(graded):
        show(line)
    return metrics, invariant


def calibrate_checkpoint(config: Config, path: str) -> Path:
    """Fit the calibration of a reward model on the recipe's held-out pairs; write the checkpoint and `calibration.html`.

    A checkpoint of the output folder is replaced; it has the same scores. The report of its training stays.
    """
    folder = Path(config.output.folder)
    timer = RunTimer()
    with lock_folder(folder):
        if Path(path).resolve() != (folder / "checkpoint").resolve():
            run_folder.refuse_finished(folder)
        checkpoint = with_limits(config, as_written(read_reward_model(config, path)))
        own = with_own_heads(config, checkpoint)
        tables = encode(own, checkpoint, is_bound=True)
        _require_held_out(tables, "calibrate")
        return finish(own, checkpoint, tables, folder, TrainingRecord("calibrate", timer, origins=(checkpoint.folder,)))


def average_checkpoints(config: Config, paths: Sequence[str]) -> Path:
    """Write the mean of the weights of several reward models as one, if the path between them is straight."""
    averaging.require_several(paths)
    folder = Path(config.output.folder)
    timer = RunTimer()
    with lock_folder(folder):
        run_folder.refuse_finished(folder)
        first = with_limits(config, as_written(read_reward_model(config, paths[0])))
        own = with_own_heads(config, first)
        tables = encode(own, first, is_bound=True)
        _require_held_out(tables, "average")
        origins: list[Path] = []

        def read_member(path: str) -> Checkpoint:
            member = with_limits(config, as_written(read_reward_model(config, path)))
            origins.append(member.folder)
            return member

        mean, found = averaging.average(paths, read_member, partial(_accuracy, own, tables.held_out))
        for line in map(str, found):
            show(line)
        mean = replace(mean, notes=(*mean.notes, *(f"averaged {path}" for path in found)))
        made = TrainingRecord("average", timer, origins=tuple(dict.fromkeys(origins)))
        return finish(own, mean, tables, folder, made)


def _accuracy(config: Config, table: FeedbackTable, checkpoint: Checkpoint) -> float:
    """Accuracy on all held-out pairs, each judged by the head that its source trains."""
    scored = score(config, checkpoint, table)
    return evaluate.own_head_accuracy(table, scored.scores_NH, scored.names)


def _require_held_out(tables: EncodedData, verb: str) -> None:
    if not len(tables.held_out):
        raise data.DataError(
            f"{verb} needs held-out pairs, but none is held out. Raise data.eval_fraction, or name data.eval_sources."
        )
