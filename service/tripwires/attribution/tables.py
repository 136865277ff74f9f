"""Features of all early, or of all recent, responses, as the sets of samples that have each. Pure.

`EarlyFeatures` also keeps what makes numbers of a response comparable: their early quantiles and the early vocabulary. It is
computed once for a run and used with many windows of recent samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from copy import copy
from math import inf, nextafter
from typing import NamedTuple

from rewardserve.service.tripwires.attribution.features import NUMBERS, ResponseFeatures, features_of
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.attribution.prompts import EarlyPrompts

LEVELS = {
    "below all": 0.0,
    "lowest tenth": 0.1,
    "lowest quarter": 0.25,
    "highest quarter": 0.75,
    "highest tenth": 0.9,
    "above all": 1.0,
}
"""Bins of a number by its quantiles over early responses."""

_N_RARE = 2
_N_COMMON = 50
"""Words that are the most common ones of the early responses."""


class Vocabulary(NamedTuple):
    """Early words by the number of prompts whose responses have them.

    `seen` with two or more, `once` with one prompt, which is given, `common` with most.
    """

    seen: frozenset[str]
    once: dict[str, int]
    common: frozenset[str]

    def numbers(self, row: ResponseFeatures, prompt_key: int) -> tuple[float, float, float, float]:
        """Shares of new words among the distinct, the last and the first words of a response, and of common early words.

        New is a word that neither the prompt nor an early response to another prompt has: other responses to the same prompt
        have its words, and are known for some samples only.
        """
        new = {word for word in row.unprompted - self.seen if self.once.get(word, prompt_key) == prompt_key}
        n = max(1, len(row.words))
        edges = [sum(word in new for word in edge) / max(1, len(edge)) for edge in (row.last, row.first)]
        return len(new) / n, edges[0], edges[1], len(row.words & self.common) / n


def vocabulary(rows: Sequence[ResponseFeatures], prompt_keys: Sequence[int]) -> Vocabulary:
    """The words of early responses."""
    once: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for key, word in {(key, word) for key, row in zip(prompt_keys, rows, strict=True) for word in row.words}:
        counts[word] += 1
        once[word] = key
    common = sorted(counts, key=lambda word: (-counts[word], word))[:_N_COMMON]
    seen = frozenset(word for word, n in counts.items() if n > 1)
    return Vocabulary(seen, {word: key for word, key in once.items() if word not in seen}, frozenset(common))


class EarlyFeatures:
    """Features of the early responses of a run, and of their prompts. About 4 MB for 256 responses of 1 kB. `masks` leave out words
    that one response has; these are `single`.
    """

    def __init__(self, samples: Sequence[ObservedSample]) -> None:
        """Compute the features of `samples`, and the quantiles and the vocabulary for later ones."""
        self.samples = tuple(samples)
        self.prompts = EarlyPrompts(samples)
        rows = features_of(samples)
        self.vocabulary = vocabulary(rows, [sample.prompt_key for sample in samples])
        numbers = self._numbers(rows, samples)
        self.quantiles = tuple(tuple(sorted(row[index] for row in numbers)) for index in range(len(NUMBERS)))
        masks = sample_sets(self.samples, rows, numbers, self.quantiles, self.vocabulary.common)
        self.masks = {key: mask for key, mask in masks.items() if mask & (mask - 1) or ":" in key}
        self.single = {key: mask for key, mask in masks.items() if not (mask & (mask - 1) or ":" in key)}

    def with_samples(self, samples: Sequence[ObservedSample]) -> EarlyFeatures:
        """The features of the same texts, of which more may have been audited."""
        again = copy(self)
        again.samples = tuple(samples)
        return again

    def bounds(self, key: str) -> tuple[float, float] | None:
        """The bounds of a bin of a number; None for other features."""
        kind, _, rest = key.partition(":")
        if kind != "number":
            return None
        name = rest.partition(":")[0]
        bins = _bins(name, self.quantiles[NUMBERS.index(name)])
        return next((low, high) for each, low, high in bins if each == key)

    def recent_sets(self, samples: Sequence[ObservedSample]) -> dict[str, int]:
        """The recent samples that have each feature, numbers in bins of the early quantiles.

        Features of one or two samples are left out where no early response has them: they cannot be significant.
        """
        rows = features_of(samples)
        numbers = self._numbers(rows, samples)
        masks = sample_sets(samples, rows, numbers, self.quantiles, self.vocabulary.common)
        return {key: mask for key, mask in masks.items() if mask.bit_count() > _N_RARE or key in self.masks}

    def _numbers(self, rows: Sequence[ResponseFeatures], samples: Sequence[ObservedSample]) -> list[tuple[float, ...]]:
        return [
            row.numbers + self.vocabulary.numbers(row, sample.prompt_key)
            for row, sample in zip(rows, samples, strict=True)
        ]


def sample_sets(
    samples: Sequence[ObservedSample],
    rows: Sequence[ResponseFeatures],
    numbers: Sequence[Sequence[float]],
    quantiles: Sequence[Sequence[float]],
    common: frozenset[str],
) -> dict[str, int]:
    """Each feature with the set of samples that have it, in no order."""
    masks: dict[str, int] = {}
    bins = [list(_bins(name, ordered)) for name, ordered in zip(NUMBERS, quantiles, strict=True)]
    repeated = _given_to_other_prompts(samples, rows)
    for index, (row, values) in enumerate(zip(rows, numbers, strict=True)):
        bit = 1 << index
        for key in row.keys:
            masks[key] = masks.get(key, 0) | bit
        for each, value in zip(bins, values, strict=True):
            for key, low, high in each:
                if low < value <= high:
                    masks[key] = masks.get(key, 0) | bit
        for word in row.words & common:
            masks[f"common word:{word}"] = masks.get(f"common word:{word}", 0) | bit
        if index in repeated:
            masks["equal:"] = masks.get("equal:", 0) | bit
    return masks


def quantile(ordered: Sequence[float], share: float) -> float:
    """Quantile of sorted values, one of them."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _bins(name: str, ordered: Sequence[float]) -> Iterator[tuple[str, float, float]]:
    """Bins with their bounds: (low, high]. One that holds all early values is left out."""
    for level, share in LEVELS.items() if ordered else ():
        bound = quantile(ordered, share)
        low, high = (-inf, bound) if share < 0.5 else (bound, inf)
        if level == "below all":
            high = nextafter(bound, -inf)
        if high < ordered[-1] or low > -inf:
            yield f"number:{name}:{level}", low, high


def _given_to_other_prompts(samples: Sequence[ObservedSample], rows: Sequence[ResponseFeatures]) -> set[int]:
    """Indices of responses that are equal to one to another prompt."""
    first: dict[int, int] = {}
    shared: set[int] = set()
    for sample, row in zip(samples, rows, strict=True):
        if first.setdefault(row.whole, sample.prompt_key) != sample.prompt_key:
            shared.add(row.whole)
    return {index for index, row in enumerate(rows) if row.whole in shared}
