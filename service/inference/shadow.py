"""Compare a shadow model with the model in service, on a share of the samples.

Only operators see the rewards of the shadow, to decide whether to activate it. Knows neither HTTP nor metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from math import sqrt
from typing import Protocol

from rewardserve.model.reward import Reward
from rewardserve.service.errors import RowFailed
from rewardserve.service.inference.background_scorer import BackgroundRewards, BackgroundScorer, is_in_share
from rewardserve.service.inference.rewards import ScoredRow

_MAX_GROUP = 16
"""Limit of responses to one prompt of which all pairs are compared."""

RewardPair = tuple[float, float]
"""The reward of the model in service, and that of the shadow."""


@dataclass(slots=True)
class AgreementStats:
    """Sums over pairs of rewards for the same samples, and the statistics that follow from them."""

    n: int = 0
    sum_served: float = 0.0
    sum_shadow: float = 0.0
    squares_served: float = 0.0
    squares_shadow: float = 0.0
    products: float = 0.0
    orders: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("same", "other", "tied"), 0))

    def count(self, pairs: Iterable[RewardPair]) -> None:
        """Samples that both models have scored."""
        for served, shadow in pairs:
            self.n += 1
            self.sum_served += served
            self.sum_shadow += shadow
            self.squares_served += served * served
            self.squares_shadow += shadow * shadow
            self.products += served * shadow

    @property
    def agreement(self) -> float | None:
        """Share of the pairs of responses that both models order alike, of those that neither scores equal."""
        n = self.orders["same"] + self.orders["other"]
        return self.orders["same"] / n if n else None

    @property
    def shift(self) -> float | None:
        """Mean reward of the shadow above that of the service."""
        return (self.sum_shadow - self.sum_served) / self.n if self.n else None

    @property
    def correlation(self) -> float | None:
        """Pearson's correlation; None where one of the models gives equal rewards only."""
        if not self.n:
            return None
        mean_served, mean_shadow = self.sum_served / self.n, self.sum_shadow / self.n
        covariance = self.products / self.n - mean_served * mean_shadow
        variances = (
            self.squares_served / self.n - mean_served**2,
            self.squares_shadow / self.n - mean_shadow**2,
        )
        least = 1e-12 * (mean_served**2 + mean_shadow**2 + 1e-300)  # below this the variance is rounding of the sums
        if min(variances) <= least:
            return None
        return max(-1.0, min(1.0, covariance / sqrt(variances[0] * variances[1])))

    @property
    def figures(self) -> Mapping[str, float | None]:
        """The statistics by their names in metrics and replies."""
        return {"agreement": self.agreement, "shift": self.shift, "correlation": self.correlation}


@dataclass(frozen=True, slots=True)
class ShadowComparison:
    """Comparison of a shadow so far, on `share` of the prompts. `pairs`: of responses to one prompt, by their order."""

    share: float
    samples: int
    pairs: Mapping[str, int]
    agreement: float | None
    shift: float | None
    correlation: float | None


class ShadowEvents(Protocol):
    """Receiver of the events of a shadow."""

    def on_compared(self, n_samples: int, orders: Mapping[str, int], figures: Mapping[str, float | None]) -> None:
        """Samples have been compared. `orders` counts their pairs by order; `figures` are of all samples so far."""
        ...

    def on_skipped(self, n_samples: int) -> None:
        """The queue of the shadow was full."""
        ...


class Shadow:
    """Shadow that scores `share` of the prompts, chosen by their ids, with all responses of a request."""

    def __init__(self, background_scorer: BackgroundScorer, share: float, events: ShadowEvents) -> None:
        self.share = share
        self.agreement = AgreementStats()
        self._background_scorer = background_scorer
        self._events = events

    def submit(self, rows: Sequence[ScoredRow], rewards: Sequence[Reward | RowFailed]) -> None:
        """Submit the samples of the chosen prompts. Never waits."""
        chosen = [
            (row, reward)
            for row, reward in zip(rows, rewards, strict=True)
            if isinstance(reward, Reward) and is_in_share(row.prompt_ids, self.share)
        ]
        if not chosen:
            return
        scoring = self._background_scorer.submit([row.sample for row, _ in chosen])
        if scoring is None:
            self._events.on_skipped(len(chosen))
        else:
            scoring.add_done_callback(partial(self._compare, chosen))

    def _compare(self, chosen: Sequence[tuple[ScoredRow, Reward]], scoring: asyncio.Future[BackgroundRewards]) -> None:
        if scoring.cancelled():
            return
        both = [
            (row.prompt_ids, (served.value, other.value))
            for (row, served), other in zip(chosen, scoring.result(), strict=True)
            if other is not None
        ]
        orders = count_orders(both)
        self.agreement.count([pair for _, pair in both])
        for order, n in orders.items():
            self.agreement.orders[order] += n
        self._events.on_compared(len(both), orders, self.agreement.figures)

    @property
    def comparison(self) -> ShadowComparison:
        """The comparison so far."""
        agreement = self.agreement
        return ShadowComparison(self.share, agreement.n, dict(agreement.orders), **agreement.figures)

    async def stop(self) -> None:
        """Cancel the comparisons in progress."""
        await self._background_scorer.stop()


def count_orders(both: Sequence[tuple[tuple[int, ...], RewardPair]]) -> dict[str, int]:
    """Count the pairs of responses to one prompt that both models order alike, that they order differently, and ties."""
    groups: dict[tuple[int, ...], list[RewardPair]] = {}
    for prompt, pair in both:
        groups.setdefault(prompt, []).append(pair)
    found = {"same": 0, "other": 0, "tied": 0}
    for group in groups.values():
        for (served_a, shadow_a), (served_b, shadow_b) in combinations(group[:_MAX_GROUP], 2):
            if served_a == served_b or shadow_a == shadow_b:
                found["tied"] += 1
            else:
                found["same" if (served_a > served_b) == (shadow_a > shadow_b) else "other"] += 1
    return found
