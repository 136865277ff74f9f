"""Whether the prompts of a run have changed, and which recent prompts have early ones like them. Pure.

Features of responses follow their prompts: with another task they change honestly. Prompts are compared first, by the same
test. Where they changed, each gets a score, the sum of log ratios of the features that changed (naive Bayes), and responses
are compared within strata of that score (Rosenbaum and Rubin 1984, "Reducing Bias in Observational Studies Using
Subclassification on the Propensity Score"). A stratum in which early and recent prompts still have different scores is left
out: its recent prompts have no early ones like them, and are compared with none. Tasks that the client names are strata already.

Numbers, dates and ids are left out: prompts that number themselves do not change. System turns are a part of the prompts.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from math import log
from typing import NamedTuple

from rewardserve.service.tripwires.attribution.clusters import Clusters, StratifiedComparison, cluster
from rewardserve.service.tripwires.attribution.effects import MIN_PROMPTS, corrected_z, z_of_t
from rewardserve.service.tripwires.attribution.features import words_of
from rewardserve.service.tripwires.attribution.observed import ObservedSample, clip

_N_STRATA = 5
_MIN_Z = 3.0
"""Normal quantile from which a feature takes part in the score of prompts that are known to have changed."""

_SIGNIFICANT = 3.3
"""Normal quantile after correction: one in a thousand."""

_BALANCED_Z = 3.0
"""Normal quantile below which the scores of a stratum are alike on both sides."""

_ROUNDING = 1e-9
"""Difference of scores, relative to their range, that is none: the prompts of a stratum may all have one score."""

_MIN_CHANGE = 0.03
"""Change of a share of prompts below which responses cannot follow by `growth.MIN_GROWTH`, unless many features change."""

_N_NAMED = 8

_HEX_ID = re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{4,}+(?:-[0-9A-Fa-f]{4,}+)++")
_DATE_WORDS = frozenset(
    ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "january", "february", "march", "april", "may",
     "june", "july", "august", "september", "october", "november", "december")
)  # fmt: skip
_VOWELS, _LONG = frozenset("aeiouy"), 5
"""Ids whose parts need no digit; words of dates; letters without which an ASCII word is as likely an id, from a length on."""


class PromptChange(NamedTuple):
    """Change of the prompts of a run.

    `features` are those whose share changed most, with the early and the recent share; empty where prompts did not change.
    `early` and `recent` map prompt keys to strata; different negative strata are prompts without counterpart.
    """

    features: tuple[tuple[str, float, float], ...] = ()
    early: Mapping[int, int] = {}
    recent: Mapping[int, int] = {}


class EarlyPrompts:
    """Prompts of the early samples of a run with their features, computed once and compared with many windows of recent ones."""

    def __init__(self, samples: Sequence[ObservedSample]) -> None:
        self.keys = [sample.prompt_key for sample in samples]
        prompts = _words_by_key(samples)
        self._lengths = sorted(_length(prompts[key]) for key in self.keys)
        self.named = self._named(prompts, samples)
        self.clusters = cluster(self.keys)
        self.masks = _sample_sets(self.keys, self.clusters, self.named)

    def named_of(self, samples: Sequence[ObservedSample]) -> dict[int, set[str]]:
        """Features of the prompts of other samples, by key."""
        return self._named(_words_by_key(samples), samples)

    def _named(self, prompts: Mapping[int, Sequence[str]], samples: Sequence[ObservedSample]) -> dict[int, set[str]]:
        named = {key: _features(words, self._lengths) for key, words in prompts.items()}
        _add_system_turns(named, samples)
        return named


def prompt_change(early: EarlyPrompts, recent: Sequence[ObservedSample]) -> PromptChange:
    """Compare the prompts of recent samples with early ones."""
    keys = [early.keys, [sample.prompt_key for sample in recent]]
    n_early, n_recent = map(len, keys)
    clusters = cluster(keys[1])
    whole = StratifiedComparison(early.clusters, clusters)
    if not whole.strata:
        return PromptChange()
    named = early.named, early.named_of(recent)
    before, after = early.masks, _sample_sets(keys[1], clusters, named[1])
    # A feature of fewer samples than these cannot be significant, and one of all samples has not changed.
    tested = sorted(
        name
        for name in before.keys() | after.keys()
        if MIN_PROMPTS <= before.get(name, 0).bit_count() + after.get(name, 0).bit_count() < n_early + n_recent
    )
    z = {name: _z(whole, before.get(name, 0), after.get(name, 0)) for name in tested}
    if not any(corrected_z(abs(value), len(z)) >= _SIGNIFICANT for value in z.values()):
        return PromptChange()
    shares = {
        name: (before.get(name, 0).bit_count() / n_early, after.get(name, 0).bit_count() / n_recent) for name in z
    }
    ratios = {name: _log_ratio(*shares[name], n_early, n_recent) for name in z if abs(z[name]) >= _MIN_Z}
    scores = [
        {key: sum(sorted(ratios.get(name, 0.0) for name in names)) for key, names in each.items()} for each in named
    ]
    changed = sorted(ratios, key=lambda name: (-abs(z[name]), name))[:_N_NAMED]
    return PromptChange(tuple((name, *shares[name]) for name in changed), *_strata(keys, scores))


def task_strata(
    early: Sequence[ObservedSample], recent: Sequence[ObservedSample], prompts: PromptChange
) -> tuple[Mapping[int, int], Mapping[int, int]]:
    """Strata of the prompts of both sides: one for each task that the client names and that has `MIN_PROMPTS` prompts on both.

    Other prompts have those of `prompts`.
    """
    tasks = [{sample.prompt_key: sample.task for sample in side} for side in (early, recent)]
    counts = [Counter(task for task in side.values() if task) for side in tasks]
    large = sorted(task for task in counts[0] if min(each[task] for each in counts) >= MIN_PROMPTS)
    places = {task: _N_STRATA + place for place, task in enumerate(large)}
    others = (prompts.early, prompts.recent)
    if not places:
        return others
    first, later = (
        {key: places.get(task, other.get(key, 0)) for key, task in side.items()}
        for side, other in zip(tasks, others, strict=True)
    )
    return first, later


def _strata(
    keys: Sequence[Sequence[int]], scores: Sequence[Mapping[int, float]]
) -> tuple[dict[int, int], dict[int, int]]:
    """Strata of equal numbers of samples, those that are not balanced apart from each other."""
    ordered = sorted(values[key] for side, values in zip(keys, scores, strict=True) for key in side)
    bounds = sorted({ordered[len(ordered) * part // _N_STRATA] for part in range(1, _N_STRATA)})
    strata = [{key: bisect_left(bounds, value) for key, value in values.items()} for values in scores]
    for stratum in range(len(bounds) + 1):
        sides = [[key for key in side if each[key] == stratum] for side, each in zip(keys, strata, strict=True)]
        comparison = StratifiedComparison(*(cluster(side) for side in sides))
        totals = [
            clusters.totals([values[key] for key in side])
            for clusters, side, values in zip((comparison.early, comparison.recent), sides, scores, strict=True)
        ]
        difference = comparison.difference(*totals)
        is_equal = abs(difference.mean) <= _ROUNDING * abs(ordered[-1] - ordered[0])
        if not comparison.strata or (not is_equal and abs(z_of_t(difference.t, difference.df)) > _BALANCED_Z):
            for apart, each in zip((-1, -2), strata, strict=True):
                each.update({key: apart for key, value in each.items() if value == stratum})
    return strata[0], strata[1]


def _words_by_key(samples: Sequence[ObservedSample]) -> dict[int, list[str]]:
    """The words of each prompt, by key."""
    texts = {sample.prompt_key: sample.prompt for sample in samples}
    words = _words_without_numbers(set(texts.values()))
    return {key: words[text] for key, text in texts.items()}


def _words_without_numbers(prompts: Iterable[str]) -> dict[str, list[str]]:
    """The words of each prompt, with a `0` for numbers, dates and ids that follow each other."""
    known = {prompt: words_of(_HEX_ID.sub("0", clip(prompt))) for prompt in prompts}
    plain = {word: "0" if _is_number(word) else word for word in set(chain.from_iterable(known.values()))}
    return {prompt: _numbers_once(list(map(plain.__getitem__, words))) for prompt, words in known.items()}


def _numbers_once(words: list[str]) -> list[str]:
    """The words, with one number where several follow each other."""
    return [word for last, word in pairwise(["", *words]) if word != "0" or last != "0"] if "0" in words else words


def _is_number(word: str) -> bool:
    if not word.isalpha():
        return any(char.isdigit() for char in word)
    return word in _DATE_WORDS or (len(word) >= _LONG and word.isascii() and _VOWELS.isdisjoint(word))


def _length(words: Sequence[str]) -> int:
    return sum(map(len, words)) + len(words)


def _features(words: Sequence[str], lengths: Sequence[int]) -> set[str]:
    """Words, first words, and length by early quartiles of a prompt."""
    names = set(words)
    names.update(f"first words:{' '.join(words[:n])}" for n in (1, 2, 3))
    names.add(f"length:{4 * bisect_left(lengths, _length(words)) // max(1, len(lengths))}")
    return names


def _add_system_turns(named: Mapping[int, set[str]], samples: Sequence[ObservedSample]) -> None:
    """Add the features of system turns to those of the prompts: that there is one, and its words."""
    words = _words_without_numbers({sample.system for sample in samples if sample.system})
    known = {system: {"system turn", *(f"system:{word}" for word in of_system)} for system, of_system in words.items()}
    for sample in samples:
        if sample.system:
            named[sample.prompt_key].update(known[sample.system])


def _sample_sets(keys: Sequence[int], clusters: Clusters, named: Mapping[int, set[str]]) -> dict[str, int]:
    masks: dict[str, int] = {}
    for key, mask in zip(dict.fromkeys(keys), clusters.samples, strict=True):
        for name in named[key]:
            masks[name] = masks.get(name, 0) | mask
    return masks


def _z(comparison: StratifiedComparison, early: int, recent: int) -> float:
    # Prompts of one feature are counted without standard errors first: most of them did not change.
    if abs(comparison.rough_growth(early, recent)) < _MIN_CHANGE:
        return 0.0
    tested = comparison.growth(early, recent)
    return z_of_t(tested.t, tested.df)


def _log_ratio(before: float, after: float, n_early: int, n_recent: int) -> float:
    """Log ratio of two shares, kept finite by half a sample."""
    return log((after * n_recent + 0.5) / (n_recent + 1)) - log((before * n_early + 0.5) / (n_early + 1))
