"""Fit the time of a forward to its tokens, and choose the batch size from the fit.

    seconds = fixed + per_token * tokens

The budget is the smallest step at which the fixed part is at most a twentieth of a batch: smaller batches waste
time, larger ones only delay finished rows. Pure: no clock, no randomness. Knows tokens and
seconds, no scorers.

On a shared machine the seconds of equal batches vary widely, so a few of them decide nothing. The budget moves
one step at a time, and only when it would be wrong even if the fixed part were three standard errors off.
Batches of one size do not determine the fixed part, so some batches are made small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

BUDGETS = (512, 1024, 2048, 4096, 8192, 16384)
"""The possible budgets, in tokens. On a CPU throughput is nearly flat from 1,024 on; beyond the last one no device that we
measured gains."""

_FIXED_SHARE = 0.05
_MAX_BATCH_S = 0.5  # a step up must not make batches longer than this: short rows wait for the rest
_STEP_DOWN_S = 0.75  # a step down is due. It ends well below `_MAX_BATCH_S`, so it does not oscillate
_DECAY = 0.98  # weight of the batch before: some fifty count
_MIN_WEIGHT = 32.0  # batches, by weight, that are enough for a fit; and the rest after a step
_STANDARD_ERRORS = 3.0  # by which the fixed part may be off without making a step wrong
_OUTLIER_RATIO = 3.0  # times the expected seconds: the machine was busy with other work
_SMALL_BATCH_EVERY = 8
_SMALL_BATCH_DIVISOR = 4
"""A small batch has a fourth of the budget. The price is under 1 %: an eighth of a fixed part a batch."""


@dataclass(frozen=True, slots=True)
class LinearFit:
    """The fit over recent batches. `fixed_error_s` is the standard error of `fixed_s`; the means are of all batches."""

    fixed_s: float
    per_token_s: float
    fixed_error_s: float
    mean_inverse: float
    mean_per_token_s: float

    def seconds(self, n_tokens: float) -> float:
        """Seconds of a batch of so many tokens."""
        return max(0.0, self.fixed_s + self.per_token_s * n_tokens)

    def target(self, errors: float) -> float:
        """Tokens at which the fixed part, `errors` standard errors above its estimate, is small enough.

        The fit always goes through the mean of all batches, so the rest of the seconds is proportional to the tokens.
        """
        fixed_s = self.fixed_s + errors * self.fixed_error_s
        per_token_s = self.mean_per_token_s - fixed_s * self.mean_inverse
        if fixed_s <= 0.0:
            return 0.0
        return math.inf if per_token_s <= 0.0 else fixed_s * (1.0 / _FIXED_SHARE - 1.0) / per_token_s


@dataclass(frozen=True, slots=True)
class BatchSizeController:
    """The current step, and weighted sums over the batches: their number, x = 1 / tokens, y = seconds / tokens.

    y = per_token + fixed * x: in this form y has the same variance for large and for small batches, as least
    squares assume.
    """

    step: int
    n: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    yy: float = 0.0
    n_batches: int = 0
    n_since_step: int = 0

    @classmethod
    def starting_at(cls, n_tokens: int) -> BatchSizeController:
        """Start without measurements. `n_tokens` is one of `BUDGETS`."""
        return cls(BUDGETS.index(n_tokens))

    @property
    def budget(self) -> int:
        """Tokens that are enough for a batch."""
        return BUDGETS[self.step]

    @property
    def next_budget(self) -> int:
        """The budget, or less where the fit needs a small batch."""
        is_turn = self.n_batches % _SMALL_BATCH_EVERY == _SMALL_BATCH_EVERY - 1
        return self.budget // _SMALL_BATCH_DIVISOR if is_turn and self._is_uniform else self.budget

    def after(self, n_tokens: int, seconds: float) -> BatchSizeController:
        """Return the controller after one more batch, perhaps one step further."""
        x, y = 1.0 / n_tokens, seconds / n_tokens
        if fit := self.fit:
            expected = fit.seconds(n_tokens) * x
            y = min(max(y, expected / _OUTLIER_RATIO), expected * _OUTLIER_RATIO) if expected else y
        m = _DECAY
        return BatchSizeController(
            self.step,
            m * self.n + 1.0, m * self.x + x, m * self.y + y, m * self.xx + x * x, m * self.xy + x * y, m * self.yy + y * y,
            self.n_batches + 1, self.n_since_step + 1,
        )._stepped()  # fmt: skip

    @property
    def fit(self) -> LinearFit | None:
        """Least squares; None while there are too few batches for a fit."""
        if self.n < _MIN_WEIGHT:
            return None
        x, y = self.x / self.n, self.y / self.n
        spread = self.xx / self.n - x * x
        if spread <= 1e-9 * x * x:
            return None
        covariance = self.xy / self.n - x * y
        fixed_s = covariance / spread
        left_over = max(0.0, self.yy / self.n - y * y - fixed_s * covariance)
        error = math.sqrt(left_over / spread / (self.n - 2.0))
        return LinearFit(fixed_s, y - fixed_s * x, error, x, y)

    @property
    def _is_uniform(self) -> bool:
        """Whether the recent batches have nearly the same size."""
        return self.n * self.xx < 1.5 * self.x * self.x

    def _stepped(self) -> BatchSizeController:
        fit = self.fit
        if fit is None or self.n_since_step < _MIN_WEIGHT:
            return self
        step = _next_step(self.step, fit)
        return self if step == self.step else replace(self, step=step, n_since_step=0)


def _next_step(step: int, fit: LinearFit) -> int:
    """Step up where more is surely needed and not too long, down where less is surely enough or a batch takes too long."""
    if fit.seconds(BUDGETS[step]) > _STEP_DOWN_S:
        return max(0, step - 1)
    may_rise = step + 1 < len(BUDGETS) and fit.seconds(BUDGETS[step + 1]) <= _MAX_BATCH_S
    if may_rise and fit.target(-_STANDARD_ERRORS) > BUDGETS[step]:
        return step + 1
    if step > 0 and fit.target(+_STANDARD_ERRORS) <= BUDGETS[step - 1]:
        return step - 1
    return step
