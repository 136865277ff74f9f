"""The story of one run, readable aloud: read, encode, hold out, train, judge, calibrate, export, report.

The only room that knows all the others.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from model.calibration import Calibration
from model.checkpoint import Checkpoint, read, read_backbone
from model.conversation import Sample
from training import calibrate, data, evaluate, export, recipe, report, scoring, sequences
from training.collate import Collator, Rows, cached_rows, token_rows
from training.config import Config, ConfigError
from training.evaluate import Judged, Metrics
from training.methods import CachedNetwork, adapt, fit_logistic
from training.sequences import PairTable
from training.trainer import Judge, RewardTrainer, last_complete, load_weights

_RECIPE = "recipe.json"


@dataclass(frozen=True, slots=True)
class Tables:
    """The encoded pairs of a run, and what was read to get them."""

    split: data.Split
    train: PairTable
    held_out: PairTable


def train(config: Config) -> Path:
    """Train, and write everything that a run writes. Return the checkpoint's folder."""
    torch.manual_seed(config.seed)
    folder = Path(config.output.folder)
    resume_from = _where_to_resume(config, folder)
    start = begin(config)
    tables = encode(config, start)
    before = _metrics(config, *_judge(config, start, tables.held_out))
    features = _features(config, start, tables.train)
    _initialise_heads(config, start, tables.train, features)
    trained = _fit(config, start, tables, features, folder, resume_from)
    if trained is not None:
        finish(config, trained, tables, before, folder)
    _process().wait_for_everyone()
    return folder / "checkpoint"


def evaluate_checkpoint(config: Config, path: str) -> tuple[list[Metrics], Path]:
    """Judge an existing reward model on the recipe's held-out pairs; write a report. Return figures and its path."""
    checkpoint = _with_limits(config, read(path, dtype="float32", device=str(_process().device)))
    tables = encode(_on_its_heads(config, checkpoint), checkpoint)
    judged, _ = _judge(config, checkpoint, tables.held_out)
    metrics = [evaluate.judge(j, n_bootstrap=config.eval.bootstrap) for j in judged]
    page = Path(config.output.folder) / "evaluation.html"
    report.write(
        page, report.Page(f"Evaluation of {path}", _facts(config, tables), metrics, (), judged, recipe.plain(config))
    )
    (page.with_suffix(".json")).write_text(json.dumps([asdict(m) for m in metrics], indent=1) + "\n")
    return metrics, page


def calibrate_checkpoint(config: Config, path: str) -> Path:
    """Fit the calibration of an existing reward model on the recipe's held-out pairs; write it as a new checkpoint."""
    checkpoint = _with_limits(config, read(path, dtype="float32", device=str(_process().device)))
    tables = encode(_on_its_heads(config, checkpoint), checkpoint)
    return finish(config, checkpoint, tables, [], Path(config.output.folder))


def export_last_step(config: Config) -> Path:
    """Finish a run that was stopped: the newest complete step checkpoint becomes the checkpoint."""
    folder = Path(config.output.folder)
    step = last_complete(folder / "steps")
    if step is None:
        raise ConfigError(f"{folder / 'steps'} holds no complete step checkpoint; run `reward-train train` first")
    start = begin(config)
    tables = encode(config, start)
    _wrap(config, start)
    load_weights(start.network, step)
    return finish(config, start, tables, [], folder)


# -- begin ------------------------------------------------------------------------------------------------


def begin(config: Config) -> Checkpoint:
    """The weights that training starts from, on the device it runs on."""
    wanted = config.model
    if wanted.start == "backbone":
        checkpoint = read_backbone(
            wanted.path,
            dtype=wanted.dtype,
            head_names=wanted.heads,
            head_weights=wanted.weight_of_head,
            n_layers=wanted.n_layers,
        )
    else:
        checkpoint = read(wanted.path, dtype=wanted.dtype)
        if checkpoint.network.head_names != wanted.heads:
            raise ConfigError(f"{wanted.path} has heads {checkpoint.network.head_names}; model.heads is {wanted.heads}")
        # A constant has no part in any difference, and the layout has no place for it.
        checkpoint.network.bias_H.zero_()
    checkpoint.network.to(_process().device)
    return _with_limits(config, checkpoint)


def encode(config: Config, start: Checkpoint) -> Tables:
    """Read the pairs, split them by group and encode both sides."""
    split = data.load(config.data, default_head=config.model.heads[0])
    encoder = start.encoder
    train_table = sequences.encode(split.train, encoder)
    if not len(train_table):
        raise data.DataError(f"none of {len(split.train)} training pairs is left: {train_table.dropped}")
    return Tables(split, train_table, sequences.encode(split.held_out, encoder))


def _with_limits(config: Config, checkpoint: Checkpoint) -> Checkpoint:
    limit = min(config.encoding.max_tokens, checkpoint.policy.max_tokens)
    policy = replace(checkpoint.policy, max_tokens=limit, truncation=config.encoding.truncation)
    return replace(checkpoint, policy=policy)


def _on_its_heads(config: Config, checkpoint: Checkpoint) -> Config:
    """The recipe for a model that exists: its heads are what they are."""
    names = checkpoint.network.head_names
    return replace(config, model=replace(config.model, heads=names, head_weights=checkpoint.network.head_weights))


def _process() -> PartialState:
    """This process among those that accelerate or torchrun started; alone, the first of one."""
    return PartialState(cpu=not torch.cuda.is_available())


def _where_to_resume(config: Config, folder: Path) -> Path | None:
    """The step checkpoint to go on from. A folder in use is never overwritten, nor resumed by another recipe."""
    steps, kept, now = folder / "steps", folder / _RECIPE, json.loads(json.dumps(_identity(config)))
    found = last_complete(steps)
    if found is not None and not config.output.resume:
        raise ConfigError(
            f"{folder} holds a run at {found.name} already. Go on from there with --set output.resume=true, "
            "or choose another output.folder."
        )
    if found is not None and kept.is_file() and json.loads(kept.read_text()) != now:
        then = json.loads(kept.read_text())
        changed = sorted(k for k in {*now, *then} if now.get(k) != then.get(k))
        raise ConfigError(
            f"{folder} was begun by another recipe: {', '.join(changed)} differ. Choose another output.folder."
        )
    if _process().is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(now, indent=1) + "\n")
    return found


def _identity(config: Config) -> dict[str, Any]:
    """What must be equal for two runs to be the same run: all but where they write and how often."""
    return {k: v for k, v in recipe.plain(config).items() if k not in ("output", "eval", "export")}


# -- train ------------------------------------------------------------------------------------------------


def _features(config: Config, start: Checkpoint, table: PairTable) -> torch.Tensor | None:
    """The trunk's hidden states of every distinct training sequence, where something is to be fitted on them."""
    if config.method.name != "frozen" and config.model.head_init == "random":
        return None
    return scoring.last_hidden(start.network, _rows(table), pad_id=start.pad_id, batch_tokens=config.eval.batch_tokens)


def _initialise_heads(config: Config, start: Checkpoint, table: PairTable, features: torch.Tensor | None) -> None:
    if config.model.head_init == "random" or features is None:
        return
    heads = start.network.heads.weight
    for h, name in enumerate(start.network.head_names):
        heads.data[h] = fit_logistic(features, table, name, l2=config.model.head_l2).to(heads.device)


def _fit(
    config: Config,
    start: Checkpoint,
    tables: Tables,
    features: torch.Tensor | None,
    folder: Path,
    resume_from: Path | None,
) -> Checkpoint | None:
    """Train. The first process gets the trained weights, whole; the others None."""
    network, table = start.network, tables.train
    rows: Rows
    if config.method.name == "frozen" and features is not None:
        module: torch.nn.Module = CachedNetwork(network, features)
        rows = cached_rows
    else:
        _wrap(config, start)
        module, rows = network, token_rows(table, start.pad_id)
    collator = Collator(table, network.head_names, rows)
    judge = _judge_while_training(config, start, tables.held_out) if len(tables.held_out) else None
    trainer = RewardTrainer(module, table, collator, config, judge=judge, steps=folder / "steps")
    trainer.log_to_tensorboard(folder / "logs")
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    return _whole(config, start, trainer)


def _whole(config: Config, start: Checkpoint, trainer: RewardTrainer) -> Checkpoint | None:
    """What was trained, in one piece and without the Trainer's wrappers, on the first process."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        # The shards are gathered by all; a fresh network takes them.
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if not trainer.is_world_process_zero():
            return None
        start = begin(config)
        _wrap(config, start)
        start.network.load_state_dict(state)
        return start
    # Under mixed precision the Trainer leaves its autocast on the network; what is exported is scored without.
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return start if trainer.is_world_process_zero() else None


def _wrap(config: Config, start: Checkpoint) -> None:
    """Prepare the network for its method, in place."""
    network = start.network
    if config.method.name == "lora":
        adapt(network, config.method)
    elif config.method.name == "frozen":
        network.backbone.requires_grad_(False)
    if config.optim.gradient_checkpointing:
        with warnings.catch_warnings():
            # Renamed within transformers 5; the old name works in all of it.
            warnings.filterwarnings("ignore", "`gradient_checkpointing_enable`", FutureWarning)
            network.backbone.gradient_checkpointing_enable({"use_reentrant": False})


def _judge_while_training(config: Config, start: Checkpoint, table: PairTable) -> Judge:
    def judge() -> dict[str, float]:
        judged, _ = _judge(config, start, table)
        lines = [evaluate.judge(j, n_bootstrap=1) for j in judged]
        return {f"{m.head}/{m.source}/{k}": getattr(m, k) for m in lines for k in ("accuracy", "nll", "margin")}

    return judge


# -- finish -----------------------------------------------------------------------------------------------


def finish(config: Config, trained: Checkpoint, tables: Tables, before: Sequence[Metrics], folder: Path) -> Path:
    """Judge on the held-out pairs, calibrate, export and report."""
    trained.network.requires_grad_(False).eval()
    judged, scores_NH = _judge(config, trained, tables.held_out)
    calibration = _calibrate(config, trained, tables.held_out, scores_NH)
    if len(trained.network.head_names) > 1:
        # The weights of the heads are settled only now; the combined score is judged with them.
        judged = evaluate.slices(tables.held_out, scores_NH, trained.network.head_names, trained.network.head_weights)
    metrics = _metrics(config, judged, scores_NH)
    out = folder / "checkpoint"
    if config.method.name == "lora" and config.output.adapter and hasattr(trained.network.backbone, "peft_config"):
        export.adapter(folder / "adapter", trained, base=str(trained.folder.resolve()))
    contract = export.checkpoint(out, trained, calibration, _probes(config, tables))
    facts = _facts(config, tables)
    page = {
        **facts,
        "contract": contract.digest,
        "calibration": calibration.digest if calibration else None,
        "heads": dict(zip(trained.network.head_names, trained.network.head_weights, strict=True)),
    }
    export.write_report(out, page | {"metrics": _plain(metrics), "before": _plain(before), "recipe": recipe.plain(config),
                                     "versions": export.versions()})  # fmt: skip
    report.write(
        folder / "report.html",
        report.Page(f"Reward model {folder.name}", page, metrics, before, judged, recipe.plain(config)),
    )
    return out


def _judge(config: Config, checkpoint: Checkpoint, table: PairTable) -> tuple[list[Judged], evaluate.Floats]:
    network = checkpoint.network
    scores_NH = scoring.score(
        network, _rows(table), pad_id=checkpoint.pad_id, batch_tokens=config.eval.batch_tokens, label="held-out pairs"
    )
    return evaluate.slices(table, scores_NH, network.head_names, network.head_weights), scores_NH


def _metrics(config: Config, judged: Sequence[Judged], _: evaluate.Floats) -> list[Metrics]:
    return [evaluate.judge(j, n_bootstrap=config.eval.bootstrap) for j in judged]


def _calibrate(config: Config, trained: Checkpoint, table: PairTable, scores_NH: evaluate.Floats) -> Calibration | None:
    """The calibration on held-out responses; several heads get their weights first. None without held-out pairs."""
    if not len(table):
        return None
    network = trained.network
    if len(network.head_names) > 1:
        network.head_weights = calibrate.head_weights(scores_NH, config.model.weight_of_head)
    raw_N = scores_NH @ network.head_weights
    diff_P = raw_N[list(table.chosen)] - raw_N[list(table.rejected)]
    tokens_N = np.array([s.n_response for s in table.sequences])
    return calibrate.fit(raw_N, tokens_N, diff_P, data_digest=data.digest(table.pairs))


def _probes(config: Config, tables: Tables) -> list[Sample]:
    if config.export.probes:
        return export.read_probes(Path(config.export.probes))
    table = tables.held_out if len(tables.held_out) else tables.train
    return export.choose_probes(table)


def _rows(table: PairTable) -> list[tuple[int, ...]]:
    return [s.ids for s in table.sequences]


def _facts(config: Config, tables: Tables) -> dict[str, Any]:
    """What was trained on: counts, and digests of the data."""
    split = tables.split
    dropped = Counter(tables.train.dropped) + Counter(tables.held_out.dropped)
    return {
        "started from": f"{config.model.path} ({config.model.start})",
        "method": config.method.name,
        "rows read": split.n_rows,
        "rows skipped": len(split.bad),
        "training pairs": len(tables.train),
        "training sequences": len(tables.train.sequences),
        "held-out pairs": len(tables.held_out),
        "pairs dropped": dict(dropped),
        "sequences truncated": sum(s.truncated for t in (tables.train, tables.held_out) for s in t.sequences),
        "training data": data.digest(tables.train.pairs),
        "held-out data": data.digest(tables.held_out.pairs),
    }


def _plain(metrics: Sequence[Metrics]) -> list[dict[str, Any]]:
    return [asdict(m) for m in metrics]
