"""Let the audit judge score recent responses of high and of low novelty, and compare its pay for novelty with the model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rewardserve.service.tripwires.attribution.findings import Novelty
from rewardserve.service.tripwires.attribution.novelty_pay import N_TESTS, NoveltyPay, judged_pay, recent_pay
from rewardserve.service.tripwires.io.edit_tests import Scores
from rewardserve.service.tripwires.io.recent_audits import RecentAudits
from rewardserve.service.tripwires.io.run_texts import KeptSample
from rewardserve.service.tripwires.looks import critical_z

WIRES: Final = ("paid_novelty", "rejected_novelty")

MIN_Z: Final = 3.5
"""Normal quantile of the growth of novelty from which the judge is asked: before, most novel responses are so by chance."""

MAX_AUDITS: Final = 48
"""Samples of high novelty, and as many of low novelty, that the judge scores for one report."""


class NoveltyAudits:
    """Judged samples of one run, as long as one model scores it. `pay` is that of the latest report."""

    def __init__(self) -> None:
        self.pay: NoveltyPay | None = None
        self._audits = RecentAudits(MAX_AUDITS)
        self._was_active = False

    @property
    def n_rows(self) -> int:
        """Samples that the judge has scored for it."""
        return self._audits.n_rows

    def restart_after_acknowledgement(self, alerts: Mapping[str, object]) -> None:
        """Forget the judged samples where an alert of one of the wires is no longer active: it trips on later ones only."""
        is_active = any(wire in alerts for wire in WIRES)
        if self._was_active and not is_active:
            self._audits.clear()
        self._was_active = is_active

    async def compare(
        self,
        n_samples: int,
        novelty: Novelty | None,
        early: Sequence[KeptSample],
        recent: Sequence[KeptSample],
        judge: Scores | None,
        n_reports: int,
    ) -> dict[int, float]:
        """Set `pay`, of report number `n_reports` of a run of `n_samples`. Return the judge's new scores, by `ids_hash`: of the
        most novel samples, and of as many of low novelty at random.
        """
        self.pay, scores = None, dict[int, float]()
        if novelty is None:
            return scores
        before = [each.sample for each in early]
        if novelty.z >= MIN_Z:
            scores = await self._audits.ask(n_samples, novelty.high, novelty.low, recent, judge, novelty.values)
            self.pay = judged_pay(self._audits.judged, before, critical_z(n_reports, N_TESTS))
        self.pay = self.pay or recent_pay(novelty, before, [each.sample for each in recent])
        return scores
