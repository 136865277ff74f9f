"""Find the features that recent responses have more often than early ones, and the score that these features earn. Pure.

Tested are all features that are frequent enough to grow by `MIN_GROWTH`; that choice looks at early and recent samples
together, so it does not favour growth (Bourgon, Gentleman and Huber 2010, "Independent filtering increases detection power").
A feature is found where its share grew by more than `MIN_GROWTH`, and significantly after Bonferroni's correction. The
most significant one stands for all that occur with it: a feature whose growth disappears where the first is missing is no
separate finding, but a companion (forward selection).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import NormalDist, pstdev
from typing import NamedTuple

from rewardserve.service.tripwires.attribution.clusters import StratifiedComparison, cluster
from rewardserve.service.tripwires.attribution.edit_search import find_edits
from rewardserve.service.tripwires.attribution.edits import Edit
from rewardserve.service.tripwires.attribution.effects import MIN_PROMPTS, Effect, corrected_z, paid, z_of_t
from rewardserve.service.tripwires.attribution.findings import Feature, Finding, GrowthReport
from rewardserve.service.tripwires.attribution.novelty import find_novelty
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.attribution.presence import samples_with
from rewardserve.service.tripwires.attribution.prompts import prompt_change, task_strata
from rewardserve.service.tripwires.attribution.tables import LEVELS, EarlyFeatures

MIN_GROWTH = 0.08
"""Least growth of a share of samples."""

SIGNIFICANCE = 0.001
"""Probability that stationary responses give any finding, over all features of one report."""

MAX_FINDINGS = 8
_LENGTHS = tuple(f"number:{name}:{level}" for name in ("characters", "sentences") for level in LEVELS)
"""Features of the length, with a quarter of the error probability: an exploit that is only shorter, or longer, has no others."""
_MAX_CANDIDATES = 300
"""Features that are compared in one step of the selection, the most significant ones."""

_SAME_SAMPLES = 0.6
"""Share of the samples that have one of two features which have both, from which the two occur together."""

_FEW_LACK = 4
"""How many times as many samples have the leaders so far as lack them, from which hardly any lack them."""

_TEXT_Z = 0.5
"""Significance of a text relative to a number from which the text stands for its group."""

_MIN_NAMED = 0.6
"""Share of the recent responses with a feature which have its edit, from which they are named by the edit."""

_MAX_MORE = 0.1
"""Share of the early responses that may have the edit without the feature: where more have it, it is a part of honest responses."""

_N_EXAMPLES = 3
_ORDER = ("first words", "last words", "pair", "word", "first characters", "last characters", "character", "equal",
          "case", "layout", "marks", "mark", "script", "number", "common word")  # fmt: skip
"""Kinds of features from specific to general: of features that grew as much, the first stands for the others."""


class _Candidate(NamedTuple):
    """A feature with the early and the recent samples that have it (or lack it, where it falls), and its growth."""

    feature: Feature
    early: int
    recent: int
    growth: Effect
    z: float


def find_growth(early: Sequence[ObservedSample], recent: Sequence[ObservedSample]) -> list[Finding]:
    """Features of `recent` that grew against `early`, those first that account for most of the score's growth, or of its fall."""
    return compare_with(EarlyFeatures(early), recent).findings


def compare_with(before: EarlyFeatures, recent: Sequence[ObservedSample]) -> GrowthReport:
    """Compare recent samples with early ones, whose features are computed once.

    Costs about .2 s of CPU for 256 samples of 1 kB. No findings where a side has fewer than `MIN_PROMPTS` prompts.
    """
    early = before.samples
    prompts = prompt_change(before.prompts, recent)
    strata = task_strata(early, recent, prompts)
    comparison = StratifiedComparison(
        cluster([sample.prompt_key for sample in early], strata[0]),
        cluster([sample.prompt_key for sample in recent], strata[1]),
    )
    std = pstdev([sample.score for sample in early]) if early else 0.0
    scores = [[sample.score / (std or 1.0) for sample in side] for side in (early, recent)]
    totals = comparison.early.totals(scores[0]), comparison.recent.totals(scores[1])
    score_growth = comparison.difference(*totals)
    first_step = min((sample.step for sample in recent if sample.step is not None), default=None)
    if not comparison.strata:
        return GrowthReport([], prompts, 0.0, 0, score_growth, len(early), len(recent), first_step)
    masks = before.recent_sets(recent)
    n_features, candidates = _candidates(before.masks, masks, comparison, len(early), len(recent))
    findings = [
        _finding(group, before, recent, comparison, totals, n_features, masks)
        for group in _groups(candidates, comparison, n_features)
    ]
    findings = [each for index, each in enumerate(findings) if not _is_known(each, findings[:index])]
    sign = 1.0 if score_growth.high < 0.0 else -1.0  # where the score fell, the largest part of the fall is first
    findings.sort(
        key=lambda each: (not each.judge_contradicts, sign * each.contribution, -abs(each.z), each.features[0].key)
    )
    novelty = find_novelty(early, recent, (before.masks | before.single, masks), comparison)
    n = len(early), len(recent)
    return GrowthReport(findings, prompts, comparison.comparable, n_features, score_growth, *n, first_step, novelty)


def _candidates(
    before: dict[str, int], after: dict[str, int], comparison: StratifiedComparison, n_early: int, n_recent: int
) -> tuple[int, list[_Candidate]]:
    """The number of features that could grow by `MIN_GROWTH`, and those that did."""
    least = MIN_GROWTH / 2 * (n_early + n_recent)
    everyone = (1 << n_early) - 1, (1 << n_recent) - 1
    n_features, rough = 0, []
    for key in before.keys() | after.keys():
        early, recent = before.get(key, 0), after.get(key, 0)
        if early.bit_count() + recent.bit_count() < least:
            continue
        n_features += 1
        growth = comparison.rough_growth(early, recent)
        if abs(growth) > MIN_GROWTH / 2:
            falls = growth < 0.0
            events = (everyone[0] & ~early, everyone[1] & ~recent) if falls else (early, recent)
            rough.append((-abs(growth), _order(key), Feature(key, falls), *events))
    rough.sort()
    tested = (
        _test(feature, early, recent, comparison) for _, _, feature, early, recent in rough[: 2 * _MAX_CANDIDATES]
    )
    return n_features, [each for each in tested if _is_found(each, n_features)][:_MAX_CANDIDATES]


def _test(feature: Feature, early: int, recent: int, comparison: StratifiedComparison) -> _Candidate:
    growth = comparison.growth(early, recent)
    return _Candidate(feature, early, recent, growth, z_of_t(growth.t, growth.df))


def _is_found(candidate: _Candidate, n_features: int) -> bool:
    return candidate.growth.mean > MIN_GROWTH and candidate.z > _critical_z(_n_tests(candidate.feature, n_features))


def _n_tests(feature: Feature, n_features: int) -> int:
    """The number of tests for which a feature is corrected."""
    return 4 * len(_LENGTHS) if feature.key in _LENGTHS else 2 * n_features


def _critical_z(n_tests: int) -> float:
    """Normal quantile, two-sided, from which a feature is significant after the correction."""
    return -NormalDist().inv_cdf(SIGNIFICANCE / max(1, n_tests) / 2.0)


def _groups(
    candidates: Sequence[_Candidate], comparison: StratifiedComparison, n_features: int
) -> Iterator[list[_Candidate]]:
    """Features that grew together. Each group begins with the most significant of those that are left."""
    left, rest = list(candidates), comparison
    for _ in range(MAX_FINDINGS):
        if not left:
            return
        leader = _leader(left)
        rest = StratifiedComparison(rest.early.without(leader.early), rest.recent.without(leader.recent))
        group, others = [leader], list[_Candidate]()
        for each in left:
            if each is leader:
                continue
            (group if _is_companion(each, leader, rest, n_features) else others).append(each)
        yield group
        left = others


def _is_companion(each: _Candidate, leader: _Candidate, rest: StratifiedComparison, n_features: int) -> bool:
    """Whether a feature has grown with the leader: it is in the same samples, or has not grown among those without the leader.

    Where hardly any lack the leader, as after a change of the layout of all responses, the length is compared by itself.
    """
    if _overlap(each.recent, leader.recent) >= _SAME_SAMPLES:
        return True
    hardly_any_lack = _FEW_LACK * sum(rest.recent.sizes) < leader.recent.bit_count()
    if hardly_any_lack and each.feature.key in _LENGTHS and leader.feature.key not in _LENGTHS:
        return False
    return not _still_grows(each, rest, n_features)


def _leader(left: Sequence[_Candidate]) -> _Candidate:
    """The most significant candidate, or where that is a number, a new text of many of its samples: it says more."""
    first = max(left, key=_rank)
    if _order(first.feature.key) < _ORDER.index("number"):
        return first
    texts = [
        each
        for each in left
        if _order(each.feature.key) < _ORDER.index("equal")
        and not each.feature.falls
        and each.z > _TEXT_Z * first.z
        and each.early.bit_count() * 4 < each.recent.bit_count()
        and (each.recent & first.recent).bit_count() > 0.9 * each.recent.bit_count()
    ]
    return max(texts, key=_rank, default=first)


def _still_grows(candidate: _Candidate, rest: StratifiedComparison, n_features: int) -> bool:
    """Whether a feature grew among the samples that lack the first ones of all groups so far."""
    if not rest.strata or rest.rough_growth(candidate.early, candidate.recent) < MIN_GROWTH / 2:
        return False
    return _is_found(_test(candidate.feature, candidate.early, candidate.recent, rest), n_features)


def _rank(candidate: _Candidate) -> tuple[float, bool, int, str]:
    """Significance, to a quarter; then features that are there before those that are missing, and specific ones."""
    return (
        round(4.0 * candidate.z),
        not candidate.feature.falls,
        -_order(candidate.feature.key),
        candidate.feature.key,
    )


def _order(key: str) -> int:
    kind, colon, _ = key.partition(":")
    return _ORDER.index(kind if colon else "pair" if " " in key else "word")


def _overlap(first: int, second: int) -> float:
    return (first & second).bit_count() / max(1, (first | second).bit_count())


def _finding(
    group: Sequence[_Candidate],
    before: EarlyFeatures,
    recent: Sequence[ObservedSample],
    comparison: StratifiedComparison,
    totals: Sequence[Sequence[float]],
    n_features: int,
    masks: dict[str, int],
) -> Finding:
    leader, z = group[0], group[0].z
    edits = find_edits([each.feature for each in group], leader.recent, before, recent, masks)
    named = _named(edits[0], leader, before.samples, recent, comparison) if edits else None
    leader = named or leader
    counts = comparison.early.counts(leader.early), comparison.recent.counts(leader.recent)
    early_share = comparison.mean_early(counts[0])
    return Finding(
        tuple(each.feature for each in group),
        early_share,
        early_share + leader.growth.mean,
        leader.growth,
        corrected_z(z, _n_tests(group[0].feature, n_features)),
        _pays([sample.score for sample in before.samples], [sample.score for sample in recent], leader, before, recent),
        _pays([sample.audit for sample in before.samples], [sample.audit for sample in recent], leader, before, recent),
        sum(sample.audit is not None for sample in recent),
        comparison.covariance((counts[0], totals[0]), (counts[1], totals[1])),
        _examples(before.samples, ~leader.early),
        _examples(recent, leader.recent),
        edits[0] if edits else None,
        before.bounds(leader.feature.key),
        edits[1:],
        edits[0] if named else None,
        leader.recent,
    )


def _named(
    edit: Edit,
    leader: _Candidate,
    early: Sequence[ObservedSample],
    recent: Sequence[ObservedSample],
    comparison: StratifiedComparison,
) -> _Candidate | None:
    """The samples with what an edit puts in, where these are mostly those with the feature; else None."""
    events = samples_with(edit, early), samples_with(edit, recent)
    if (events[1] & leader.recent).bit_count() < _MIN_NAMED * leader.recent.bit_count():
        return None
    if events[0].bit_count() - leader.early.bit_count() > _MAX_MORE * len(early):
        return None
    growth = comparison.growth(*events)
    return _Candidate(leader.feature, *events, growth, leader.z) if growth.mean > MIN_GROWTH / 2 else None


def _pays(
    early_scores: Sequence[float | None],
    scores: Sequence[float | None],
    candidate: _Candidate,
    before: EarlyFeatures,
    recent: Sequence[ObservedSample],
) -> Effect | None:
    """Score of samples with a feature less that of samples without it, in standard deviations of early scores.

    Of recent samples; of early and recent ones where too few recent ones lack the feature, which counts all other change
    between the two as its pay. None where too few samples were scored.
    """
    known = [score for score in early_scores if score is not None]
    if len(known) < MIN_PROMPTS:
        known = [score for score in scores if score is not None]
    std = pstdev(known) if known else 0.0
    first = _rows(early_scores, before.samples, candidate.early)
    later = _rows(scores, recent, candidate.recent)
    return _difference(later, std) or _difference(first + later, std)


def _is_known(finding: Finding, before: Sequence[Finding]) -> bool:
    """Whether an earlier finding has the same edit: another sign of the same change."""
    return finding.edit is not None and any(each.edit == finding.edit for each in before)


def _rows(
    scores: Sequence[float | None], samples: Sequence[ObservedSample], event: int
) -> list[tuple[float, int, int]]:
    """Score, prompt and whether the sample has the feature, of the samples that were scored."""
    return [
        (score, sample.prompt_key, event >> index & 1)
        for index, (score, sample) in enumerate(zip(scores, samples, strict=True))
        if score is not None
    ]


def _difference(rows: Sequence[tuple[float, int, int]], std: float) -> Effect | None:
    event = sum(has << place for place, (_, _, has) in enumerate(rows))
    return paid([score for score, _, _ in rows], [key for _, key, _ in rows], event, std)


def _examples(samples: Sequence[ObservedSample], event: int) -> tuple[ObservedSample, ...]:
    """Samples that belong to the event: of different prompts, spread over time."""
    found = {sample.prompt_key: sample for index, sample in enumerate(samples) if event >> index & 1}
    chosen = list(found.values())
    step = max(1, len(chosen) // _N_EXAMPLES)
    return tuple(chosen[::step][:_N_EXAMPLES])
