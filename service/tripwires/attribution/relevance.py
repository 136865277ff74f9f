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
from itertools import accumulate, chain, compress, pairwise
from math import fsum, hypot, inf, isfinite, log, sqrt
from operator import add
from statistics import fmean, pstdev
from typing import Final, NamedTuple

from rewardserve.service.tripwires.attribution.clusters import StratifiedComparison, cluster
from rewardserve.service.tripwires.attribution.effects import MIN_PROMPTS, Effect, estimate, z_of_t
from rewardserve.service.tripwires.attribution.features import has_no_spaces, words_of
from rewardserve.service.tripwires.attribution.observed import ObservedSample, clip
from rewardserve.service.tripwires.attribution.prompts import EarlyPrompts, prompt_change, task_strata
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


class _ReadSample(NamedTuple):
    """A sample with the words of its response and of its prompt."""

    sample: ObservedSample
    words: frozenset[str]
    prompt_words: frozenset[str]


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
    """Samples with `MIN_WORDS` or more, in order, and their words; `prompts` are the places of the samples of each prompt, and
    `prompt_words` the words of each.
    """

    samples: tuple[ObservedSample, ...]
    words: tuple[frozenset[str], ...]
    prompts: tuple[tuple[int, ...], ...]
    prompt_words: tuple[frozenset[str], ...]

    @classmethod
    def of(cls, samples: Iterable[_ReadSample]) -> Texts:
        """Group samples by prompt."""
        known = list(samples)
        prompts: dict[int, list[int]] = {}
        for place, each in enumerate(known):
            prompts.setdefault(each.sample.prompt_key, []).append(place)
        return cls(
            tuple(each.sample for each in known),
            tuple(each.words for each in known),
            tuple(map(tuple, prompts.values())),
            tuple(known[places[0]].prompt_words for places in prompts.values()),
        )


class Matches(NamedTuple):
    """Of every two prompts, by their places: the share of the pairs of their samples in which the words tell which response belongs
    to which, and whether they were compared (1, else 0 and a share of 0). Both (n_prompts, n_prompts), symmetric.
    """

    shares: Sequence[Sequence[float]]
    compared: Sequence[Sequence[int]]


class _Side(NamedTuple):
    """The texts of one side of a comparison, with the matches of their prompts, and in their groups."""

    texts: Texts
    matches: Matches
    groups: Matches

    @classmethod
    def of(cls, texts: Texts) -> _Side:
        """Compute the matches."""
        return cls(texts, matches_by_prompt(texts), matches_in_groups(texts))


class EarlyTexts:
    """The first half of each task's early samples of a run, computed once and compared with many windows of recent ones.

    `others` are the second half: they are recent until there are newer ones.
    """

    def __init__(self, samples: Sequence[ObservedSample]) -> None:
        first, self.others = _halves(_read(samples))
        self.side = _Side.of(Texts.of(first))
        self.prompts = EarlyPrompts(self.side.texts.samples)
        self._weights = word_weights(self.side.texts.words)
        self.similarity = self.similarity_of(self.side.texts)

    def similarity_of(self, texts: Texts) -> list[float]:
        """The similarity of these or other texts, with the weights of these."""
        return similarity(texts, self._weights, log((len(self.side.texts.words) + 1) / 0.5))


def compare_relevance(early: EarlyTexts, recent: Sequence[ObservedSample], n_looks: int) -> Relevance | None:
    """Compare recent samples with early ones, both in order, where this is look number `n_looks` at the run.

    Early ones are the first half of each task's; the others are recent until there are newer ones, so that a collapse while the
    baseline is learned is seen. Of the recent ones that latest part is compared which has lost most. None where too few prompts are
    alike on both sides, or the first responses did not depend on theirs.
    """
    latest = [*early.others, *_read(recent)][-MAX_RECENT:]
    samples = [each.sample for each in latest]
    strata = task_strata(early.side.texts.samples, samples, prompt_change(early.prompts, samples))
    by_stratum: dict[int, list[_ReadSample]] = defaultdict(list)
    for each in latest:
        by_stratum[strata[1].get(each.sample.prompt_key, 0)].append(each)
    found = []
    for divisor in _PARTS_OF_RECENT:
        part = [
            each
            for of_stratum in by_stratum.values()
            for each in of_stratum[len(of_stratum) - (len(of_stratum) + divisor - 1) // divisor :]
        ]
        found.append(_compared(early, _Side.of(Texts.of(part)), strata, n_looks))
    known = [each for each in found if each is not None]
    return max(known, key=lambda each: (each.paid_collapse, each.lost_to_collapse, each.lost), default=None)


def read(samples: Sequence[ObservedSample]) -> Texts:
    """The words of samples, those with too few left out."""
    return Texts.of(_read(samples))


def _read(samples: Sequence[ObservedSample]) -> list[_ReadSample]:
    prompts = {sample.prompt for sample in samples}
    prompt_words = {prompt: frozenset(terms_of(prompt)) for prompt in prompts}
    responses = [(sample, terms_of(sample.response)) for sample in samples]
    return [
        _ReadSample(sample, frozenset(terms), prompt_words[sample.prompt])
        for sample, terms in responses
        if len(terms) >= MIN_WORDS
    ]


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
    counts = Counter(chain.from_iterable(texts))
    weights = {n: log((len(texts) + 1) / (n + 0.5)) for n in set(counts.values())}
    return {word: weights[n] for word, n in counts.items()}


def matches_by_prompt(texts: Texts) -> Matches:
    """For every two prompts, the share of pairs of their samples whose words tell which response belongs to which prompt.

    The words that a response shares with a prompt are a part of those that it shares with all, so lengths cancel in a pair.
    """
    n = len(texts.prompts)
    shared = _shared_with_prompts(texts)
    order = [place for places in texts.prompts for place in places]
    prompt_of = [prompt for prompt, places in enumerate(texts.prompts) for _ in places]
    ends = list(accumulate(map(len, texts.prompts), initial=0))
    # By sample, how much more it shares with its own prompt than with each other one.
    leads = [
        [shared[place][prompt] - each for each in shared[place]] for place, prompt in zip(order, prompt_of, strict=True)
    ]
    by_prompt = list(zip(*leads, strict=True))
    shares = [[0.0] * n for _ in range(n)]
    for one, (start, end) in enumerate(pairwise(ends)):
        others = by_prompt[one][end:]
        of_samples = [
            [(each > _TIE) + (each >= -_TIE) for each in map(add, map(lead.__getitem__, prompt_of[end:]), others)]
            for lead in leads[start:end]
        ]
        won = of_samples[0] if end == start + 1 else [sum(each) for each in zip(*of_samples, strict=True)]
        for other in range(one + 1, n):
            size = ends[other + 1] - ends[other]
            twice = won[ends[other] - end] if size == 1 else sum(won[ends[other] - end : ends[other + 1] - end])
            shares[one][other] = shares[other][one] = twice / 2 / (size * (end - start))
    return Matches(shares, [[1] * one + [0] + [1] * (n - one - 1) for one in range(n)])


def _shared_with_prompts(texts: Texts) -> list[list[float]]:
    """For every sample and every prompt, the part of the words that the response shares with all prompts which is of this one."""
    n = len(texts.prompts)
    prompts = texts.prompt_words
    weights = word_weights(prompts)
    having: dict[str, list[int]] = defaultdict(list)
    for place, words in enumerate(prompts):
        for word in words:
            having[word].append(place)
    telling = {word: places for word, places in having.items() if len(places) <= max(2.0, _MAX_PROMPTS * n)}
    lengths = [sqrt(fsum([weights[word] ** 2 for word in words & telling.keys()])) or 1.0 for words in prompts]
    used = telling.keys() & set(chain.from_iterable(texts.words))
    parts = {word: [(place, weights[word] / lengths[place]) for place in telling[word]] for word in used}
    shared = []
    for words in texts.words:
        row = [0.0] * n
        for word in sorted(words & used):
            for place, part in parts[word]:
                row[place] += part
        total = sum(row) or 1.0
        shared.append([each / total for each in row])
    return shared


def matches_in_groups(texts: Texts) -> Matches:
    """The same without prompts: pairs of responses to one prompt against pairs across both. Of prompts of one step, because the
    policy changes between steps; a prompt that is alone in its step, or without steps, is compared with the next one."""
    n = len(texts.prompts)
    shares, compared = [[0.0] * n for _ in range(n)], [[0] * n for _ in range(n)]
    several = [prompt for prompt, places in enumerate(texts.prompts) if len(places) > 1]
    if len(several) < 2:
        return Matches(shares, compared)
    steps = [texts.samples[places[0]].step for places in texts.prompts]
    sizes = Counter(steps[prompt] for prompt in several)
    alike = _Alike(texts.words)
    twos = {prompt: list(_by_two(texts.prompts[prompt])) for prompt in several}
    within = {prompt: [alike(*two) for two in of_prompt] for prompt, of_prompt in twos.items()}
    for at, one in enumerate(several):
        later = several[at + 1 : at + 1 + _N_NEIGHBOURS]
        is_alone = steps[one] is None or sizes[steps[one]] == 1
        for other in later[:1] if is_alone else [each for each in later if steps[each] == steps[one]]:
            margins = [
                mine + theirs - (alike(a, c) + alike(b, d))
                for (a, b), (c, d), mine, theirs in zip(
                    twos[one], twos[other], within[one], within[other], strict=False
                )
            ]
            shares[one][other] = shares[other][one] = _share_won(margins)
            compared[one][other] = compared[other][one] = 1
    return Matches(shares, compared)


def matched_share(matches: Matches, prompts: Set[int]) -> Effect:
    """Mean over the pairs of these prompts, with the jackknife's standard error, which leaves out one prompt at a time.

    At least that of one prompt in two that goes the other way: few prompts agree by chance.
    """
    chosen = [place in prompts for place in range(len(matches.shares))]
    sums, counts = ([sum(compress(row, chosen)) for row in compress(rows, chosen)] for rows in matches)
    total, n_pairs, n = sum(sums) / 2, sum(counts) // 2, sum(map(bool, counts))
    if n < MIN_PROMPTS:
        return estimate(0.5, inf, 0, n)
    without = [(total - each) / (n_pairs - count) for each, count in zip(sums, counts, strict=True) if count]
    center = sum(without) / n
    variance = (n - 1) / n * sum([(value - center) ** 2 for value in without])
    return estimate(total / n_pairs, max(sqrt(variance), 0.5 / n), n - 1, n)


def similarity(texts: Texts, weights: Mapping[str, float], unknown: float) -> list[float]:
    """For each sample, the weighted share of its words that a response to another prompt has. `unknown`: weight of other words."""
    counts = Counter(chain.from_iterable(texts.words))
    weight_of = {word: weights.get(word, unknown) for word in counts}
    shares = [0.0] * len(texts.samples)
    for places in texts.prompts:
        own = Counter(chain.from_iterable([texts.words[place] for place in places]))
        n_others = max(1, len(texts.samples) - len(places))
        for place in places:
            words = texts.words[place]
            shared = fsum([weight_of[word] * (counts[word] - own[word]) for word in words])
            shares[place] = shared / n_others / fsum(map(weight_of.__getitem__, words))
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
    start: EarlyTexts, later: _Side, strata: tuple[Mapping[int, int], Mapping[int, int]], n_looks: int
) -> Relevance | None:
    """Compare both sides within strata."""
    first = start.side
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
    alike = start.similarity, start.similarity_of(later.texts)
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


def _halves(samples: Sequence[_ReadSample]) -> tuple[list[_ReadSample], list[_ReadSample]]:
    """The first half of the samples of each task, and the others, both in order."""
    left = {task: (n + 1) // 2 for task, n in Counter(each.sample.task for each in samples).items()}
    first, others = list[_ReadSample](), list[_ReadSample]()
    for each in samples:
        left[each.sample.task] -= 1
        (first if left[each.sample.task] >= 0 else others).append(each)
    return first, others


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


class _Alike:
    """Weighted Jaccard index of two of some texts, by their places."""

    def __init__(self, texts: Sequence[Set[str]]) -> None:
        self._texts = texts
        self._weights = word_weights(texts)
        self._totals = [fsum(map(self._weights.__getitem__, words)) for words in texts]

    def __call__(self, one: int, other: int) -> float:
        both = fsum(map(self._weights.__getitem__, self._texts[one] & self._texts[other]))
        return both / (self._totals[one] + self._totals[other] - both)


def _share_won(margins: Sequence[float]) -> float:
    return sum([1.0 if each > _TIE else 0.5 if each >= -_TIE else 0.0 for each in margins]) / len(margins)
