"""Train the network of a run: features, initial heads, and one stage after the other."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rewardserve.model.checkpoint import Checkpoint
from rewardserve.model.network import RewardNetwork
from rewardserve.training.batches import scoring
from rewardserve.training.batches.members import of_output, trained_outputs
from rewardserve.training.batches.packed_attention import may_share_prefixes, packing_objection
from rewardserve.training.batches.pair_batches import Collator, Rows, cached_rows, packed_rows, token_rows
from rewardserve.training.console import say, show
from rewardserve.training.dataset.rating_scale import standardised
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.evaluation import evaluate
from rewardserve.training.finish import EncodedData, score, summary
from rewardserve.training.loop.lm_head import kept_lm_head
from rewardserve.training.loop.methods import CachedNetwork, adapt, fit_logistic, quantize
from rewardserve.training.loop.reporting import reports
from rewardserve.training.loop.stages import TrainingStage, continued, is_finished, mark_begun, mark_finished, stages_of
from rewardserve.training.loop.step_checkpoints import (
    BEST,
    WHOLE,
    history_of,
    last_complete,
    load_trained,
    load_weights,
    read_best,
    save_whole,
)
from rewardserve.training.loop.trainer import RewardTrainer, stops_at_signals
from rewardserve.training.objective.length_head import add_length_heads, drop_length_heads
from rewardserve.training.settings.config import Config
from rewardserve.training.workflow.data_checks import refuse_idle_losses, refuse_lost_labels, refuse_low_precision
from rewardserve.training.workflow.processes import process
from rewardserve.training.workflow.ridge import RidgeChoice, choose_ridge
from rewardserve.training.workflow.start import load_start


def features(config: Config, start: Checkpoint, table: FeedbackTable) -> torch.Tensor | None:
    """Hidden states of every distinct training sequence, if a fit needs them."""
    if config.method.name != "frozen" and config.model.head_init == "random":
        return None
    return scoring.last_hidden(start.network, _rows(table), pad_id=start.pad_id, batch_tokens=config.eval.batch_tokens)


def initialise_heads(
    config: Config, start: Checkpoint, table: FeedbackTable, features: torch.Tensor | None
) -> tuple[RidgeChoice, ...]:
    """Initialise the heads with the convex solution on these pairs, in place, if the recipe sets it. Return chosen ridges."""
    if config.model.head_init == "random" or features is None:
        return ()
    heads, wanted = start.network.heads.weight, config.model
    shares = trained_outputs(table.items, wanted, config.seed)
    chosen = () if wanted.head_l2 else tuple(choose_ridge(features, table, h, config.data.salt) for h in wanted.heads)
    l2_of = dict(zip(wanted.heads, [c.l2 for c in chosen] or wanted.l2_of_head, strict=True))
    for output, head in enumerate(wanted.head_of_output):
        own = of_output(table, shares, output)
        heads.data[output] = fit_logistic(features, own, head, l2=l2_of[head]).to(heads.device)
    return chosen


def fit(
    config: Config,
    start: Checkpoint,
    tables: EncodedData,
    features: torch.Tensor | None,
    folder: Path,
    resume_from: Path | None,
) -> tuple[Checkpoint | None, list[dict[str, float]]]:
    """Train, stage by stage; with `epochs: 0` take no step. The first process gets the whole weights; also return the log."""
    stages = stages_of(config, tables.train)
    for stage in stages:
        refuse_lost_labels(stage.config, stage.table)
        refuse_idle_losses(stage.config, tables.train)
    if config.optim.epochs == 0:
        return (start if process().is_main_process else None), []
    lm_head = kept_lm_head(config, start, tables.train) if any(stage.config.loss.sft for stage in stages) else None
    module, rows = network_and_rows(config, start, tables.train, features)
    refuse_low_precision(module)
    trained = start if process().is_main_process else None
    history: list[dict[str, float]] = []
    for number, stage in enumerate(stages):
        if stage.name:
            show(str(stage))
        steps = stage.steps(folder)
        if resume_from and is_finished(steps):
            load_newest(config, start.network, steps)
            history += continued(log_of(last_complete(steps)), history)
            continue
        mark_begun(steps)
        trained, log, is_sharded = _fit_stage(
            config, start, stage, module, rows, tables.held_out, folder, resumes=bool(resume_from), lm_head=lm_head
        )
        history += continued(log, history)
        if is_sharded and number + 1 < len(stages):
            if trained is not None:
                save_whole(trained.network, steps)
            process().wait_for_everyone()
            # A network that was sharded stays so: the next stage starts from the weights in a fresh one.
            start = replace(load_start(config), policy=start.policy, notes=start.notes)
            module, rows = network_and_rows(config, start, tables.train, features)
            load_newest(config, start.network, steps)
        if stage.name and process().is_main_process:
            mark_finished(steps)
    if trained is not None:
        drop_length_heads(trained.network)
    if trained is not None and config.method.quantize:
        trained = _unquantized(config, trained)
    return trained, history


def _fit_stage(
    config: Config,
    start: Checkpoint,
    stage: TrainingStage,
    module: torch.nn.Module,
    rows: Rows,
    held_out: FeedbackTable,
    folder: Path,
    *,
    resumes: bool,
    lm_head: torch.nn.Linear | None = None,
) -> tuple[Checkpoint | None, list[dict[str, float]], bool]:
    """Train one stage; also return its log, and whether its network is sharded now."""
    table, _ = standardised(stage.table)
    lm_head = lm_head if stage.config.loss.sft else None
    shares = trained_outputs(table.items, config.model, config.seed)
    collator = Collator(table, shares, rows, reads_tokens=lm_head is not None)
    steps = stage.steps(folder)
    evaluate_now = partial(_evaluate_held_out, config, start, held_out) if len(held_out) else None
    trainer = RewardTrainer(
        module, table, collator, stage.config, evaluate_held_out=evaluate_now, steps=steps, lm_head=lm_head
    )
    step = last_complete(steps) if resumes else None
    with stops_at_signals(trainer), reports(trainer, config.output.report_to, folder / "logs" / stage.name):
        trainer.train(resume_from_checkpoint=str(step) if step else None)
    trained = _whole(config, start, trainer)
    if trained is not None and read_best(steps, config.eval.best_by) is not None:
        load_trained(trained.network, steps / BEST)
    return trained, list(trainer.state.log_history), trainer.is_sharded


def load_newest(config: Config, network: RewardNetwork, steps: Path) -> None:
    """Load the weights that a stage left whole, or those of the best step of its folder, if one was chosen, or of the last one."""
    if (steps / WHOLE).is_file():
        load_trained(network, steps / WHOLE)
    elif read_best(steps, config.eval.best_by) is not None:
        load_trained(network, steps / BEST)
    elif (step := last_complete(steps)) is not None:
        load_weights(network, step)


def log_of(step: Path | None) -> tuple[dict[str, float], ...]:
    """Log of a run up to a step checkpoint; empty without one."""
    return () if step is None else tuple(history_of(step))


def network_and_rows(
    config: Config, start: Checkpoint, table: FeedbackTable, features: torch.Tensor | None
) -> tuple[torch.nn.Module, Rows]:
    """The network that is trained, and the rows that it reads: of a frozen backbone, the heads over cached features."""
    if config.method.name == "frozen" and features is not None:
        _add_length_heads(config, start.network)
        return CachedNetwork(start.network, features), cached_rows
    prepare_network(config, start, quantizes=True)
    return start.network, token_or_packed_rows(config, start, table)


def token_or_packed_rows(config: Config, start: Checkpoint, table: FeedbackTable) -> Rows:
    """Packed rows where the network computes them right, else padded ones, which is printed."""
    network = start.network
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.optim.precision)
    # In half precision rounding hides a small error: the network is compared without it too.
    objection = packing_objection(network, pad_id=start.pad_id)
    if objection is None and precision is not None:
        with torch.autocast(network.device.type, dtype=precision):
            objection = packing_objection(network, pad_id=start.pad_id)
    if objection is None:
        return packed_rows(table, shares_prefixes=may_share_prefixes(network))
    whole: Any = network.backbone
    base = whole.get_base_model() if hasattr(whole, "get_base_model") else whole  # within the adapters of peft
    say(f"training pads its batches, which takes longer: {type(base).__name__} cannot be packed ({objection})")
    return token_rows(table, start.pad_id)


def _whole(config: Config, start: Checkpoint, trainer: RewardTrainer) -> Checkpoint | None:
    """Trained checkpoint in one piece, without the Trainer's wrappers, on the first process."""
    if trainer.is_sharded:
        # All processes gather the shards; a fresh network receives them.
        state = trainer.whole_state()
        if not trainer.is_world_process_zero():
            return None
        start = replace(load_start(config), policy=start.policy, notes=start.notes)
        prepare_network(config, start)
        start.network.load_state_dict(state)
        return start
    # Under mixed precision the Trainer leaves its autocast on the network; the exported network is scored without it.
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return start if trainer.is_world_process_zero() else None


def _unquantized(config: Config, trained: Checkpoint) -> Checkpoint:
    """The trained adapters and heads over the weights of the base model as they were before they were quantized."""
    learned = {name: p.detach() for name, p in trained.network.named_parameters() if p.requires_grad}
    fresh = replace(load_start(config), policy=trained.policy, notes=trained.notes)
    prepare_network(config, fresh)
    drop_length_heads(fresh.network)
    fresh.network.load_state_dict(learned, strict=False)
    return fresh


def prepare_network(config: Config, start: Checkpoint, *, quantizes: bool = False) -> None:
    """Prepare the network for its method, in place."""
    network = start.network
    if quantizes and config.method.quantize:
        quantize(network.backbone, config.method.quantize)
    if config.method.name == "lora":
        adapt(network, config.method)
    elif config.method.name == "frozen":
        network.backbone.requires_grad_(False)
    _add_length_heads(config, network)
    if config.optim.gradient_checkpointing:
        with warnings.catch_warnings():
            # Renamed within transformers 5; the old name works in all of it.
            warnings.filterwarnings("ignore", "`gradient_checkpointing_enable`", FutureWarning)
            network.backbone.gradient_checkpointing_enable({"use_reentrant": False})


def _add_length_heads(config: Config, network: RewardNetwork) -> None:
    if config.length_head.correlation:
        add_length_heads(network, config.seed)


def _evaluate_held_out(config: Config, start: Checkpoint, table: FeedbackTable) -> dict[str, float]:
    scored = score(config, start, table)
    judged = evaluate.slices(table, scored.scores_NH, scored.names, scored.weights)
    by_slice = summary([evaluate.slice_metrics(j, n_bootstrap=1) for j in judged])
    return {**evaluate.overall(table, scored.scores_NH, scored.names), **by_slice}


def _rows(table: FeedbackTable) -> list[tuple[int, ...]]:
    return [s.ids for s in table.sequences]
