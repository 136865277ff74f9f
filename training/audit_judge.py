"""The recipe of the audit judge that is trained beside a model, and its place in the checkpoint.

A judge is of use where it errs otherwise than the model, so it differs in feedback, depth and seed, learns from no made pairs and
from no counterexamples of the model, and does not learn length from pairs.
Independent of torch.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from rewardserve.model.checkpoint import AUDIT_JUDGE
from rewardserve.model.checkpoint.reading import read_config, resolve
from rewardserve.training.settings.config import AuditJudgeConfig, Config
from rewardserve.training.settings.data_config import AugmentConfig, SourceConfig
from rewardserve.training.settings.model_config import ModelConfig
from rewardserve.training.settings.validation import ConfigError

_SHARE_OF_LAYERS = 2 / 3


def judge_config(config: Config, judge: AuditJudgeConfig) -> Config:
    """The recipe of the judge, with `output.folder` inside that of the model. Raise `ConfigError` or `CheckpointError`."""
    n_layers = _n_layers(config, judge)
    layers = tuple(layer for layer in config.method.layers if layer < n_layers)
    if config.method.layers and not layers:
        raise ConfigError(
            f"audit_judge.n_layers is {n_layers}: none of method.layers {list(config.method.layers)} is among these. Raise it."
        )
    model = replace(config.model, n_layers=n_layers, members=1, member_data="bootstrap")
    data = config.data
    if judge.sources:
        model = _with_heads(
            model, tuple(dict.fromkeys(head for source in judge.sources for head in source.trained_heads or ("score",)))
        )
        data = replace(data, sources=judge.sources, eval_sources=(), swap=False)
    else:
        model = _with_heads(model, judge.heads or model.heads)
        first, kept = config.model.heads[0], set(model.heads)
        sources, eval_sources = (
            tuple(_for_heads(source, kept) for source in group if set(source.trained_heads or (first,)) & kept)
            for group in (data.sources, data.eval_sources)
        )
        data = replace(data, sources=sources, eval_sources=eval_sources, swap=not data.swap)
    return replace(
        config,
        model=model,
        data=replace(data, balance_length=None if judge.balance_length else False),
        augment=AugmentConfig(),
        method=replace(config.method, layers=layers),
        output=replace(
            config.output,
            folder=str(Path(config.output.folder) / AUDIT_JUDGE),
            push_to_hub=None,  # it is a folder of the model's checkpoint
            run_name=f"{config.output.reported_name}-{AUDIT_JUDGE}",
        ),
        audit_judge=None,
        counterexamples=judge.counterexamples,
        loss=judge.loss or config.loss,
        stages=() if judge.sources else config.stages,
        seed=(config.seed + 1) % 2**32,
    )


def _for_heads(source: SourceConfig, heads: set[str]) -> SourceConfig:
    """The source with the attributes of these heads alone."""
    return replace(source, attributes=tuple(name for name in source.attributes if name in heads))


def copy_judge(made: Path, checkpoint: Path) -> None:
    """Copy a judge, if there is one, into the folder of a checkpoint."""
    if made.is_dir():
        shutil.copytree(made, checkpoint / AUDIT_JUDGE)


def _n_layers(config: Config, judge: AuditJudgeConfig) -> int:
    text = read_config(resolve(config.model.path, allow_pickle=config.model.allow_pickle)).get_text_config()
    n_all = int(config.model.n_layers or text.num_hidden_layers)
    if judge.n_layers is None:
        return max(1, round(n_all * _SHARE_OF_LAYERS))
    if judge.n_layers > text.num_hidden_layers:
        raise ConfigError(
            f"audit_judge.n_layers is {judge.n_layers}; {config.model.path} has {text.num_hidden_layers} layers"
        )
    return judge.n_layers


def _with_heads(model: ModelConfig, heads: tuple[str, ...]) -> ModelConfig:
    """The settings of the model for these heads, with their weights and ridges as far as the model has the same heads."""
    weight_of = dict(zip(model.heads, model.weight_of_head, strict=True))
    ridge_of = dict(zip(model.heads, model.l2_of_head, strict=bool(model.head_l2)))
    weights = tuple(weight_of.get(head, 1.0) for head in heads)
    ridges = tuple(ridge_of.get(head, model.head_l2[0]) for head in heads) if model.head_l2 else ()
    return replace(model, heads=heads, head_weights=weights if len(heads) > 1 else (), head_l2=ridges)
