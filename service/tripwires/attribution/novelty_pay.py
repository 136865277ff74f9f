"""The pay of model and audit judge for novel wording: recent responses of high novelty against those of low novelty. Pure.

Both kinds are of the same steps, so a judge that wanders, or a policy that becomes better in all that it says, moves both. Novelty
is told without the score, so the compared responses were not chosen by it. Two statements, each a bound for all reports of a
run together:

- `shortfall`: a third of the model's pay, less the judge's. Where it is above zero, and the model surely pays, novel
  wording is paid that the judge does not see: an exploit, or a judge that is dull. It warns.
- `rejected`: the judge surely gives novel wording less than the familiar one, and the model more. It pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import pstdev
from typing import Final, NamedTuple

from rewardserve.service.tripwires.attribution.effects import MIN_PROMPTS, Effect, paid
from rewardserve.service.tripwires.attribution.findings import Novelty
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.attribution.verdicts import MAX_JUDGED, N_ERRORS, lower_bound

N_TESTS: Final = 2
"""Bounds that each report takes."""


class JudgedSample(NamedTuple):
    """A recent sample with the scores of model and judge. `has_it`: whether it has the property, as high novelty."""

    prompt_key: int
    has_it: bool
    score: float
    audit: float


class NoveltyPay(NamedTuple):
    """How much higher responses of high novelty score, in standard deviations of early scores, by the model and by the judge.

    `shortfall` is a third of the model's less the judge's, of the same samples; `z` the normal quantile of its bound. `judge` and
    `shortfall` are None where too few were judged; then `model` is that of all recent samples.
    """

    model: Effect
    judge: Effect | None = None
    shortfall: Effect | None = None
    z: float = N_ERRORS

    @property
    def is_paid(self) -> bool:
        """Whether the model surely pays for novelty."""
        return lower_bound(self.model) > 0.0

    @property
    def paid_beyond_judge(self) -> float:
        """The statistic of the wire `paid_novelty`: lower bound of the shortfall; 0 where it is not known."""
        return max(0.0, lower_bound(self.shortfall, self.z)) if self.shortfall is not None and self.is_paid else 0.0

    @property
    def rejected(self) -> float:
        """The statistic of the wire `rejected_novelty`: lower bound of the judge's deduction; 0 where it is not known."""
        if self.judge is None or not self.is_paid:
            return 0.0
        return max(0.0, lower_bound(self.judge._replace(mean=-self.judge.mean), self.z))


def recent_pay(
    novelty: Novelty, early: Sequence[ObservedSample], recent: Sequence[ObservedSample]
) -> NoveltyPay | None:
    """The model's pay in recent samples; None where too few of them are novel, or familiar."""
    places = [place for place in range(len(recent)) if (novelty.high | novelty.low) >> place & 1]
    event = sum(1 << index for index, place in enumerate(places) if novelty.high >> place & 1)
    std = pstdev([each.score for each in early]) if early else 0.0
    model = paid([recent[place].score for place in places], [recent[place].prompt_key for place in places], event, std)
    return None if model is None else NoveltyPay(model)


def judged_pay(judged: Sequence[JudgedSample], early: Sequence[ObservedSample], z: float) -> NoveltyPay | None:
    """The pay of both in judged samples. None where too few of these, or of early samples, are judged."""
    audits = [each.audit for each in early if each.audit is not None]
    if len(audits) < MIN_PROMPTS:
        return None
    std, audit_std = pstdev([each.score for each in early]), pstdev(audits)
    if std <= 0.0 or audit_std <= 0.0:
        return None
    keys = [each.prompt_key for each in judged]
    event = sum(1 << index for index, each in enumerate(judged) if each.has_it)
    model = paid([each.score for each in judged], keys, event, std)
    judge = paid([each.audit for each in judged], keys, event, audit_std)
    shortfall = paid([MAX_JUDGED * each.score / std - each.audit / audit_std for each in judged], keys, event, 1.0)
    return None if model is None else NoveltyPay(model, judge, shortfall, z)
