"""Valid values of the settings of a recipe, and the error for one that is not valid."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from rewardserve.training.transforms import TRANSFORMS


class ConfigError(Exception):
    """A setting is unknown or invalid; the message names the field, the value and the remedy."""


@dataclass(frozen=True, slots=True)
class Range:
    """Valid numbers of a setting: from `low` to `high`, inclusive unless stated otherwise."""

    low: float
    high: float
    without_low: bool = False
    without_high: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether the value is in the range; NaN never is."""
        above = value > self.low if self.without_low else value >= self.low
        below = value < self.high if self.without_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        """Describe the range for an error message."""
        low = f"above {self.low:g}" if self.without_low else f"at least {self.low:g}"
        return f"{low} and {'below' if self.without_high else 'at most'} {self.high:g}"


_COUNT = Range(1, 1e9)

_POSITIVE = Range(0, 1e6, without_low=True)

_SHARE = Range(0, 1, without_high=True)

_RATE = Range(0, 100, without_low=True)

RANGES: dict[str, Range] = {
    "seed": Range(0, 2**32 - 1),
    "model.head_weights": Range(-1e6, 1e6),
    "model.head_l2": _POSITIVE,
    "model.n_layers": Range(1, 1e5),
    "model.members": Range(1, 64),
    "audit_judge.n_layers": Range(1, 1e5),
    "data.sources.weight": _POSITIVE,
    "data.sources.max_pairs": _COUNT,
    "data.sources.repeat": Range(0, 1e3, without_low=True),
    "data.eval_fraction": _SHARE,
    "counterexamples.weight": _POSITIVE,
    "counterexamples.eval_fraction": _SHARE,
    "data.max_dropped": Range(0, 1),
    "augment.weight": _POSITIVE,
    **{
        f"augment.{kind}": Range(0, 1)
        for kind in (
            "other_prompt",
            "neutral",
            "truncated",
            "empty",
            "opener",
            "repeated",
            "flattery",
            "markup",
            "injection",
        )
    },
    "encoding.max_tokens": Range(2, 1e8),
    "loss.label_smoothing": Range(0, 0.5, without_high=True),
    "loss.centring": Range(0, 1e3),
    "indifference.length": Range(0, 1e3),
    "indifference.markup": Range(0, 1e3),
    "indifference.script": Range(0, 1e3),
    "indifference.memory": Range(0, 1e9),
    "length_head.correlation": Range(0, 1e3),
    "length_head.orthogonality": Range(0, 1e3),
    "length_head.memory": Range(0, 1e9),
    "consistency.weight": Range(0, 1e3),
    "consistency.twins": Range(1, len(TRANSFORMS)),
    "loss.sft": Range(0, 1e3),
    "loss.tie": Range(1e-6, 1e6),
    "loss.label_offset": Range(-1e3, 1e3),
    "optim.lr": _RATE,
    "optim.head_lr": _RATE,
    "optim.weight_decay": Range(0, 10),
    "optim.epochs": Range(0, 1e5),
    "optim.max_steps": Range(-1, 1e9),
    "optim.batch_pairs": Range(1, 1e6),
    "optim.batch_sequences": Range(2, 1e6),
    "optim.accumulate": Range(1, 1e6),
    "optim.warmup": Range(0, 1e9),
    "optim.max_grad_norm": Range(0, 1e6),
    "optim.ema": _SHARE,
    "optim.betas": _SHARE,
    "optim.epsilon": Range(0, 1, without_low=True),
    "optim.min_lr": Range(0, 100),
    "optim.min_lr_rate": Range(0, 1),
    "method.rank": Range(1, 65_536),
    "method.alpha": _POSITIVE,
    "method.dropout": _SHARE,
    "method.layers": Range(0, 1e5),
    "output.save_steps": _COUNT,
    "output.keep": _COUNT,
    "output.log_steps": _COUNT,
    "eval.steps": Range(0, 1e9),
    "eval.batch_tokens": Range(1, 1e8),
    "eval.bootstrap": Range(1, 1e5),
    "eval.invariance_pairs": Range(0, 1e6),
    "eval.patience": Range(0, 1e6),
}
"""Range of every number of a recipe. Beyond these a run would fail, hang, or have no effect."""


def shown(value: object) -> str:
    """Shorten a value to one line for an error message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def require(ok: bool, name: str, value: object, rule: str) -> None:
    if not ok:
        raise ConfigError(f"{name} is {shown(value)}; it must be {rule}")


def require_ranges(section: str, record: Any) -> None:
    """Raise `ConfigError` for a number of this section that is out of its range."""
    for f in fields(record):
        name = f"{section}.{f.name}" if section else f.name
        value = getattr(record, f.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                require(number in RANGES[name], name, number, str(RANGES[name]))
