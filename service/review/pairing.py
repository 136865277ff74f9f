"""Choose pairs of responses to one prompt that are worth a label. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from itertools import combinations
from statistics import fmean, pstdev
from typing import Literal, NamedTuple

Sampling = Literal["disagreement", "alert", "random"]
"""Which pairs come first: those that model and audit judge order differently, those that an alert points at, or any."""


class Candidate(NamedTuple):
    """A stored sample without its texts. `audit` None: not judged."""

    id: int
    prompt_key: str
    is_flagged: bool
    evidence: str
    score: float
    audit: float | None


class SamplePair(NamedTuple):
    """Numbers of two samples with the same prompt and different texts, the earlier one first."""

    earlier: int
    later: int


def pairs_of(candidates: Sequence[Candidate], sampling: Sampling, alerted: Collection[str] = ()) -> list[SamplePair]:
    """Pairs, the one to label first at the beginning; at most one for two candidates. `alerted`: evidence of alerts."""
    groups: dict[str, list[Candidate]] = {}
    for each in sorted(candidates, key=lambda each: each.id):
        groups.setdefault(each.prompt_key, []).append(each)
    if sampling == "random":
        found = [pair for key in sorted(groups, key=_drawn) for pair in _drawn_pairs(groups[key])]
        return [_pair(a, b) for a, b in found]
    if sampling == "alert":
        alerts = [pair for group in groups.values() if (pair := _alert_pair(group, alerted)) is not None]
        return [_pair(a, b) for a, b in sorted(alerts, key=lambda pair: -pair[1].id)]
    return _disagreements(groups.values(), candidates)


def _drawn_pairs(group: Sequence[Candidate]) -> Iterable[tuple[Candidate, Candidate]]:
    """Pairs in which each text of a group is used once."""
    texts = {each.evidence: each for each in group}
    drawn = sorted(texts.values(), key=lambda each: _drawn(each.evidence))
    return zip(drawn[::2], drawn[1::2], strict=False)


def _alert_pair(group: Sequence[Candidate], alerted: Collection[str]) -> tuple[Candidate, Candidate] | None:
    """The latest response that an alert or a flag points at, with the earliest one that none does."""
    pointed = [each for each in group if each.is_flagged or each.evidence in alerted]
    texts = {each.evidence for each in pointed}
    others = [each for each in group if each.evidence not in texts]
    return (others[0], pointed[-1]) if pointed and others else None


def _disagreements(groups: Iterable[Sequence[Candidate]], candidates: Sequence[Candidate]) -> list[SamplePair]:
    """The pair of each prompt on which standardised score and judge differ most, where they order it differently."""
    judged = [(each.score, each.audit) for each in candidates if each.audit is not None]
    if len(judged) < 2:
        return []
    scores, audits = zip(*judged, strict=True)
    spreads = pstdev(scores), pstdev(audits)
    if not all(spreads):
        return []
    score_mean, audit_mean = fmean(scores), fmean(audits)

    def standardised(each: Candidate) -> tuple[float, float]:
        return (each.score - score_mean) / spreads[0], ((each.audit or 0.0) - audit_mean) / spreads[1]

    found: list[tuple[float, Candidate, Candidate]] = []
    for group in groups:
        known = [(each, *standardised(each)) for each in group if each.audit is not None]
        pairs = [
            (abs((s1 - s2) - (a1 - a2)), one, two)
            for (one, s1, a1), (two, s2, a2) in combinations(known[-_MOST_OF_A_PROMPT:], 2)
            if one.evidence != two.evidence and (s1 - s2) * (a1 - a2) < 0.0
        ]
        if pairs:
            found.append(max(pairs, key=lambda each: each[0]))
    return [_pair(one, two) for _, one, two in sorted(found, key=lambda each: -each[0])]


_MOST_OF_A_PROMPT = 64
"""Latest responses to one prompt of which all pairs are compared."""


def _pair(one: Candidate, two: Candidate) -> SamplePair:
    return SamplePair(min(one.id, two.id), max(one.id, two.id))


def _drawn(text: str) -> bytes:
    """A key by which texts are sorted as if drawn, but always in the same order."""
    return blake2b(text.encode(), digest_size=8).digest()
