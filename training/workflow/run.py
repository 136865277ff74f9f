"""One run from start to end: read, encode, hold out, train, and `finish`, which evaluates, calibrates, exports and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from rewardserve.model.checkpoint import Checkpoint
from rewardserve.training import run_folder
from rewardserve.training.audit_judge import judge_config
from rewardserve.training.console import show
from rewardserve.training.dataset import hub
from rewardserve.training.evaluation.style import read_styles
from rewardserve.training.finish import RunTimer, TrainingRecord, audited_figures, figures, finish, score_slices
from rewardserve.training.loop.methods import check_quantization, check_targets
from rewardserve.training.loop.reporting import check_trackers
from rewardserve.training.loop.sharding import check_sharding
from rewardserve.training.loop.stages import continued, newest_step, stage_configs, stages_of, step_folders
from rewardserve.training.loop.step_checkpoints import last_complete, read_best
from rewardserve.training.loop.trainer import check_optimizer, check_warmup
from rewardserve.training.objective.length_head import drop_length_heads
from rewardserve.training.objective.losses import pair_loss
from rewardserve.training.results.export import read_probes
from rewardserve.training.settings.config import AuditJudgeConfig, Config
from rewardserve.training.settings.validation import ConfigError
from rewardserve.training.workflow.data_checks import (
    refuse_best_of_nothing,
    refuse_unequal_ranks,
    refuse_untrained_heads,
)
from rewardserve.training.workflow.fitting import features, fit, initialise_heads, load_newest, log_of, prepare_network
from rewardserve.training.workflow.processes import n_processes, process
from rewardserve.training.workflow.resume import (
    lock_folder,
    refuse_other_inputs,
    refuse_other_recipe,
    refuse_other_solution,
    step_to_resume,
)
from rewardserve.training.workflow.ridge import RidgeChoice
from rewardserve.training.workflow.start import load_start, name_setting, print_not_adapted
from rewardserve.training.workflow.tables import encode


def train(config: Config) -> Path:
    """Train, and write all outputs of a run; the audit judge, if the recipe has one, first. Return the checkpoint's folder."""
    if config.audit_judge is not None:
        _train_judge(config, config.audit_judge)
    return _train_model(config)


def _train_judge(config: Config, judge: AuditJudgeConfig) -> None:
    """Train the audit judge in its folder; a finished one is kept where the run is resumed."""
    with name_setting("model.path", config.model.path, how="--set model.path=PATH"):
        own = judge_config(config, judge)
    if config.output.resume and (Path(own.output.folder) / "checkpoint").is_dir():
        refuse_other_recipe(own, Path(own.output.folder))
    else:
        show(f"audit judge: the first {own.model.n_layers} layers")
        with lock_folder(Path(config.output.folder)):
            step_to_resume(config, Path(config.output.folder))
        _train_model(own)
    show("model:")


def _train_model(config: Config) -> Path:
    torch.manual_seed(config.seed)
    folder = Path(config.output.folder)
    timer = RunTimer()
    with lock_folder(folder):
        check_sharding(config)
        resume_from = step_to_resume(config, folder)
        for each in stage_configs(config):
            check_optimizer(each)
            pair_loss(each.loss)
        check_trackers(config)
        check_quantization(config.method)
        if config.output.push_to_hub and process().is_main_process:
            hub.create_repository(config.output.push_to_hub, private=config.output.hub_private)
        if config.eval.style_file:
            read_styles(Path(config.eval.style_file))
        if config.export.probes:
            read_probes(Path(config.export.probes))
        start = load_start(config)
        check_targets(start.network, config.method)
        print_not_adapted(config, start)
        tables = encode(config, start)
        refuse_unequal_ranks(tables)
        refuse_other_inputs(config, folder, start, tables.train, resume_from)
        refuse_untrained_heads(config, tables.train)
        for stage in stages_of(config, tables.train):
            check_warmup(stage.config, stage.table, n_processes())
        refuse_best_of_nothing(config, tables)
        start = replace(start, policy=tables.policy)
        # A fresh head has no earlier figures to compare with.
        before = figures(config, score_slices(config, start, tables.held_out)) if config.model.start == "reward" else []
        audited_before = audited_figures(config, start, tables) if config.model.start == "reward" else ()
        hidden_ND = features(config, start, tables.train)
        start = _with_ridges(start, initialise_heads(config, start, tables.train, hidden_ND))
        trained, history = fit(config, start, tables, hidden_ND, folder, resume_from)
        if trained is not None:
            made = replace(
                _record("train", config, folder, timer, step_folders(config, folder)[-1]),
                before=tuple(before), history=tuple(history), audited_before=tuple(audited_before),
            )  # fmt: skip
            _publish(config, finish(config, trained, tables, folder, made))
    process().wait_for_everyone()
    return folder / "checkpoint"


def export_last_step(config: Config) -> Path:
    """Finish a stopped run: its newest complete step becomes the checkpoint, with all that belongs to it.

    A run that ended between its checkpoint and its report is finished again; without steps, its heads are the same solution.
    """
    folder = Path(config.output.folder)
    timer = RunTimer()
    with lock_folder(folder):
        step, is_solved = newest_step(config, folder), config.optim.epochs == 0
        unreported = run_folder.lacks_report(folder)
        if step is None and not (unreported and is_solved):
            raise ConfigError(f"{folder / 'steps'} holds no complete step checkpoint; run `rewardserve train` first")
        if not unreported:
            run_folder.refuse_finished(folder)
        refuse_other_recipe(config, folder)
        if config.output.push_to_hub:
            hub.create_repository(config.output.push_to_hub, private=config.output.hub_private)
        start = load_start(config)
        tables = encode(config, start)
        refuse_other_inputs(config, folder, start, tables.train, step)
        start = replace(start, policy=tables.policy)
        if step is None:
            refuse_other_solution(folder / "checkpoint", tables.train)
            hidden_ND = features(config, start, tables.train)
            start = _with_ridges(start, initialise_heads(config, start, tables.train, hidden_ND))
        else:
            prepare_network(config, start)
            load_newest(config, start.network, step.parent)
            drop_length_heads(start.network)
        made = _record("finish", config, folder, timer, step.parent if step else None)
        return _publish(config, finish(config, start, tables, folder, made))


def _with_ridges(start: Checkpoint, chosen: Sequence[RidgeChoice]) -> Checkpoint:
    """Print which ridges were chosen; the notes of the checkpoint carry it into the report."""
    for each in chosen:
        show(f"  {each}")
    return replace(start, notes=(*start.notes, *map(str, chosen)))


def _publish(config: Config, checkpoint: Path) -> Path:
    """Upload a finished checkpoint, if the recipe names a repository. Return the checkpoint's folder."""
    if config.output.push_to_hub:
        show(f"uploaded: {hub.push(checkpoint, config.output.push_to_hub)}")
    return checkpoint


def _record(verb: str, config: Config, folder: Path, timer: RunTimer, steps: Path | None) -> TrainingRecord:
    """The record of a run whose weights are those of the last step in `steps`, or the best one; None: no step was taken."""
    if steps is None:
        return TrainingRecord(verb, timer)
    history: list[dict[str, float]] = []
    for each in step_folders(config, folder):
        history += continued(log_of(last_complete(each)), history)
    best = read_best(steps, config.eval.best_by)
    own = log_of(last_complete(steps)) if config.stages else None
    return TrainingRecord(verb, timer, history=tuple(history), best=best, of_stage=own)
