"""One run from start to end: read, encode, hold out, train, evaluate, calibrate, export, report.

The only module that depends on all the others. `finish` has the second half.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from rewardserve.model.backends import LoadError
from rewardserve.model.backends.engine_check import padding_objection
from rewardserve.model.checkpoint import (
    Checkpoint,
    CheckpointError,
    ReadOptions,
    read,
    read_backbone,
    source_digests,
    with_openrlhf_note,
    with_whole_tokenization,
    without_bias,
)
from rewardserve.model.encoding import Encoder
from rewardserve.model.network import RewardNetwork
from rewardserve.model.reward.checkpoint_members import head_of_members
from rewardserve.model.templates.chat_template import EncodingPolicyError
from rewardserve.model.tokenization.encoding_policy import infer_policy
from rewardserve.training import averaging, run_folder
from rewardserve.training.audit_judge import judge_config
from rewardserve.training.augmentation import augment, consistency
from rewardserve.training.batches import scoring
from rewardserve.training.batches.members import of_output, trained_outputs
from rewardserve.training.batches.packed_attention import may_share_prefixes, packing_objection
from rewardserve.training.batches.pair_batches import Collator, Rows, cached_rows, packed_rows, token_rows
from rewardserve.training.console import say, show
from rewardserve.training.dataset import counterexamples, data, hub, leakage, raw_text, row_counts, sequences
from rewardserve.training.dataset.comparisons import comparisons
from rewardserve.training.dataset.counterexamples import Labelled
from rewardserve.training.dataset.feedback import Item, Kind, kinds_of, n_ties, noun
from rewardserve.training.dataset.rating_scale import standardised
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.errors import ModelUnusable
from rewardserve.training.evaluation import evaluate
from rewardserve.training.evaluation.benchmark import Scored, score_with_checkpoint
from rewardserve.training.evaluation.benchmark_files import Benchmark
from rewardserve.training.evaluation.evaluate import SliceMetrics
from rewardserve.training.evaluation.graded_metrics import grade, graded_lines
from rewardserve.training.evaluation.invariance import InvarianceReport
from rewardserve.training.evaluation.style import read_styles
from rewardserve.training.finish import (
    EncodedData,
    RunTimer,
    TrainingRecord,
    about_counterexamples,
    audited_figures,
    audited_lines,
    facts_of,
    figures,
    finish,
    independence,
    invariance_report,
    reported_data,
    score,
    score_slices,
    style_report,
    summary,
)
from rewardserve.training.loop.lm_head import kept_lm_head
from rewardserve.training.loop.methods import (
    CachedNetwork,
    adapt,
    check_quantization,
    check_targets,
    disable_dropout,
    fit_logistic,
    not_adapted,
    quantize,
)
from rewardserve.training.loop.reporting import check_trackers, reports
from rewardserve.training.loop.sharding import check_sharding
from rewardserve.training.loop.stages import (
    TrainingStage,
    continued,
    is_finished,
    mark_begun,
    mark_finished,
    newest_step,
    stage_configs,
    stages_of,
    step_folders,
)
from rewardserve.training.loop.step_checkpoints import (
    BEST,
    COMPLETE,
    damaged,
    history_of,
    last_complete,
    load_trained,
    load_weights,
    read_best,
)
from rewardserve.training.loop.trainer import RewardTrainer, check_optimizer, check_warmup, stops_at_signals
from rewardserve.training.objective import indifference, length_balance
from rewardserve.training.objective.length_head import add_length_heads, drop_length_heads
from rewardserve.training.objective.losses import USES_MARGIN, pair_loss
from rewardserve.training.results import report
from rewardserve.training.results.export import read_probes
from rewardserve.training.settings import recipe
from rewardserve.training.settings.config import AuditJudgeConfig, Config, ConfigError, LossConfig

_DATA = "data.json"
_PAIRS, _OF_MODEL = "training data", "model: "
"""Names of the digests in that file."""


def train(config: Config) -> Path:
    """Train, and write all outputs of a run; the audit judge, if the recipe has one, first. Return the checkpoint's folder."""
    if config.audit_judge is not None:
        _train_judge(config, config.audit_judge)
    return _train(config)


def _train_judge(config: Config, judge: AuditJudgeConfig) -> None:
    """Train the audit judge in its folder; a finished one is kept where the run is resumed."""
    with _name_setting("model.path", config.model.path, how="--set model.path=PATH"):
        own = judge_config(config, judge)
    if config.output.resume and (Path(own.output.folder) / "checkpoint").is_dir():
        _refuse_other_recipe(own, Path(own.output.folder))
    else:
        show(f"audit judge: the first {own.model.n_layers} layers")
        with _lock_folder(Path(config.output.folder)):
            _step_to_resume(config, Path(config.output.folder))
        _train(own)
    show("model:")


def _train(config: Config) -> Path:
    torch.manual_seed(config.seed)
    folder = Path(config.output.folder)
    timer = RunTimer()
    with _lock_folder(folder):
        check_sharding(config)
        resume_from = _step_to_resume(config, folder)
        for each in stage_configs(config):
            check_optimizer(each)
            pair_loss(each.loss)
        check_trackers(config)
        check_quantization(config.method)
        if config.output.push_to_hub and _process().is_main_process:
            hub.create_repository(config.output.push_to_hub, private=config.output.hub_private)
        if config.eval.style_file:
            read_styles(Path(config.eval.style_file))
        if config.export.probes:
            read_probes(Path(config.export.probes))
        start = load_start(config)
        check_targets(start.network, config.method)
        print_not_adapted(config, start)
        tables = encode(config, start)
        _refuse_unequal_ranks(tables)
        _refuse_other_inputs(config, folder, start, tables.train, resume_from)
        _refuse_untrained_heads(config, tables.train)
        for stage in stages_of(config, tables.train):
            check_warmup(stage.config, stage.table, n_processes())
        _refuse_best_of_nothing(config, tables)
        start = replace(start, policy=tables.policy)
        # A fresh head has no earlier figures to compare with.
        before = figures(config, score_slices(config, start, tables.held_out)) if config.model.start == "reward" else []
        audited_before = audited_figures(config, start, tables) if config.model.start == "reward" else ()
        hidden_ND = features(config, start, tables.train)
        initialise_heads(config, start, tables.train, hidden_ND)
        trained, history = fit(config, start, tables, hidden_ND, folder, resume_from)
        if trained is not None:
            made = replace(
                _record("train", config, folder, timer, step_folders(config, folder)[-1]),
                before=tuple(before), history=tuple(history), audited_before=tuple(audited_before),
            )  # fmt: skip
            _publish(config, finish(config, trained, tables, folder, made))
    _process().wait_for_everyone()
    return folder / "checkpoint"


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
    checkpoint = _with_limits(config, _read(config, path))
    tables = encode(_own_heads(config, checkpoint), checkpoint, is_bound=True)
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
    with _name_setting("--checkpoint", path, how="--checkpoint=PATH"):
        checkpoint = read(path, ReadOptions(dtype="float32"), device=str(_process().device))
    name = path if hub.is_hub_model(path) else Path(path).resolve().name
    return score_with_checkpoint(_require_padding_safe(checkpoint), benchmark.samples(), name)


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
    with _lock_folder(folder):
        if Path(path).resolve() != (folder / "checkpoint").resolve():
            run_folder.refuse_finished(folder)
        checkpoint = _with_limits(config, _as_written(_read(config, path)))
        own = _own_heads(config, checkpoint)
        tables = encode(own, checkpoint, is_bound=True)
        _require_held_out(tables, "calibrate")
        return finish(own, checkpoint, tables, folder, TrainingRecord("calibrate", timer, origins=(checkpoint.folder,)))


def average_checkpoints(config: Config, paths: Sequence[str]) -> Path:
    """Write the mean of the weights of several reward models as one, if the path between them is straight."""
    averaging.require_several(paths)
    folder = Path(config.output.folder)
    timer = RunTimer()
    with _lock_folder(folder):
        run_folder.refuse_finished(folder)
        first = _with_limits(config, _as_written(_read(config, paths[0])))
        own = _own_heads(config, first)
        tables = encode(own, first, is_bound=True)
        _require_held_out(tables, "average")
        origins: list[Path] = []

        def read_member(path: str) -> Checkpoint:
            member = _with_limits(config, _as_written(_read(config, path)))
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


def export_last_step(config: Config) -> Path:
    """Finish a stopped run: its newest complete step becomes the checkpoint, with all that belongs to it.

    A run that ended between its checkpoint and its report is finished again; without steps, its heads are the same solution.
    """
    folder = Path(config.output.folder)
    timer = RunTimer()
    with _lock_folder(folder):
        step, is_solved = newest_step(config, folder), config.optim.epochs == 0
        unreported = run_folder.lacks_report(folder)
        if step is None and not (unreported and is_solved):
            raise ConfigError(f"{folder / 'steps'} holds no complete step checkpoint; run `rewardserve train` first")
        if not unreported:
            run_folder.refuse_finished(folder)
        _refuse_other_recipe(config, folder)
        if config.output.push_to_hub:
            hub.create_repository(config.output.push_to_hub, private=config.output.hub_private)
        start = load_start(config)
        tables = encode(config, start)
        _refuse_other_inputs(config, folder, start, tables.train, step)
        start = replace(start, policy=tables.policy)
        if step is None:
            _refuse_other_solution(folder / "checkpoint", tables.train)
            initialise_heads(config, start, tables.train, features(config, start, tables.train))
        else:
            _wrap(config, start)
            _load_newest(config, start.network, step.parent)
            drop_length_heads(start.network)
        made = _record("finish", config, folder, timer, step.parent if step else None)
        return _publish(config, finish(config, start, tables, folder, made))


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
        history += continued(_history(last_complete(each)), history)
    best = read_best(steps, config.eval.best_by)
    own = _history(last_complete(steps)) if config.stages else None
    return TrainingRecord(verb, timer, history=tuple(history), best=best, of_stage=own)


def _history(step: Path | None) -> tuple[dict[str, float], ...]:
    return () if step is None else tuple(history_of(step))


def _lock_folder(folder: Path) -> AbstractContextManager[None]:
    """Lock of the folder, held by the first process for all."""
    return run_folder.lock_folder(folder) if _process().is_main_process else nullcontext()


def _require_held_out(tables: EncodedData, verb: str) -> None:
    if not len(tables.held_out):
        raise data.DataError(
            f"{verb} needs held-out pairs, but none is held out. Raise data.eval_fraction, or name data.eval_sources."
        )


# -- start ------------------------------------------------------------------------------------------------


def load_start(config: Config) -> Checkpoint:
    """Load the weights that training starts from, on the device of the run."""
    with _name_setting("model.path", config.model.path, how="--set model.path=PATH"):
        checkpoint = _start(config)
    if config.encoding.chat_template is not None:
        checkpoint = _with_template(checkpoint, Path(config.encoding.chat_template))
    checkpoint.network.to(_process().device)
    left_out = not_adapted(checkpoint.network, config.method)
    checkpoint = _with_limits(config, _require_padding_safe(checkpoint))
    keeps = config.optim.dropout or config.method.name == "frozen" or config.optim.epochs == 0
    off = () if keeps else disable_dropout(checkpoint.network.backbone)
    return replace(checkpoint, notes=(*checkpoint.notes, *left_out, *off))


def _with_template(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """The checkpoint with the chat template of a file. Raise `ConfigError`."""
    policy = checkpoint.policy
    try:
        template = path.read_text(encoding="utf-8")
        own = infer_policy(
            checkpoint.tokenizer,
            max_tokens=policy.max_tokens,
            vocab_size=policy.vocab_size,
            rule=policy.rule,
            pad_id=policy.skip_id,
            template=template,
            truncation=policy.truncation,
        )
    except (OSError, UnicodeDecodeError, EncodingPolicyError) as error:
        raise ConfigError(f"encoding.chat_template: {path} cannot be used: {error}") from error
    return replace(checkpoint, policy=own)


def print_not_adapted(config: Config, start: Checkpoint) -> None:
    """Print which parameters have no adapter; the notes of the checkpoint carry it into the report."""
    for note in not_adapted(start.network, config.method):
        say(note)


@contextmanager
def _name_setting(setting: str, path: str, *, how: str) -> Iterator[None]:
    """Announce a model of the hub, and name the setting or option in errors about the model. Raise `ModelUnusable`."""
    hub.announce_model(path)
    try:
        yield
    except CheckpointError as error:
        if hub.is_hub_model(path) and hub.is_offline():
            raise ModelUnusable(f"{setting}: {path!r} is not a folder. {hub.remedy('model', how)}") from error
        raise ModelUnusable(f"{setting}: {error}") from error


def _start(config: Config) -> Checkpoint:
    wanted, options = config.model, _read_options(config, config.model.dtype)
    if wanted.start == "backbone":
        return read_backbone(
            wanted.path,
            options,
            head_names=wanted.outputs,
            head_weights=wanted.weight_of_output,
            n_layers=wanted.n_layers,
        )
    checkpoint = read(wanted.path, options)
    if checkpoint.network.head_names != wanted.outputs:
        raise ConfigError(
            f"{wanted.path} has heads {list(checkpoint.network.head_names)}; the recipe has {list(wanted.outputs)}. Set "
            "model.heads to those of the reward model, in their order, and model.members to the number of its members."
        )
    return _as_written(checkpoint)


def encode(config: Config, start: Checkpoint, *, is_bound: bool = False, in_folds: bool = False) -> EncodedData:
    """Read the pairs, split them by group and encode both sides.

    `is_bound`: the checkpoint is not trained any further. `in_folds`: every pair is held out later.
    """
    split = data.load(config.data, default_head=config.model.heads[0])
    labelled, extra = _counterexamples(config, split)
    items = (*split.train, *extra.train, *split.held_out, *extra.held_out)
    fitted = raw_text.fit_template(start, items, is_bound=is_bound)
    if fitted is not start:
        say(raw_text.JOINED)
    parts = split.train, split.held_out, extra.train, extra.held_out
    train, held, added, audited = (raw_text.as_served(part, fitted.policy) for part in parts)
    split, encoder = replace(split, train=train, held_out=held), fitted.encoder
    train_table = sequences.encode((*train, *added), encoder, f"training {_nouns(train)}")
    held_out = sequences.encode(split.held_out, encoder, f"held-out {_nouns(held)}")
    audited_table = sequences.encode(audited, encoder, "held-out counterexamples") if audited else sequences.EMPTY
    kept, overlap = leakage.remove_overlap(train_table, held_out)
    kept, of_audited = leakage.remove_overlap(kept, audited_table)
    overlap = replace(overlap, n_dropped=overlap.n_dropped + of_audited.n_dropped)
    if len(kept) or not len(train_table):
        limit = config.data.max_dropped
        row_counts.refuse_losses(split, train_table, kept, held_out, limit, counts_held_out=not is_bound)
    if not len(train_table):
        raise data.DataError(f"none of {len(split.train)} training pairs is left: {train_table.dropped}")
    if not len(kept):
        raise data.DataError(
            f"none of {len(train_table)} training pairs is left: each has a response that is held out, under another group. "
            "Hold out other pairs."
        )
    _refuse_settings_of_pairs(config, kept)
    if config.data.balance_length is not False:
        kept = length_balance.balanced(kept)
    unused = None if labelled is None else counterexamples.unused_rows(labelled, audited_table)
    counts = row_counts.count_rows(split, kept, held_out, overlap, unused)
    if config.augment.is_on and not is_bound:
        kept = _augmented(config, kept, (held_out, audited_table), fitted.encoder)
        counts = replace(counts, made=augment.counts(kept.pairs))
    if not is_bound:
        kept = indifference.with_variables(kept, fitted.encoder, config.variables)
        kept = consistency.with_twins(kept, fitted.encoder, config.consistency, config.data.salt)
    for line in row_counts.lines(counts, in_folds=in_folds):
        show(line)
    if kept.twins:
        show(f"  twins: {len(kept.twins):,}, which say the same as a training response")
    audited_pairs = comparisons(audited_table)
    tables = EncodedData(split, kept, comparisons(held_out), counts, fitted.policy, held_out, labelled, audited_pairs)
    if config.counterexamples is not None:
        show(f"counterexamples: {about_counterexamples(config.counterexamples, tables)}")
    return tables


def _counterexamples(config: Config, main: data.Split) -> tuple[Labelled | None, data.Split]:
    """Read the counterexamples of the recipe, and split off the held-out ones; an empty split if it has none."""
    if config.counterexamples is None:
        return None, data.Split((), (), ())
    labelled = counterexamples.read(config.counterexamples, config.data, config.model.heads[0])
    return labelled, counterexamples.split(labelled, config.counterexamples, config.data, main)


def _augmented(
    config: Config, train: FeedbackTable, held_out: Sequence[FeedbackTable], encoder: Encoder
) -> FeedbackTable:
    """Training pairs, and those that are made of them; one that has a held-out response is left out.

    None is made of a counterexample, whose preferred response may be a poor one too.
    """
    of_data = [pair for pair in train.pairs if pair.source != counterexamples.SOURCE and not pair.tie]
    made = sequences.encode(augment.augmented(of_data, config.augment, config.seed), encoder, "made pairs")
    for each in held_out:
        made, _ = leakage.remove_overlap(made, each)
    return sequences.joined(train, made)


def _nouns(items: Sequence[Item]) -> str:
    return f"{noun(kinds_of(items))}s"


def _refuse_settings_of_pairs(config: Config, table: FeedbackTable) -> None:
    """Raise `ConfigError` for settings that are about pairs, where there are other kinds."""
    kinds = kinds_of(table.items)
    of_pairs = {
        "data.balance_length": config.data.balance_length,
        "consistency": config.consistency.weight,
        "indifference": config.indifference.variables,
        "length_head": config.length_head.correlation,
    }
    idle = [name for name, value in of_pairs.items() if value]
    if idle and kinds != ("pairs",):
        raise ConfigError(
            f"{idle[0]} is about pairs, and these sources have {', '.join(kinds)}: train on pairs alone, or leave it out."
        )


def _read(config: Config, path: str) -> Checkpoint:
    own = Path(config.output.folder) / "checkpoint"
    if Path(path) == own and not own.is_dir():
        raise ConfigError(
            f"{own} does not exist: finish a run of this recipe first (rewardserve train), or name another reward model with "
            "--checkpoint."
        )
    with _name_setting("--checkpoint", path, how="--checkpoint=PATH"):
        checkpoint = read(path, _read_options(config, "float32"), device=str(_process().device))
    return _require_padding_safe(checkpoint)


def _read_options(config: Config, dtype: str) -> ReadOptions:
    return ReadOptions(
        dtype=dtype,
        allow_pickle=config.model.allow_pickle,
        ignore_checkpoint_code=config.model.ignore_checkpoint_code,
    )


def _require_padding_safe(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint. Raise `ModelUnusable` if a padded batch gives other scores than each row alone."""
    network = checkpoint.network
    try:
        objection = padding_objection(network, pad_id=checkpoint.pad_id, max_tokens=checkpoint.policy.max_tokens)
    except LoadError as error:
        raise ModelUnusable(f"model.path: {error}") from error
    if objection is not None:
        raise ModelUnusable(
            f"model.path: {type(network.backbone).__name__} cannot be trained here: training pads its batches, and padding "
            f"changes this model's values ({objection}), so the trained reward would differ from the served one. "
            "Choose an architecture with correct padding in docs/reference/architectures.md."
        )
    return checkpoint


def _with_limits(config: Config, checkpoint: Checkpoint) -> Checkpoint:
    """Checkpoint with the maximum length and the truncation of the recipe."""
    limit = min(config.encoding.max_tokens, checkpoint.policy.max_tokens)
    if limit < config.encoding.max_tokens:
        say(f"encoding.max_tokens is {config.encoding.max_tokens:,}; the model reads at most {limit:,}, which is used")
    policy = replace(checkpoint.policy, max_tokens=limit, truncation=config.encoding.truncation)
    return replace(checkpoint, policy=policy)


def _own_heads(config: Config, checkpoint: Checkpoint) -> Config:
    """Recipe for an existing model: its heads are fixed; the recipe may still set their weights."""
    outputs = checkpoint.network.head_names
    common = head_of_members(outputs)
    names = outputs if common is None else (common,)
    for section, of in (("sources", config.data.sources), ("eval_sources", config.data.eval_sources)):
        for i, source in enumerate(of):
            missing = next((head for head in source.trained_heads if head not in names), None)
            if missing is not None:
                raise ConfigError(
                    f"data.{section}.{i} ({source.path!r}) has pairs for head {missing!r}, which the checkpoint lacks. Its "
                    f"heads are {list(names)}. Leave the source out, or evaluate one of these heads on its pairs: --set "
                    f"data.{section}.{i}.head={names[0]}."
                )
    weights = config.model.head_weights if len(config.model.head_weights) == len(names) else ()
    return replace(
        config,
        model=replace(
            config.model,
            heads=names,
            members=len(outputs) // len(names),
            member_data=config.model.member_data if common else "bootstrap",
            head_weights=weights,
            head_l2=config.model.head_l2[:1],
        ),
    )


def _as_written(checkpoint: Checkpoint) -> Checkpoint:
    """Checkpoint in RewardServe's layout. The necessary changes are printed and reported."""
    for step in (without_bias, with_whole_tokenization, with_openrlhf_note):
        checkpoint, note = step(checkpoint)
        if note:
            say(note)
            checkpoint = replace(checkpoint, notes=(*checkpoint.notes, note))
    return checkpoint


def _process() -> PartialState:
    """This process among those started by accelerate or torchrun; otherwise the only one."""
    return PartialState(cpu=not torch.cuda.is_available())


def n_processes() -> int:
    """Number of processes started by accelerate or torchrun."""
    return int(_process().num_processes)


def _step_to_resume(config: Config, folder: Path) -> Path | None:
    """Step checkpoint to resume from. A folder in use is never overwritten, nor resumed by another recipe."""
    found = newest_step(config, folder)
    if found is not None and not config.output.resume:
        run_folder.refuse_finished(folder)
        raise ConfigError(
            f"{folder} holds a run at {found.name} already. Resume from it with --set output.resume=true, "
            "or choose another output.folder."
        )
    if found is None:
        run_folder.refuse_finished(folder)
    else:
        _refuse_other_recipe(config, folder)
    if _process().is_main_process:
        begins = f"the run resumes from {found.name}" if found else "the run starts from the beginning"
        for step, why in (one for steps in step_folders(config, folder) for one in damaged(steps)):
            say(f"{step} is damaged ({why}) and left out: {begins}")
            (step / COMPLETE).unlink(missing_ok=True)
        run_folder.write_json(folder / run_folder.RECIPE, _identity(config))
    return found


def _refuse_other_recipe(config: Config, folder: Path) -> None:
    """Raise `ConfigError` if another recipe made the steps in the folder."""
    kept, now = folder / run_folder.RECIPE, json.loads(json.dumps(_identity(config)))
    try:
        then = json.loads(kept.read_text())
    except FileNotFoundError:
        return
    except ValueError as error:
        raise ConfigError(
            f"{kept} is unreadable ({error}): whether this recipe made the steps there is not known"
        ) from error
    if not isinstance(then, dict):
        raise ConfigError(f"{kept} holds no recipe: whether this recipe made the steps there is not known")
    changed = sorted(k for k in {*now, *then} if now.get(k) != then.get(k))
    if changed:
        raise ConfigError(
            f"{folder} was started by another recipe: {', '.join(changed)} differ. Choose another output.folder."
        )


def _refuse_other_inputs(
    config: Config, folder: Path, start: Checkpoint, table: FeedbackTable, step: Path | None
) -> None:
    """Raise `ConfigError` if the step was made with other training pairs or over another model; without a step, record both.

    Otherwise the rest of the epoch would have other pairs than its first part has left, adapters and heads would continue
    on weights that they were not trained on, and the report would name the wrong inputs.
    """
    if not _process().is_main_process or (step is None and not config.optim.epochs):
        return
    kept = folder / "steps" / _DATA
    # Steps of full training contain all weights.
    model = source_digests(start, weights_too=config.method.name != "full")
    now = {_PAIRS: data.digest(table.items)} | {_OF_MODEL + name: digest for name, digest in model.items()}
    if step is None:
        run_folder.write_json(kept, now)
        return
    try:
        then = json.loads(kept.read_text())
        changed = [name for name in now if name in then and then[name] != now[name]]
    except (OSError, ValueError, TypeError):
        return  # steps of a version without this file
    if changed:
        name = changed[0]
        what, source = ("training pairs", "data.sources") if name == _PAIRS else (name, "model.path")
        raise ConfigError(
            f"{folder} was started with other {what} ({then[name]}; they are {now[name]} now): the files of {source} have changed. "
            "Restore them, or choose another output.folder."
        )


def _refuse_other_solution(checkpoint: Path, table: FeedbackTable) -> None:
    """Raise `ConfigError` if a checkpoint was trained without steps on other pairs than these."""
    if reported_data(checkpoint) not in (None, data.digest(table.items)):
        raise ConfigError(
            f"{checkpoint} was trained on other training pairs: the files of data.sources have changed. Restore them, or choose "
            "another output.folder."
        )


def _refuse_unequal_ranks(tables: EncodedData) -> None:
    """Raise `DataError` unless all processes have read the same rows: they would train some twice and others never."""
    if n_processes() == 1:
        return
    own = data.digest((*tables.train.items, *tables.held_items.items))
    if len(set(gather_object([own]))) > 1:
        raise data.DataError(
            "the processes have read different rows: a file of data.sources differs between machines, or was written while they "
            "read it. Copy it to all of them, or wait for its end."
        )


def _identity(config: Config) -> dict[str, Any]:
    """Settings that must be equal for two runs to be the same run: all but output paths and intervals."""
    plain = recipe.plain(config)
    for setting in ("allow_pickle", "ignore_checkpoint_code"):
        plain["model"].pop(setting)  # it decides whether a file is read, not the weights in it
    return {k: v for k, v in plain.items() if k not in ("output", "eval", "export")}


# -- train ------------------------------------------------------------------------------------------------


def features(config: Config, start: Checkpoint, table: FeedbackTable) -> torch.Tensor | None:
    """Hidden states of every distinct training sequence, if a fit needs them."""
    if config.method.name != "frozen" and config.model.head_init == "random":
        return None
    return scoring.last_hidden(start.network, _rows(table), pad_id=start.pad_id, batch_tokens=config.eval.batch_tokens)


def initialise_heads(config: Config, start: Checkpoint, table: FeedbackTable, features: torch.Tensor | None) -> None:
    """Initialise the heads with the convex solution on these pairs, in place, if the recipe sets it."""
    if config.model.head_init == "random" or features is None:
        return
    heads, wanted = start.network.heads.weight, config.model
    shares = trained_outputs(table.items, wanted, config.seed)
    for output, head in enumerate(wanted.head_of_output):
        l2 = wanted.l2_of_head[wanted.heads.index(head)]
        heads.data[output] = fit_logistic(features, of_output(table, shares, output), head, l2=l2).to(heads.device)


def fit(
    config: Config,
    start: Checkpoint,
    tables: EncodedData,
    features: torch.Tensor | None,
    folder: Path,
    resume_from: Path | None,
) -> tuple[Checkpoint | None, list[dict[str, float]]]:
    """Train, stage by stage; with `epochs: 0` take no step. The first process gets the whole weights; also return the log."""
    network, stages = start.network, stages_of(config, tables.train)
    for stage in stages:
        _refuse_lost_labels(stage.config, stage.table)
        _refuse_idle_losses(stage.config, tables.train)
    if config.optim.epochs == 0:
        return (start if _process().is_main_process else None), []
    lm_head = kept_lm_head(config, start, tables.train) if any(stage.config.loss.sft for stage in stages) else None
    module, rows = network_and_rows(config, start, tables.train, features)
    _refuse_low_precision(module)
    trained = start if _process().is_main_process else None
    history: list[dict[str, float]] = []
    for stage in stages:
        if stage.name:
            show(str(stage))
        steps = stage.steps(folder)
        if resume_from and is_finished(steps):
            _load_newest(config, network, steps)
            history += continued(_history(last_complete(steps)), history)
            continue
        mark_begun(steps)
        trained, log = _fit_stage(
            config, start, stage, module, rows, tables.held_out, folder, resumes=bool(resume_from), lm_head=lm_head
        )
        history += continued(log, history)
        if stage.name and _process().is_main_process:
            mark_finished(steps)
    drop_length_heads(network)
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
) -> tuple[Checkpoint | None, list[dict[str, float]]]:
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
    return trained, list(trainer.state.log_history)


def _load_newest(config: Config, network: RewardNetwork, steps: Path) -> None:
    """Load the weights of the best step of a folder, if one was chosen, or else of the last one."""
    if read_best(steps, config.eval.best_by) is not None:
        load_trained(network, steps / BEST)
    elif (step := last_complete(steps)) is not None:
        load_weights(network, step)


def network_and_rows(
    config: Config, start: Checkpoint, table: FeedbackTable, features: torch.Tensor | None
) -> tuple[torch.nn.Module, Rows]:
    """The network that is trained, and the rows that it reads: of a frozen backbone, the heads over cached features."""
    if config.method.name == "frozen" and features is not None:
        _add_length_heads(config, start.network)
        return CachedNetwork(start.network, features), cached_rows
    _wrap(config, start, quantizes=True)
    return start.network, _token_rows(config, start, table)


def _token_rows(config: Config, start: Checkpoint, table: FeedbackTable) -> Rows:
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
        start = replace(load_start(config), policy=start.policy)
        _wrap(config, start)
        start.network.load_state_dict(state)
        return start
    # Under mixed precision the Trainer leaves its autocast on the network; the exported network is scored without it.
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return start if trainer.is_world_process_zero() else None


def _unquantized(config: Config, trained: Checkpoint) -> Checkpoint:
    """The trained adapters and heads over the weights of the base model as they were before they were quantized."""
    learned = {name: p.detach() for name, p in trained.network.named_parameters() if p.requires_grad}
    fresh = replace(load_start(config), policy=trained.policy)
    _wrap(config, fresh)
    drop_length_heads(fresh.network)
    fresh.network.load_state_dict(learned, strict=False)
    return fresh


def _wrap(config: Config, start: Checkpoint, *, quantizes: bool = False) -> None:
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


def _refuse_untrained_heads(config: Config, table: FeedbackTable) -> None:
    """Raise `ConfigError` for a fresh head that no pair trains: it would add noise to every reward."""
    read = [item.head for item in table.items if not item.made]
    idle = [name for name in config.model.heads if name not in read]
    if idle and config.model.start == "backbone":
        n_of = {name: read.count(name) for name in config.model.heads}
        raise ConfigError(
            f"no pair trains {', '.join(map(repr, idle))} of model.heads (pairs by head: {n_of}). Name it as the head of a source, "
            "or leave it out."
        )


def _refuse_best_of_nothing(config: Config, tables: EncodedData) -> None:
    if config.eval.best_by and not len(tables.held_out):
        raise ConfigError(
            f"eval.best_by is {config.eval.best_by!r}, and no pair is held out. Raise data.eval_fraction, name data.eval_sources, "
            "or leave it out."
        )


def _refuse_low_precision(module: torch.nn.Module) -> None:
    """Raise `ConfigError` unless trained weights are float32: in half precision, small updates round to zero."""
    low = [f"{n} ({p.dtype})" for n, p in module.named_parameters() if p.requires_grad and p.dtype != torch.float32]
    if low:
        raise ConfigError(
            f"{len(low)} trained weights are not float32: {', '.join(low[:3])}. Set model.dtype: float32."
        )


def _refuse_lost_labels(config: Config, table: FeedbackTable) -> None:
    """Raise `ConfigError` for what the rows say and the training would not use."""
    n = sum(item.margin != 0 for item in table.items)
    n_flips = sum(item.flip != 0 for item in table.items)
    if n and config.optim.epochs == 0:
        raise ConfigError(
            f"{n} pairs have a margin, and head_init: logistic, the only training with optim.epochs: 0, ignores margins. Take "
            "steps, or set margin_key: null in the source, which leaves margins out."
        )
    if n_flips and config.optim.epochs == 0:
        raise ConfigError(
            f"{n_flips} rows have a flip rate, and head_init: logistic, the only training with optim.epochs: 0, ignores it. Take "
            "steps, or leave confidence_key and flip_key out of the source."
        )
    if n and config.loss.name not in USES_MARGIN:
        raise ConfigError(
            f"{n} pairs have a margin, but loss.name: {config.loss.name} ignores margins. Use {', '.join(USES_MARGIN)}, or "
            "set margin_key: null in the source, which leaves margins out."
        )


_OF_KINDS: dict[str, tuple[Kind, ...]] = {
    "name": ("pairs",),
    "centring": ("pairs",),
    "label_smoothing": ("pairs", "labels"),
    "tie": ("pairs",),
    "sft": ("pairs",),
    "ratings": ("ratings",),
    "label_offset": ("labels",),
}
"""Kinds of feedback for which each setting of a loss counts."""


def _refuse_idle_losses(config: Config, table: FeedbackTable) -> None:
    """Raise `ConfigError` for settings of kinds that no row has."""
    kinds, default = kinds_of(table.items), LossConfig()
    for setting, of_kinds in _OF_KINDS.items():
        value = getattr(config.loss, setting)
        idle = not set(of_kinds) & set(kinds) or (setting == "tie" and not n_ties(table.items))
        if value != getattr(default, setting) and idle:
            without = "ties" if setting == "tie" else " or ".join(of_kinds)
            raise ConfigError(f"loss.{setting} is {value}, which has no effect without {without}; leave it out")
