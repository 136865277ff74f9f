"""Refuse settings that the data of a run contradict."""

from __future__ import annotations

from itertools import chain

import torch
from accelerate.utils import gather_object

from rewardserve.training.dataset import data
from rewardserve.training.dataset.feedback import Kind, kinds_of, n_ties
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.finish import EncodedData
from rewardserve.training.objective.losses import USES_MARGIN
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.loss_config import LossConfig
from rewardserve.training.settings.validation import ConfigError
from rewardserve.training.workflow.processes import n_processes


def refuse_unequal_ranks(tables: EncodedData) -> None:
    """Raise `DataError` unless all processes have read the same rows: they would train some twice and others never."""
    if n_processes() == 1:
        return
    own = data.digest(chain(tables.train.items, tables.held_items.items))
    if len(set(gather_object([own]))) > 1:
        raise data.DataError(
            "the processes have read different rows: a file of data.sources differs between machines, or was written while they "
            "read it. Copy it to all of them, or wait for its end."
        )


def refuse_settings_of_pairs(config: Config, table: FeedbackTable) -> None:
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


def refuse_untrained_heads(config: Config, table: FeedbackTable) -> None:
    """Raise `ConfigError` for a fresh head that no pair trains: it would add noise to every reward."""
    read = [item.head for item in table.items if not item.made]
    idle = [name for name in config.model.heads if name not in read]
    if idle and config.model.start == "backbone":
        n_of = {name: read.count(name) for name in config.model.heads}
        raise ConfigError(
            f"no pair trains {', '.join(map(repr, idle))} of model.heads (pairs by head: {n_of}). Name it as the head of a source, "
            "or leave it out."
        )


def refuse_best_of_nothing(config: Config, tables: EncodedData) -> None:
    """Raise `ConfigError` if the best step is asked for and no pair is held out to find it."""
    if config.eval.best_by and not len(tables.held_out):
        raise ConfigError(
            f"eval.best_by is {config.eval.best_by!r}, and no pair is held out. Raise data.eval_fraction, name data.eval_sources, "
            "or leave it out."
        )


def refuse_low_precision(module: torch.nn.Module) -> None:
    """Raise `ConfigError` unless trained weights are float32: in half precision, small updates round to zero."""
    low = [f"{n} ({p.dtype})" for n, p in module.named_parameters() if p.requires_grad and p.dtype != torch.float32]
    if low:
        raise ConfigError(
            f"{len(low)} trained weights are not float32: {', '.join(low[:3])}. Set model.dtype: float32."
        )


def refuse_lost_labels(config: Config, table: FeedbackTable) -> None:
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


def refuse_idle_losses(config: Config, table: FeedbackTable) -> None:
    """Raise `ConfigError` for settings of kinds that no row has."""
    kinds, default = kinds_of(table.items), LossConfig()
    for setting, of_kinds in _OF_KINDS.items():
        value = getattr(config.loss, setting)
        idle = not set(of_kinds) & set(kinds) or (setting == "tie" and not n_ties(table.items))
        if value != getattr(default, setting) and idle:
            without = "ties" if setting == "tie" else " or ".join(of_kinds)
            raise ConfigError(f"loss.{setting} is {value}, which has no effect without {without}; leave it out")
