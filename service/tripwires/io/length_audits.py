"""Whether the audit judge disagrees with the pay for a length in the run's own responses, not only in edited ones.

A response that is cut off, or lengthened by sentences of others, is no honest short or long one: a judge may dislike the edit, and
like a policy that has become terse or thorough. So where an edit of the length alone contradicts the judge, recent responses of
this length are compared with others of the same steps, as novel ones are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rewardserve.service.tripwires.attribution.findings import Finding
from rewardserve.service.tripwires.attribution.novelty_pay import judged_pay
from rewardserve.service.tripwires.attribution.verdicts import MIN_SCORE_Z, lower_bound
from rewardserve.service.tripwires.io.edit_tests import Scores, TestedEdit
from rewardserve.service.tripwires.io.recent_audits import RecentAudits
from rewardserve.service.tripwires.io.run_texts import KeptSample

MAX_AUDITS: Final = 96
"""Samples of the length, and as many others, that the judge scores for one report."""


class LengthAudits:
    """Judged samples of one run, as long as one model scores it, by the feature that stands for the change of length."""

    def __init__(self) -> None:
        self._of: dict[str, RecentAudits] = {}

    async def rejected(
        self,
        n_samples: int,
        findings: Sequence[Finding],
        tested: Mapping[int, TestedEdit],
        early: Sequence[KeptSample],
        recent: Sequence[KeptSample],
        judge: Scores | None,
    ) -> tuple[set[int], dict[int, float]]:
        """The findings of a length alone for which the judge surely gives the run's own responses at most a third of the model's
        pay, and its new scores, by `ids_hash`. Asked only where the edit contradicts the judge.
        """
        found, scores = set[int](), dict[int, float]()
        before = [each.sample for each in early]
        for index, each in tested.items():
            if not (each.edit.is_length_only and each.contradiction):
                continue
            finding = findings[index]
            audits = self._of.setdefault(finding.features[0].key, RecentAudits(MAX_AUDITS))
            everyone = (1 << len(recent)) - 1
            scores |= await audits.ask(n_samples, finding.event, everyone & ~finding.event, recent, judge)
            pay = judged_pay(audits.judged, before, MIN_SCORE_Z)
            if pay is not None and pay.shortfall is not None and lower_bound(pay.shortfall, MIN_SCORE_Z) > 0.0:
                found.add(index)
        return found, scores
