"""Recent samples of two kinds that the audit judge has scored: it is asked for more of both, within an allowance. Knows no wire.

The judge scores a tenth of the samples anyway; these are more, in spare capacity, chosen blind to the score. Judged samples are
kept as numbers over many reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

from rewardserve.service.tripwires.attribution.novelty_pay import JudgedSample
from rewardserve.service.tripwires.hashing import spread
from rewardserve.service.tripwires.io.edit_tests import Scores
from rewardserve.service.tripwires.io.run_texts import KeptSample

FREE_AUDITS, AUDIT_SHARE = 512, 0.05
"""Samples that the judge scores for all reports of a run: so many, and this share of its samples."""

N_KEPT: Final = 512
"""Judged samples of each kind that are compared, the latest."""


class RecentAudits:
    """Judged samples of one run, as long as one model scores it: those that have something, and those that have it not."""

    def __init__(self, max_audits: int) -> None:
        """`max_audits`: samples of each kind that the judge scores for one report."""
        self.n_rows = 0
        self._max_audits = max_audits
        self._judged: dict[int, JudgedSample] = {}

    @property
    def judged(self) -> list[JudgedSample]:
        """All that are kept."""
        return list(self._judged.values())

    def clear(self) -> None:
        """Forget them; the rows still count."""
        self._judged.clear()

    async def ask(
        self,
        n_samples: int,
        having: int,
        lacking: int,
        recent: Sequence[KeptSample],
        judge: Scores | None,
        order: Sequence[float] = (),
    ) -> dict[int, float]:
        """Let the judge score recent samples of both sets, and keep them. Return its scores, by `ids_hash`.

        Of those with the property the ones with the largest `order`, by place; without it, at random.
        """
        chosen = self._chosen(n_samples, having, lacking, recent, order) if judge is not None else []
        scores: dict[int, float] = {}
        if judge is not None and chosen:
            self.n_rows += len(chosen)
            found = await judge.scores([each.with_response(each.sample.response) for each in chosen])
            scores = {each.ids_hash: score for each, score in zip(chosen, found, strict=True) if score is not None}
        self._keep(having, lacking, recent, scores)
        return scores

    def _chosen(
        self,
        n_samples: int,
        having: int,
        lacking: int,
        recent: Sequence[KeptSample],
        order: Sequence[float],
    ) -> list[KeptSample]:
        places = [
            place
            for place, each in enumerate(recent)
            if each.sample.audit is None and each.ids_hash not in self._judged and each.context and each.sample.response.strip()
        ]  # fmt: skip
        places.sort(key=lambda place: (spread(recent[place].ids_hash), place))
        has = [place for place in places if having >> place & 1]
        lacks = [place for place in places if lacking >> place & 1]
        if order:
            has.sort(key=lambda place: (-order[place], place))
        allowed = (FREE_AUDITS + int(AUDIT_SHARE * n_samples) - self.n_rows) // 2
        n = max(0, min(self._max_audits, allowed, len(has), len(lacks)))
        return [recent[place] for place in (*has[:n], *lacks[:n])]

    def _keep(self, having: int, lacking: int, recent: Sequence[KeptSample], scores: Mapping[int, float]) -> None:
        """Keep the judged samples of both kinds, the latest; each keeps its first kind."""
        for place, each in enumerate(recent):
            audit = scores.get(each.ids_hash, each.sample.audit)
            if audit is not None and (having | lacking) >> place & 1 and each.ids_hash not in self._judged:
                has_it = bool(having >> place & 1)
                self._judged[each.ids_hash] = JudgedSample(each.sample.prompt_key, has_it, each.sample.score, audit)
        for kind in (True, False):
            of_kind = [key for key, each in self._judged.items() if each.has_it is kind]
            for key in islice(of_kind, max(0, len(of_kind) - N_KEPT)):
                del self._judged[key]
