"""How well recent responses can be told from early ones by all their features together, and which are most unlike. Pure.

An exploit in ever new wording moves every single feature a little, and none enough to be found by `growth`. Together they tell: a
naive Bayes classifier adds up the log ratios of the shares of recent and of early responses that have each feature, those of
shares that hardly differ left out. It is cross-fitted: the novelty of a response is that of a classifier that has seen no response
to its prompt, on either side. Where prompts changed, early shares are weighted as the recent prompts are, and responses are
compared within their stratum. It knows no score.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import log, sqrt
from typing import Final, NamedTuple

from rewardserve.service.tripwires.attribution.clusters import StratifiedComparison
from rewardserve.service.tripwires.attribution.effects import z_of_t
from rewardserve.service.tripwires.attribution.features import words_of
from rewardserve.service.tripwires.attribution.findings import Novelty
from rewardserve.service.tripwires.attribution.observed import ObservedSample, clip
from rewardserve.service.tripwires.hashing import spread

_N_FOLDS: Final = 5
_MIN_SAMPLES: Final = 4
"""Fewest samples of both sides that have a feature that counts."""

_MIN_Z: Final = 1.0
"""Difference of two shares in standard errors from which a feature counts; its weight is shrunk by the square of that."""

_HIGH, _LOW = 0.9, 0.5
"""Quantiles of the novelty of early responses above which, and below which, that of a recent one is high or low."""

_NUMBERS = (1, 2, 4)
"""Least numbers of words of one form in a response that are features."""

_ENDINGS = ((2, 4), (3, 5))
"""Letters of an ending, and those that its word has more than."""

_SHAPES = tuple(
    (re.compile(each), sign) for each, sign in (("[^\x00-\x7f]+", "~"), ("[A-Z]+", "A"), ("[a-z]+", "a"), (r"\d+", "0"))
)
"""The signs for characters outside ASCII, letters and digits in the shape of a word."""

_N_NAMED: Final = 5
_N_EXAMPLES: Final = 3


class _Side(NamedTuple):
    """Early and recent samples of a stratum."""

    early: int
    recent: int


def find_novelty(
    early: Sequence[ObservedSample],
    recent: Sequence[ObservedSample],
    masks: tuple[Mapping[str, int], Mapping[str, int]],
    comparison: StratifiedComparison,
) -> Novelty | None:
    """The novelty of recent samples; None where no stratum can be compared. Costs about .07 s of CPU for 256 samples of 1 kB.

    `masks` are the sets of early, and of recent, samples that have each feature. Features of one early sample belong to it too:
    without them rare words would seem to grow.
    """
    if not comparison.strata:
        return None
    sides = [_Side(each.early.samples, each.recent.samples) for each in comparison.strata]
    known = [{**side, **_forms(samples)} for side, samples in zip(masks, (early, recent), strict=True)]
    values, weights = _cross_fitted(known, sides, (_folds(early), _folds(recent)))
    high = low = early_high = 0
    for side in sides:
        ordered = sorted(values[0][place] for place in _places(side.early))
        upper, lower = ordered[int(_HIGH * len(ordered))], ordered[int(_LOW * len(ordered))]
        high |= sum(1 << place for place in _places(side.recent) if values[1][place] > upper)
        low |= sum(1 << place for place in _places(side.recent) if values[1][place] < lower)
        early_high |= sum(1 << place for place in _places(side.early) if values[0][place] > upper)
    growth = comparison.growth(early_high, high)
    shown = [key for key in weights if key in masks[0] or key in masks[1]]
    shown.sort(key=lambda key: (-weights[key] * (masks[1].get(key, 0) & high).bit_count(), key))
    return Novelty(
        tuple(values[1]),
        high,
        low,
        comparison.mean_early(comparison.early.counts(early_high)),
        growth,
        z_of_t(growth.t, growth.df),
        tuple(shown[:_N_NAMED]),
        _examples(early, _places(~early_high & sum(side.early for side in sides))),
        _examples(recent, sorted(_places(high), key=lambda place: (-values[1][place], place))),
    )


def _cross_fitted(
    masks: Sequence[Mapping[str, int]], sides: Sequence[_Side], folds: tuple[Sequence[int], Sequence[int]]
) -> tuple[tuple[list[float], list[float]], dict[str, float]]:
    """Novelty of all early and all recent samples, and the mean weight of each feature."""
    pairs = [(key, masks[0].get(key, 0), masks[1].get(key, 0)) for key in sorted(masks[0].keys() | masks[1].keys())]
    pairs = [each for each in pairs if each[1].bit_count() + each[2].bit_count() >= _MIN_SAMPLES]
    n = [max(mask.bit_length() for mask in each) for each in folds]
    values, total = ([0.0] * n[0], [0.0] * n[1]), dict[str, float]()
    for early_fold, recent_fold in zip(*folds, strict=True):
        left = [_Side(side.early & ~early_fold, side.recent & ~recent_fold) for side in sides]
        left = [side for side in left if side.early and side.recent]
        for (key, early, recent), weight in _weights(pairs, left):
            _add(values[0], early & early_fold, weight)
            _add(values[1], recent & recent_fold, weight)
            total[key] = total.get(key, 0.0) + weight / _N_FOLDS
    return values, total


def _weights(
    pairs: Sequence[tuple[str, int, int]], sides: Sequence[_Side]
) -> Iterator[tuple[tuple[str, int, int], float]]:
    """Features that count, with their weights; early shares are weighted as the strata of the recent samples are."""
    sizes = [(side.early.bit_count(), side.recent.bit_count()) for side in sides]
    n = sum(size[1] for size in sizes)
    ratios = [size[1] / size[0] for size in sizes]
    spread = n + sum(size[1] * ratio for size, ratio in zip(sizes, ratios, strict=True))
    everyone = sum(side.recent for side in sides)
    for each in pairs if n else ():
        _, early, recent = each
        before = sum([(early & side.early).bit_count() * ratio for side, ratio in zip(sides, ratios, strict=True)])
        after = (recent & everyone).bit_count()
        share = (before + after + 1.0) / (2.0 * n + 2.0)
        z = (after - before) / sqrt(share * (1.0 - share) * spread)
        if abs(z) > _MIN_Z:
            yield each, log((after + 0.5) / (before + 0.5)) * (1.0 - _MIN_Z / z / z)


def _folds(samples: Sequence[ObservedSample]) -> list[int]:
    """The samples of each fold: all responses to a prompt, early and recent, are in one."""
    folds = [0] * _N_FOLDS
    for place, sample in enumerate(samples):
        folds[(spread(sample.prompt_key) * _N_FOLDS) >> 64] |= 1 << place
    return folds


def _forms(samples: Sequence[ObservedSample]) -> dict[str, int]:
    """The samples that have words of one form, however different they are: of one ending, if the prompt has them not, and of one
    shape, with the marks around them.
    """
    masks: dict[str, int] = {}
    prompts: dict[str, frozenset[str]] = {}
    for place, sample in enumerate(samples):
        if sample.prompt not in prompts:
            prompts[sample.prompt] = frozenset(words_of(clip(sample.prompt)))
        text = clip(sample.response)
        words = set(words_of(text)) - prompts[sample.prompt]
        counts = Counter(
            f"ending:{word[-n:]}" for n, longer_than in _ENDINGS for word in words if len(word) > longer_than
        )
        counts.update(word_shapes(text))
        for form, n in counts.items():
            for number in _NUMBERS:
                if n >= number:
                    masks[f"{form}:{number}"] = masks.get(f"{form}:{number}", 0) | 1 << place
    return masks


def word_shapes(text: str) -> Iterator[str]:
    """The shapes of the words that are not of lower-case letters alone, those at the beginning of a sentence apart."""
    for pattern, sign in _SHAPES:
        text = pattern.sub(sign, text)
    is_first = True
    for word in text.split():
        if word != "a":
            yield f"shape:{'^' * is_first}{word}"
        is_first = word[-1] in ".!?:"


def _add(values: list[float], mask: int, weight: float) -> None:
    while mask:
        lowest = mask & -mask
        values[lowest.bit_length() - 1] += weight
        mask ^= lowest


def _places(mask: int) -> list[int]:
    return [place for place in range(mask.bit_length()) if mask >> place & 1]


def _examples(samples: Sequence[ObservedSample], places: Sequence[int]) -> tuple[ObservedSample, ...]:
    """The first samples of different prompts."""
    of_prompts: dict[int, ObservedSample] = {}
    for place in places:
        of_prompts.setdefault(samples[place].prompt_key, samples[place])
    return tuple(of_prompts.values())[:_N_EXAMPLES]
