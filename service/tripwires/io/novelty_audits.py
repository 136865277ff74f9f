"""Let the audit judge score recent responses of high and of low novelty, and compare its pay for novelty with the model's.

The judge scores a tenth of the samples anyway; these are more, chosen by novelty alone and so blind to the score, in spare
capacity and within an allowance that grows with the samples of the run. Judged samples are kept as numbers over many reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

from rewardserve.service.tripwires.attribution.findings import Novelty
from rewardserve.service.tripwires.attribution.novelty_pay import (
    N_TESTS,
    JudgedSample,
    NoveltyPay,
    judged_pay,
    recent_pay,
)
from rewardserve.service.tripwires.hashing import spread
from rewardserve.service.tripwires.io.edit_tests import Scores
from rewardserve.service.tripwires.io.run_texts import KeptSample
from rewardserve.service.tripwires.looks import critical_z

WIRES: Final = ("paid_novelty", "rejected_novelty")

MIN_Z: Final = 3.5
"""Normal quantile of the growth of novelty from which the judge is asked: before, most novel responses are so by chance."""

MAX_AUDITS: Final = 48
"""Samples of high novelty, and as many of low novelty, that the judge scores for one report."""

FREE_AUDITS, AUDIT_SHARE = 512, 0.05
"""Samples that the judge scores for all reports of a run: so many, and this share of its samples."""

N_KEPT: Final = 512
"""Judged samples of each kind that are compared, the latest."""


class NoveltyAudits:
    """Judged samples of one run, as long as one model scores it. `pay` is that of the latest report."""

    def __init__(self) -> None:
        self.pay: NoveltyPay | None = None
        self.n_rows = 0
        self._judged: dict[int, JudgedSample] = {}
        self._was_active = False

    def restart_after_acknowledgement(self, alerts: Mapping[str, object]) -> None:
        """Forget the judged samples where an alert of one of the wires is no longer active: it trips on later ones only."""
        is_active = any(wire in alerts for wire in WIRES)
        if self._was_active and not is_active:
            self._judged.clear()
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
        """Set `pay`, of report number `n_reports` of a run of `n_samples`. Return the new scores of the judge, by `ids_hash`."""
        self.pay, scores = None, dict[int, float]()
        if novelty is None:
            return scores
        before = [each.sample for each in early]
        if novelty.z >= MIN_Z:
            chosen = self._chosen(n_samples, novelty, recent) if judge is not None else []
            if judge is not None and chosen:
                self.n_rows += len(chosen)
                found = await judge.scores([e.with_response(e.sample.response) for e in chosen])
                scores = {e.ids_hash: score for e, score in zip(chosen, found, strict=True) if score is not None}
            self._keep(novelty, recent, scores)
            self.pay = judged_pay(list(self._judged.values()), before, critical_z(n_reports, N_TESTS))
        self.pay = self.pay or recent_pay(novelty, before, [each.sample for each in recent])
        return scores

    def _chosen(self, n_samples: int, novelty: Novelty, recent: Sequence[KeptSample]) -> list[KeptSample]:
        """Those of the highest novelty, and as many of low novelty at random, that have not been judged."""
        places = [
            place
            for place, each in enumerate(recent)
            if each.sample.audit is None and each.ids_hash not in self._judged and each.context and each.sample.response.strip()
        ]  # fmt: skip
        high = [place for place in places if novelty.high >> place & 1]
        low = [place for place in places if novelty.low >> place & 1]
        high.sort(key=lambda place: (-novelty.values[place], place))
        low.sort(key=lambda place: (spread(recent[place].ids_hash), place))
        allowed = (FREE_AUDITS + int(AUDIT_SHARE * n_samples) - self.n_rows) // 2
        n = max(0, min(MAX_AUDITS, allowed, len(high), len(low)))
        return [recent[place] for place in (*high[:n], *low[:n])]

    def _keep(self, novelty: Novelty, recent: Sequence[KeptSample], scores: Mapping[int, float]) -> None:
        """Keep the judged samples of high and of low novelty, the latest; each keeps its first kind."""
        for place, each in enumerate(recent):
            audit = scores.get(each.ids_hash, each.sample.audit)
            is_high, is_low = novelty.high >> place & 1, novelty.low >> place & 1
            if audit is not None and (is_high or is_low) and each.ids_hash not in self._judged:
                self._judged[each.ids_hash] = JudgedSample(
                    each.sample.prompt_key, bool(is_high), each.sample.score, audit
                )
        for kind in (True, False):
            of_kind = [key for key, each in self._judged.items() if each.is_novel is kind]
            for key in islice(of_kind, max(0, len(of_kind) - N_KEPT)):
                del self._judged[key]
