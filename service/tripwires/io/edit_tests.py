"""Put the edits of findings into first responses of a run, and score these with and without: by the model, and by the audit judge.

Scores are remembered, because reports of one run test the same edits on the same responses. Rows are bounded: those of
periodic reports count against an allowance that grows with the samples of the run.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from statistics import pstdev
from typing import NamedTuple, Protocol

from rewardserve.model.conversation import Sample
from rewardserve.service.tripwires.attribution.edits import Edit
from rewardserve.service.tripwires.attribution.effects import MIN_PROMPTS, Effect, effect, explained_share
from rewardserve.service.tripwires.attribution.findings import MAX_EDITS, Finding, GrowthReport
from rewardserve.service.tripwires.attribution.verdicts import (
    N_ERRORS,
    artefact_share,
    contradiction,
    falls_short,
    is_confirmed,
    lower_bound,
)
from rewardserve.service.tripwires.io.run_texts import KeptSample
from rewardserve.service.tripwires.looks import critical_z

MAX_EDITED = 32
"""First responses that each edit is put into."""

MANY_EDITED = 192
"""The same where fewer leave open whether the edit earns anything, and for the judge, whose scores are less certain."""

_OPEN_T, _OPEN_SHARE = 1.0, 0.5
"""What an edit earns is open from this multiple of its standard error on, as long as its lower bound is below this share of it."""

MAX_CONFIRMED, MAX_TESTED = 2, 4
"""Findings are tested until so many are confirmed, and so many at most."""

_N_STAGES = 2
"""Looks at an edit: with few pairs, and with many."""

FREE_ROWS, ROW_SHARE = 1_024, 0.05
"""Rows that the model, and the judge, score for the periodic reports of a run: so many, and this share of its samples."""

_MAX_KNOWN = 4_096


class Scores(Protocol):
    """Scorer of edited responses; `edit_scorer.EditScorer` is one."""

    async def scores(self, samples: Sequence[Sample]) -> list[float | None]:
        """The score of each sample, None without one."""
        ...


class TestedEdit(NamedTuple):
    """Effect of the edit of a finding on first responses, and the share of the growth of the score that it explains.

    `edit` is the smallest of those of the finding that earned as much as the feature seems to, else the one that earned
    most. `judged` is the effect on the judge's scores, in standard deviations of its early ones; None: the judge was not
    asked. `z` and `z_edit` are the normal quantiles of the bounds of `artefact_share`, whose growth is another one in each
    report, and of `contradiction`, whose scores stay: a report that finds the same edit again is no new test of it.
    """

    edit: Edit
    earned: Effect
    explains: Effect
    judged: Effect | None = None
    z: float = N_ERRORS
    z_edit: float = N_ERRORS

    def artefact_share(self, finding: Finding, growth: GrowthReport) -> float:
        """The statistic of the wire `artefact_share`, of a run whose mean score has grown. 0 for a change of length alone, which
        only a judge can tell from learning.
        """
        if self.edit.is_length_only:
            return 0.0
        return artefact_share(self.earned, finding.growth, growth.score_growth, self.judged, self.z)

    @property
    def contradiction(self) -> float:
        """The statistic of the wire `judge_contradicts`; 0 for a change of length alone, which `LengthAudits` tests."""
        return 0.0 if self.edit.is_length_only else contradiction(self.earned, self.judged, self.z_edit)


class ScoreMemory:
    """Scores of original and edited first responses of one run by one model, and the rows that these took."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, str], float] = OrderedDict()
        self.n_rows = 0

    def n_missing(self, texts: Sequence[tuple[KeptSample, str]]) -> int:
        """Rows that the scores of these texts would take."""
        return len({(each.ids_hash, text) for each, text in texts} - self._known.keys())

    async def scores(self, texts: Sequence[tuple[KeptSample, str]], scorer: Scores) -> list[float | None]:
        """The score of each text as a response to the prompt of its sample, None without one."""
        missing = {
            (each.ids_hash, text): (each, text) for each, text in texts if (each.ids_hash, text) not in self._known
        }
        if missing:
            self.n_rows += len(missing)
            samples = [each.with_response(text) for each, text in missing.values()]
            for key, score in zip(missing, await scorer.scores(samples), strict=True):
                if score is not None:
                    self._known[key] = score
        found = [self._known.get((each.ids_hash, text)) for each, text in texts]
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return found


class EditTests:
    """Tests of the edits of one run, as long as one model scores it."""

    def __init__(self) -> None:
        self._of_model, self._of_judge = ScoreMemory(), ScoreMemory()
        self._n_asked_for = 0
        self._numbers: dict[Edit, int] = {}

    async def test(
        self,
        n_samples: int,
        growth: GrowthReport,
        chosen: Sequence[int],
        early: Sequence[KeptSample],
        scorer: Scores,
        judge: Scores | None,
        thresholds: Mapping[str, float],
        n_reports: int = 1,
        *,
        on_demand: bool = False,
    ) -> dict[int, TestedEdit]:
        """Test the edits of these findings: also with the judge where one may trip a wire.

        Rows are within the allowance of a run of `n_samples`; those of the model for a report `on_demand` are not counted.
        `thresholds` are those of the wires; one that is left out is off. This is report number `n_reports` of the run.
        """
        z = critical_z(n_reports, MAX_TESTED * MAX_EDITS)
        tested, before = dict[int, TestedEdit](), self._of_model.n_rows
        allowed_judge = FREE_ROWS + int(ROW_SHARE * n_samples)
        allowed = inf if on_demand else allowed_judge + self._n_asked_for
        for index in chosen[:MAX_TESTED]:
            if sum(is_confirmed(each.earned) for each in tested.values()) == MAX_CONFIRMED:
                break
            finding = growth.findings[index]
            found = await self._smallest_that_earns(finding, early, scorer, allowed)
            if found is None:
                continue
            edit, earned = found
            judged, z_edit = None, critical_z(self._numbers[edit], _N_STAGES)
            if earned.t > _OPEN_T and lower_bound(earned, z_edit) < _OPEN_SHARE * earned.mean:
                earned = await self._earned(edit, early, MANY_EDITED, scorer, allowed) or earned
            share = TestedEdit(edit, earned, earned, z=z).artefact_share(finding, growth)
            may_trip = lower_bound(earned, z_edit) > thresholds.get("judge_contradicts", inf) or share > thresholds.get(
                "artefact_share", inf
            )
            if judge is not None and may_trip:
                judged = await self._judged(edit, early, judge, allowed_judge)
            explains = explained_share(earned, finding.growth, growth.score_growth, finding.covariance)
            tested[index] = TestedEdit(edit, earned, explains, judged, z, z_edit)
        if on_demand:
            self._n_asked_for += self._of_model.n_rows - before
        return tested

    async def _smallest_that_earns(
        self, finding: Finding, early: Sequence[KeptSample], scorer: Scores, allowed: float
    ) -> tuple[Edit, Effect] | None:
        """The smallest edit that earns as much as the feature seems to, else the one that earns most."""
        best: tuple[Edit, Effect] | None = None
        for edit in finding.edits:
            self._numbers.setdefault(edit, len(self._numbers) + 1)
            earned = await self._earned(edit, early, MAX_EDITED, scorer, allowed)
            if earned is not None and (best is None or (is_confirmed(earned) and earned.mean > best[1].mean)):
                best = edit, earned
            if best is not None and not falls_short(best[1], finding.model_pays):
                break
        return best

    async def _earned(
        self, edit: Edit, early: Sequence[KeptSample], n: int, scorer: Scores, allowed: float = inf
    ) -> Effect | None:
        std = pstdev([each.sample.score for each in early])
        return await _effect(self._of_model, edit, early, n, scorer, std, allowed) if std > 0.0 else None

    async def _judged(self, edit: Edit, early: Sequence[KeptSample], judge: Scores, allowed: int) -> Effect | None:
        """The effect on the scores of the judge, in standard deviations of those of the originals; None beyond `allowed` rows."""
        pairs = edited_pairs(edit, early, MANY_EDITED)
        texts = [(each, each.sample.response) for each, _ in pairs]
        if self._of_judge.n_rows + self._of_judge.n_missing([*pairs, *texts]) > allowed:
            return None
        known = [score for score in await self._of_judge.scores(texts, judge) if score is not None]
        if not known or (std := pstdev(known)) == 0.0:
            return None
        return await _effect(self._of_judge, edit, early, MANY_EDITED, judge, std)


async def _effect(
    memory: ScoreMemory,
    edit: Edit,
    early: Sequence[KeptSample],
    n: int,
    scorer: Scores,
    std: float,
    allowed: float = inf,
) -> Effect | None:
    """Mean of what the edit changes; None where too few prompts have both scores, or the rows are beyond `allowed`."""
    pairs = edited_pairs(edit, early, n)
    texts = [*pairs, *((each, each.sample.response) for each, _ in pairs)]
    if memory.n_rows + memory.n_missing(texts) > allowed:
        return None
    scores = await memory.scores(texts, scorer)
    differences, keys = [], []
    for (each, _), edited, original in zip(pairs, scores[: len(pairs)], scores[len(pairs) :], strict=True):
        if edited is not None and original is not None:
            differences.append((edited - original) / std)
            keys.append(each.sample.prompt_key)
    return effect(differences, keys) if len(set(keys)) >= MIN_PROMPTS else None


def edited_pairs(edit: Edit, early: Sequence[KeptSample], n: int = MAX_EDITED) -> list[tuple[KeptSample, str]]:
    """Up to n first responses that lack the feature, each with its edited text: one of every prompt before the second ones."""
    pairs: list[tuple[KeptSample, str]] = []
    for seed, each in _by_turns(early):
        if len(pairs) == n:
            break
        sample = each.sample
        if each.context and sample.response.strip():
            edited = edit.apply(sample.prompt, sample.response, seed)
            if edited is not None:
                pairs.append((each, edited))
    return pairs


def _by_turns(early: Sequence[KeptSample]) -> Iterator[tuple[int, KeptSample]]:
    """All samples with their index: the first of each prompt, then the second ones."""
    seen: Counter[int] = Counter()
    turns = []
    for index, each in enumerate(early):
        turns.append((seen[each.sample.prompt_key], index))
        seen[each.sample.prompt_key] += 1
    for _, index in sorted(turns):
        yield index, early[index]
