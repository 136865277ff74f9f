"""Whether the audit judge disagrees with the pay for a length: in edited responses and in those of the run.

A response that is cut off, or lengthened by words of others, is no honest short or long one: a judge may dislike the edit, and like
a policy that has become terse or thorough. So recent responses of the length are compared with others of the same steps, as novel
ones are. Neither may leave open that the judge pays a third of what the model pays, and both together are sure of it for the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Final

from rewardserve.service.tripwires.attribution.effects import Effect, z_of_t
from rewardserve.service.tripwires.attribution.findings import Finding
from rewardserve.service.tripwires.attribution.novelty_pay import judged_pay
from rewardserve.service.tripwires.attribution.verdicts import MIN_SCORE_Z, lower_bound, shortfall
from rewardserve.service.tripwires.io.edit_tests import MAX_TESTED, Scores, TestedEdit
from rewardserve.service.tripwires.io.recent_audits import RecentAudits
from rewardserve.service.tripwires.io.run_texts import KeptSample
from rewardserve.service.tripwires.looks import critical_z

MAX_AUDITS: Final = 96
"""Samples of the length, and as many others, that the judge scores for one report."""


class LengthAudits:
    """Judged samples of one run, as long as one model scores it, by the feature that stands for the change of length."""

    def __init__(self) -> None:
        self._of: dict[str, RecentAudits] = {}

    async def contradictions(
        self,
        n_samples: int,
        findings: Sequence[Finding],
        tested: Mapping[int, TestedEdit],
        early: Sequence[KeptSample],
        recent: Sequence[KeptSample],
        judge: Scores | None,
        n_reports: int,
    ) -> tuple[dict[int, float], dict[int, float]]:
        """The statistic of `judge_contradicts` of findings of a length alone, and the judge's new scores, by `ids_hash`.

        It is the lower bound of what the edit earns; findings that the judge does not surely contradict are left out. The judge is
        asked where it contradicts the edit by two standard errors.
        """
        found, scores = dict[int, float](), dict[int, float]()
        before, everyone = [each.sample for each in early], (1 << len(recent)) - 1
        for index, each in tested.items():
            if not each.edit.is_length_only or each.judged is None:
                continue
            of_edit = _z(shortfall(each.earned, each.judged))
            if of_edit < MIN_SCORE_Z:
                continue
            finding = findings[index]
            audits = self._of.setdefault(finding.features[0].key, RecentAudits(MAX_AUDITS))
            scores |= await audits.ask(n_samples, finding.event, everyone & ~finding.event, recent, judge)
            pay = judged_pay(audits.judged, before, MIN_SCORE_Z)
            of_run = _z(pay.shortfall) if pay is not None and pay.shortfall is not None else 0.0
            both = (of_edit + of_run) / sqrt(2.0)  # of independent samples, each with a standard normal distribution
            if of_run >= MIN_SCORE_Z and both >= critical_z(n_reports, MAX_TESTED):
                found[index] = lower_bound(each.earned, each.z_edit)
        return found, scores


def _z(shortfall: Effect) -> float:
    """Normal quantile of an estimate."""
    return z_of_t(shortfall.t, shortfall.df)
