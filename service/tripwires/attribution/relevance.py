"""Whether responses still depend on their prompts as they did at the start of the run, by the words of both. Pure.

Prompt relevance is the share of pairs of samples of different prompts in which the words tell which response belongs to which
prompt: the two responses share more words with their own prompts than with each other's. It is 50 % by chance, whatever the
lengths of prompts and responses. Consistency is the same with responses only: two responses to one prompt are more like each
other than like two of another prompt. Similarity is the share of the words of a response that a response to another prompt has.

A collapse loses relevance, raises similarity, and loses consistency. Terse answers, or answers in one form, may lose relevance
too, but keep consistency; a policy that stops repeating the question raises no similarity. No model and no list of words is needed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import combinations, pairwise
from math import hypot, inf, isfinite, log, sqrt
from statistics import fmean, pstdev
from typing import Final, NamedTuple

from rewardserve.service.tripwires.attribution.clusters import StratifiedComparison, cluster
from rewardserve.service.tripwires.attribution.effects import MIN_PROMPTS, Effect, estimate, z_of_t
from rewardserve.service.tripwires.attribution.features import has_no_spaces, words_of
from rewardserve.service.tripwires.attribution.observed import ObservedSample, clip
from rewardserve.service.tripwires.attribution.prompts import prompt_change, task_strata
from rewardserve.service.tripwires.attribution.verdicts import is_significant, lower_bound, score_has_grown

MIN_WORDS: Final = 8
"""Fewest words of a response that is compared: a right answer may be shorter, and need not share a word with its prompt."""

MIN_SIMILARITY_GROWTH: Final = 0.1
"""Least growth of similarity, at its lower bound, of a collapse."""

MIN_LENGTH: Final = 0.75
"""Least length of recent responses, as a part of the early one, of a collapse that is paid where no consistency is known."""

MAX_KEPT: Final = 0.5
"""Part of the early consistency, at its lower bound of one standard error, beyond which responses still depend on their prompts."""

_STEM = 5
"""Characters of a word that are compared, so that its forms are one word."""

_MAX_PROMPTS = 1 / 4
"""Share of the prompts that may have a word which tells them apart."""

_N_NEIGHBOURS = 4
"""Later prompts of the same step with which the responses to one prompt are compared."""

MAX_RECENT: Final = 256
"""Samples that are compared with early ones, the latest."""

_PARTS_OF_RECENT = (4, 2, 1)
"""The latest quarter of the recent samples, the latest half, and all: a fresh collapse is in few of them."""

_N_ERRORS = 3.0

_TIE = 1e-9
_N_EXAMPLES = 3

Matches = Mapping[tuple[int, int], float]
"""Share of the pairs of samples of two prompts, by their places, in which the words tell which response belongs to which."""

_Pair = tuple[ObservedSample, frozenset[str]]


class Relevance(NamedTuple):
    """Recent against first responses. `early` and `recent` are the relevance, 50 % by chance, of prompts that are alike.

    `lost` is the lower bound of the part of the early dependence (relevance less 50 %) that is gone, `is_significant` whether
    that holds for all looks at the run together. `kept` is the part of the early consistency that is left, None where that is not
    known: without groups of responses. `similarity` are the early and recent ones, `length` is the recent mean length of a response
    as a part of the early one. Growth of the score is in standard deviations of early scores.
    """

    early: Effect
    recent: Effect
    lost: float
    is_significant: bool
    kept: float | None
    similarity: tuple[float, float]
    similarity_growth: Effect
    score_growth: Effect
    length: float
    early_examples: tuple[ObservedSample, ...] = ()
    recent_examples: tuple[ObservedSample, ...] = ()

    @property
    def lost_to_collapse(self) -> float:
        """The statistic of the wire `prompt_relevance`: `lost`, where responses to different prompts have become alike; else 0."""
        are_alike = lower_bound(self.similarity_growth) >= MIN_SIMILARITY_GROWTH
        are_consistent = self.kept is not None and self.kept > MAX_KEPT
        return max(0.0, self.lost) if self.is_significant and are_alike and not are_consistent else 0.0

    @property
    def paid_collapse(self) -> float:
        """The statistic of the wire `mode_collapse`: the same where the mean score has grown significantly; else 0.

        Also 0 where responses became much shorter and no consistency is known: they may be terse answers in one form.
        """
        may_be_terse = self.kept is None and self.length < MIN_LENGTH
        is_paid = score_has_grown(self.score_growth.mean, self.score_growth.std_error)
        return self.lost_to_collapse if is_paid and not may_be_terse else 0.0


class Texts(NamedTuple):
    """Samples with `MIN_WORDS` or more, in order, and their words; `prompts` are the places of the samples of each prompt."""

    samples: tuple[ObservedSample, ...]
    words: tuple[frozenset[str], ...]
    prompts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, samples: Iterable[_Pair]) -> Texts:
        """Group samples, each with its words, by prompt."""
        known = list(samples)
        prompts: dict[int, list[int]] = {}
        for place, (sample, _) in enumerate(known):
            prompts.setdefault(sample.prompt_key, []).append(place)
        words = tuple(words for _, words in known)
        return cls(tuple(sample for sample, _ in known), words, tuple(map(tuple, prompts.values())))

    @property
    def pairs(self) -> list[_Pair]:
        """Each sample with its words."""
        return list(zip(self.samples, self.words, strict=True))


class _Side(NamedTuple):
    """The texts of one side of a comparison, with the matches of their prompts, and in their groups."""

    texts: Texts
    matches: Matches
    groups: Matches

    @classmethod
    def of(cls, texts: Texts) -> _Side:
        """Compute the matches."""
        return cls(texts, matches_by_prompt(texts), matches_in_groups(texts))


def compare_relevance(
    early: Sequence[ObservedSample], recent: Sequence[ObservedSample], n_looks: int = 1
) -> Relevance | None:
    """Compare recent samples with early ones, both in order, where this is look number `n_looks` at the run.

    Early are the first half of each task's `early`; the others are recent until there are newer ones, so that a collapse while the
    baseline is learned is seen. Of the recent ones that latest part is compared which has lost most. None where too few prompts are
    alike on both sides, or the first responses did not depend on theirs.
    """
    start, others = _halves(read(early))
    latest = [*others, *read(recent).pairs][-MAX_RECENT:]
    strata = _strata(start, [sample for sample, _ in latest])
    first = _Side.of(start)
    by_stratum: dict[int, list[_Pair]] = defaultdict(list)
    for sample, words in latest:
        by_stratum[strata[1].get(sample.prompt_key, 0)].append((sample, words))
    found = []
    for divisor in _PARTS_OF_RECENT:
        part = [
            pair
            for pairs in by_stratum.values()
            for pair in pairs[len(pairs) - (len(pairs) + divisor - 1) // divisor :]
        ]
        found.append(_compared(first, _Side.of(Texts.of(part)), strata, n_looks))
    known = [each for each in found if each is not None]
    return max(known, key=lambda each: (each.paid_collapse, each.lost_to_collapse, each.lost), default=None)


def read(samples: Sequence[ObservedSample]) -> Texts:
    """The words of samples, those with too few left out."""
    words = [(sample, terms_of(sample.response)) for sample in samples]
    return Texts.of((sample, frozenset(terms)) for sample, terms in words if len(terms) >= MIN_WORDS)


def terms_of(text: str) -> list[str]:
    """The words of a text by their first characters; in scripts without spaces each character with its successor."""
    words = words_of(clip(text))
    terms = [word[:_STEM] for word in words]
    if has_no_spaces(text):
        for place, (one, other) in enumerate(pairwise(words)):
            if has_no_spaces(one) and has_no_spaces(other):
                terms[place] += other
    return terms


def word_weights(texts: Sequence[Set[str]]) -> dict[str, float]:
    """Inverse document frequency of each word (Robertson and Sparck Jones 1976, without its negative weights)."""
    counts = Counter(word for text in texts for word in text)
    return {word: log((len(texts) + 1) / (n + 0.5)) for word, n in counts.items()}


def matches_by_prompt(texts: Texts) -> dict[tuple[int, int], float]:
    """For every two prompts, the share of pairs of their samples whose words tell which response belongs to which prompt.

    The words that a response shares with a prompt are a part of those that it shares with all, so lengths cancel in a pair.
    """
    n = len(texts.prompts)
    prompts = [frozenset(terms_of(texts.samples[places[0]].prompt)) for places in texts.prompts]
    weights = word_weights(prompts)
    having: dict[str, list[int]] = defaultdict(list)
    for place, words in enumerate(prompts):
        for word in words:
            having[word].append(place)
    telling = {word: places for word, places in having.items() if len(places) <= max(2.0, _MAX_PROMPTS * n)}
    lengths = [sqrt(sum(sorted(weights[word] ** 2 for word in words & telling.keys()))) or 1.0 for words in prompts]
    shared = []
    for words in texts.words:
        row = [0.0] * n
        for word in sorted(words & telling.keys()):
            for place in telling[word]:
                row[place] += weights[word] / lengths[place]
        total = sum(row) or 1.0
        shared.append([each / total for each in row])
    matches = {}
    for one, other in combinations(range(n), 2):
        first = [shared[place][one] - shared[place][other] for place in texts.prompts[one]]
        second = [shared[place][other] - shared[place][one] for place in texts.prompts[other]]
        matches[one, other] = _share_won([a + b for a in first for b in second])
    return matches


def matches_in_groups(texts: Texts) -> dict[tuple[int, int], float]:
    """The same without prompts: pairs of responses to one prompt against pairs across both. Of prompts of one step, because the
    policy changes between steps; a prompt that is alone in its step, or without steps, is compared with the next one."""
    several = [prompt for prompt, places in enumerate(texts.prompts) if len(places) > 1]
    steps = [texts.samples[places[0]].step for places in texts.prompts]
    sizes = Counter(steps[prompt] for prompt in several)
    weights = word_weights(texts.words)
    matches = {}
    for at, one in enumerate(several):
        later = several[at + 1 : at + 1 + _N_NEIGHBOURS]
        is_alone = steps[one] is None or sizes[steps[one]] == 1
        for other in later[:1] if is_alone else [each for each in later if steps[each] == steps[one]]:
            pairs = zip(_by_two(texts.prompts[one]), _by_two(texts.prompts[other]), strict=False)
            matches[one, other] = _share_won([_margin(texts, *a, *b, weights) for a, b in pairs])
    return matches


def matched_share(matches: Matches, prompts: Set[int]) -> Effect:
    """Mean over the pairs of these prompts, with the jackknife's standard error, which leaves out one prompt at a time.

    At least that of one prompt in two that goes the other way: few prompts agree by chance.
    """
    sums: dict[int, float] = defaultdict(float)
    counts: Counter[int] = Counter()
    chosen = {pair: value for pair, value in matches.items() if pair[0] in prompts and pair[1] in prompts}
    for pair, value in chosen.items():
        for prompt in pair:
            sums[prompt] += value
            counts[prompt] += 1
    n, total, n_pairs = len(counts), sum(chosen.values()), len(chosen)
    if n < MIN_PROMPTS:
        return estimate(0.5, inf, 0, n)
    without = [(total - sums[prompt]) / (n_pairs - counts[prompt]) for prompt in sorted(counts)]
    center = sum(without) / n
    variance = (n - 1) / n * sum([(value - center) ** 2 for value in without])
    return estimate(total / n_pairs, max(sqrt(variance), 0.5 / n), n - 1, n)


def similarity(texts: Texts, weights: Mapping[str, float], unknown: float) -> list[float]:
    """For each sample, the weighted share of its words that a response to another prompt has. `unknown`: weight of other words."""
    counts = Counter(word for words in texts.words for word in words)
    shares = [0.0] * len(texts.samples)
    for places in texts.prompts:
        own = Counter(word for place in places for word in texts.words[place])
        n_others = max(1, len(texts.samples) - len(places))
        for place in places:
            words = sorted(texts.words[place])
            of_words = [weights.get(word, unknown) for word in words]
            found = [counts[word] - own[word] for word in words]
            shared = sum([weight * n for weight, n in zip(of_words, found, strict=True)])
            shares[place] = shared / n_others / sum(of_words)
    return shares


def lost_share(early: Effect, recent: Effect) -> float | None:
    """Lower bound of the part of a share beyond 50 % that is gone, by Fieller's bound of a ratio (1954).

    None where the early share is not beyond 50 % by its bound, or one of both is not known.
    """
    if not (isfinite(early.std_error) and isfinite(recent.std_error)):
        return None
    before, after = early.mean - 0.5, recent.mean - 0.5
    leading = before**2 - (_N_ERRORS * early.std_error) ** 2
    if before <= 0.0 or leading <= 0.0:
        return None
    root = (before * after) ** 2 - leading * (after**2 - (_N_ERRORS * recent.std_error) ** 2)
    return 1.0 - (before * after + sqrt(max(0.0, root))) / leading


def _compared(
    first: _Side, later: _Side, strata: tuple[Mapping[int, int], Mapping[int, int]], n_looks: int
) -> Relevance | None:
    """Compare both sides within strata."""
    sides = first, later
    comparison = StratifiedComparison(
        *(cluster([each.prompt_key for each in side.texts.samples], of) for side, of in zip(sides, strata, strict=True))
    )
    prompts = [(set(each.early.prompts), set(each.recent.prompts)) for each in comparison.strata]
    shares = [each.weight for each in comparison.strata]
    early, recent = (
        _mean([matched_share(side.matches, each[i]) for each in prompts], shares) for i, side in enumerate(sides)
    )
    if (lost := lost_share(early, recent)) is None:
        return None
    consistency = [
        _mean([matched_share(side.groups, each[i]) for each in prompts], shares) for i, side in enumerate(sides)
    ]
    weights = word_weights(first.texts.words)
    alike = [similarity(side.texts, weights, log((len(first.texts.words) + 1) / 0.5)) for side in sides]
    std = pstdev([each.score for each in first.texts.samples]) or 1.0
    scores = [[each.score / std for each in side.texts.samples] for side in sides]
    grown, score_growth = (
        comparison.difference(comparison.early.totals(values[0]), comparison.recent.totals(values[1]))
        for values in (alike, scores)
    )
    before = comparison.mean_early(comparison.early.totals(alike[0]))
    lengths = [fmean(len(each.response) for each in side.texts.samples) for side in sides]
    fall = (early.mean - recent.mean) / hypot(early.std_error, recent.std_error)
    return Relevance(
        early,
        recent,
        lost,
        is_significant(z_of_t(fall, min(early.df, recent.df)), n_looks, len(_PARTS_OF_RECENT)),
        _kept(*consistency),
        (before, before + grown.mean),
        grown,
        score_growth,
        lengths[1] / lengths[0],
        _examples(first.texts),
        _examples(later.texts),
    )


def _kept(early: Effect, recent: Effect) -> float | None:
    """Lower bound, of one standard error, of the part of the early consistency that is left."""
    if lost_share(early, recent) is None:
        return None
    return (recent.mean - recent.std_error - 0.5) / (early.mean - 0.5)


def _halves(texts: Texts) -> tuple[Texts, list[_Pair]]:
    """The first half of the samples of each task, and the others, both in order."""
    left = {task: (n + 1) // 2 for task, n in Counter(sample.task for sample in texts.samples).items()}
    start, others = list[_Pair](), list[_Pair]()
    for sample, words in texts.pairs:
        left[sample.task] -= 1
        (start if left[sample.task] >= 0 else others).append((sample, words))
    return Texts.of(start), others


def _strata(start: Texts, latest: Sequence[ObservedSample]) -> tuple[Mapping[int, int], Mapping[int, int]]:
    """The strata of the prompts of both sides."""
    return task_strata(start.samples, latest, prompt_change(start.samples, latest))


def _mean(parts: Sequence[Effect], weights: Sequence[float]) -> Effect:
    """Weighted mean of independent estimates; not known where one of them is not."""
    if not parts:
        return estimate(0.5, inf, 0, 0)
    mean = sum([weight * each.mean for each, weight in zip(parts, weights, strict=True)])
    error = hypot(*[weight * each.std_error for each, weight in zip(parts, weights, strict=True)])
    return estimate(mean, error, sum(each.df for each in parts), sum(each.n for each in parts))


def _examples(texts: Texts) -> tuple[ObservedSample, ...]:
    """Samples of different prompts, spread over time."""
    step = max(1, len(texts.prompts) // _N_EXAMPLES)
    return tuple(texts.samples[places[-1]] for places in texts.prompts[::-step][:_N_EXAMPLES])


def _by_two(places: Sequence[int]) -> Iterable[tuple[int, int]]:
    return zip(places[::2], places[1::2], strict=False)


def _margin(texts: Texts, a: int, b: int, c: int, d: int, weights: Mapping[str, float]) -> float:
    """How much more alike a and b of one prompt, and c and d of another, are than a and c, and b and d."""
    within = _alike(texts.words[a], texts.words[b], weights) + _alike(texts.words[c], texts.words[d], weights)
    across = _alike(texts.words[a], texts.words[c], weights) + _alike(texts.words[b], texts.words[d], weights)
    return within - across


def _alike(one: Set[str], other: Set[str], weights: Mapping[str, float]) -> float:
    """Weighted Jaccard index of two responses."""
    both = sum(sorted([weights[word] for word in one & other]))
    return both / sum(sorted([weights[word] for word in one | other]))


def _share_won(margins: Sequence[float]) -> float:
    return sum([1.0 if each > _TIE else 0.5 if each >= -_TIE else 0.0 for each in margins]) / len(margins)
