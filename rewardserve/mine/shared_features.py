"""Find the features that suspected responses share, by the attribution of the trip wires, and group the pairs by them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewardserve.service.tripwires.attribution.findings import Finding
from rewardserve.service.tripwires.attribution.growth import compare_with
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.attribution.sentences import name, pays
from rewardserve.service.tripwires.attribution.tables import EarlyFeatures

MOST_COMPARED = 4_000
"""Pairs whose features are computed, those with the largest gaps."""

NO_FEATURE = "no shared feature"


@dataclass(frozen=True, slots=True)
class SharedFeature:
    """A feature of suspected responses: its share of these and of the responses beside them, and what it earns, in words."""

    words: str
    suspected: float
    beside: float
    n_chosen: int = 0


def find_shared(
    suspected: Sequence[ObservedSample], beside: Sequence[ObservedSample]
) -> tuple[list[SharedFeature], list[str]]:
    """Features that suspected responses have more often than the responses beside them, and the group of each pair.

    Features for which the model pays less than the judge are left out. Both have the same length, one pair a place; later
    pairs than the first `MOST_COMPARED` have no group.
    """
    early, recent = beside[:MOST_COMPARED], suspected[:MOST_COMPARED]
    before = EarlyFeatures([each.clipped() for each in early])
    clipped = [each.clipped() for each in recent]
    findings = [each for each in compare_with(before, clipped).findings if not _is_underpaid(each)]
    masks = before.recent_sets(clipped) if findings else {}
    everyone = (1 << len(recent)) - 1
    groups = [NO_FEATURE] * len(suspected)
    shared = [SharedFeature(_sentence(each), each.recent, each.early) for each in findings]
    for finding, feature in reversed(list(zip(findings, shared, strict=True))):
        first = finding.features[0]
        mask = masks.get(first.key, 0)
        mask = everyone & ~mask if first.falls else mask
        for place in range(len(recent)):
            if mask >> place & 1:
                groups[place] = feature.words
    return shared, groups


def _is_underpaid(finding: Finding) -> bool:
    """Whether the model pays less for the feature than the judge: then it is no reason why responses are suspected."""
    model, judge = finding.model_pays, finding.judge_pays
    return model is not None and judge is not None and model.mean < judge.mean


def _sentence(finding: Finding) -> str:
    shares = f"{finding.recent:.0%} of the suspected responses, {finding.early:.0%} of those beside them"
    return "; ".join(part for part in (f"{name(finding)}: {shares}", pays(finding)) if part)
