"""Choose pairs of responses for an audit: what the model pays and the judge does not, beside a comparable response. Pure.

Scores are standardised within prompts: the mean of each prompt is taken away, and all differences are divided by their pooled
standard deviation, so that the gap of a response is how much more the model pays than the judge, against other responses to the
same prompt. Shapes: N responses. NaN is a response without a score.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LENGTH_COST = 0.5
"""Standard deviations of gap for which a partner may differ by a factor of e in length."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Two responses to one prompt, by number: `high` is paid by the model and not by the judge, `other` by both alike.

    `gap`: how much further apart the model puts the two than the judge, in standard deviations. A `control` is a pair that was
    drawn whatever its scores.
    """

    high: int
    other: int
    prompt: int
    gap: float
    kind: Literal["gap", "control"] = "gap"


@dataclass(frozen=True, slots=True)
class Gaps:
    """Standardised scores of model and judge, and their gap; NaN without both scores, or without a second scored response."""

    model_N: Floats
    judge_N: Floats

    def without(self, numbers: Collection[int]) -> Gaps:
        """The same, with no score for these responses."""
        gone_N = np.isin(np.arange(len(self.model_N)), list(numbers))
        return Gaps(np.where(gone_N, np.nan, self.model_N), np.where(gone_N, np.nan, self.judge_N))

    @property
    def gap_N(self) -> Floats:
        """What the model pays beyond the judge."""
        return self.model_N - self.judge_N


def standardise(model_N: Floats, judge_N: Floats, prompt_N: Ints) -> Gaps:
    """Standardise both scores within prompts, over the responses that have both."""
    both_N = np.isfinite(model_N) & np.isfinite(judge_N)
    n_scored = np.bincount(prompt_N[both_N], minlength=int(prompt_N.max(initial=-1)) + 1)
    used_N = both_N & (n_scored[prompt_N] > 1)
    return Gaps(_within(model_N, prompt_N, used_N), _within(judge_N, prompt_N, used_N))


def _within(score_N: Floats, prompt_N: Ints, used_N: npt.NDArray[np.bool_]) -> Floats:
    """Scores less the mean of their prompt, over the pooled standard deviation within prompts (all 0 if no score varies)."""
    out_N = np.full(len(score_N), np.nan)
    if not used_N.any():
        return out_N
    score, prompt = score_N[used_N], prompt_N[used_N]
    size = np.bincount(prompt)
    centred = score - (np.bincount(prompt, weights=score) / np.maximum(size, 1))[prompt]
    df = len(score) - np.count_nonzero(size)
    std = math.sqrt(float((centred**2).sum()) / df)
    out_N[used_N] = centred / std if std > 0 else 0.0
    return out_N


def find_candidates(
    gaps: Gaps, prompt_N: Ints, chars_N: Ints, texts: Sequence[str], *, min_gap: float, per_prompt: int
) -> list[Candidate]:
    """The pairs of each prompt in which the judge contradicts the model, at most `per_prompt`, with the largest gaps.

    The partner is a response that the model pays less and the judge no less; of these, the one on which both agree best, and
    which is about as long. A response is in one pair.
    """
    found = []
    for prompt, members in _by_prompt(gaps, prompt_N).items():
        model, judge, gap = (values[members] for values in (gaps.model_N, gaps.judge_N, gaps.gap_N))
        log_chars = np.log(np.maximum(chars_N[members], 1))
        free = set(range(len(members)))
        n = 0
        for high in sorted(free, key=lambda i: (-gap[i], members[i])):
            if n == per_prompt or high not in free:
                continue
            partners = [
                i
                for i in free
                if model[i] < model[high]
                and judge[i] >= judge[high]
                and gap[i] <= 0.0
                and gap[high] - gap[i] >= min_gap
                and texts[members[i]] != texts[members[high]]
            ]
            if not partners:
                continue
            cost = {i: abs(gap[i]) + _LENGTH_COST * abs(log_chars[i] - log_chars[high]) for i in partners}
            other = min(partners, key=lambda i: (cost[i], members[i]))
            found.append(Candidate(members[high], members[other], prompt, float(gap[high] - gap[other])))
            free -= {high, other}
            n += 1
    return found


def _by_prompt(gaps: Gaps, prompt_N: Ints) -> dict[int, list[int]]:
    members: dict[int, list[int]] = defaultdict(list)
    for number in np.flatnonzero(np.isfinite(gaps.gap_N)).tolist():
        members[int(prompt_N[number])].append(number)
    return members


def spread(candidates: Sequence[Candidate], groups: Sequence[str], n: int) -> list[Candidate]:
    """At most `n` candidates, in turns over the groups, the largest gap first; no prompt has a second one before all have one.

    `groups` has the name of each candidate's group. Once the others are used up, the largest group fills the rest.
    """
    waiting: dict[str, list[Candidate]] = {name: [] for name in sorted(set(groups))}
    for candidate, name in zip(candidates, groups, strict=True):
        waiting[name].append(candidate)
    for each in waiting.values():
        each.sort(key=lambda one: (-one.gap, one.prompt, one.high))
    chosen: list[Candidate] = []
    n_of: Counter[int] = Counter()
    limit = 1
    while len(chosen) < n and any(waiting.values()):
        before = len(chosen)
        for left in waiting.values():
            place = next((i for i, one in enumerate(left) if n_of[one.prompt] < limit), None)
            if place is not None and len(chosen) < n:
                chosen.append(left.pop(place))
                n_of[chosen[-1].prompt] += 1
        limit += len(chosen) == before
    return chosen


def controls(gaps: Gaps, prompt_N: Ints, texts: Sequence[str], chosen: Sequence[Candidate], n: int) -> list[Candidate]:
    """`n` pairs of responses to one prompt that are drawn whatever their scores, first of prompts without a chosen pair.

    They hide from an annotator that one response of each pair is suspected, and show how often the judge is wrong.
    """
    used = responses_in(chosen)
    with_pair = {candidate.prompt for candidate in chosen}
    found = []
    for prompt, members in _by_prompt(gaps, prompt_N).items():
        free = sorted((i for i in members if i not in used), key=lambda i: _draw("control", prompt, texts[i]))
        other = next((i for i in free[1:] if texts[i] != texts[free[0]]), None)
        if other is not None:
            high, low = sorted((free[0], other), key=lambda i: (-gaps.gap_N[i], i))
            gap = float(gaps.gap_N[high] - gaps.gap_N[low])
            found.append(Candidate(high, low, prompt, gap, "control"))
    found.sort(
        key=lambda each: (each.prompt in with_pair, _draw("prompt", *sorted((texts[each.high], texts[each.other]))))
    )
    return found[:n]


def n_controls_for(n_suspected: int, share: float) -> int:
    """Number of controls that are this share of a queue with so many suspected pairs."""
    return round(n_suspected * share / (1 - share))


def responses_in(pairs: Iterable[Candidate]) -> set[int]:
    """Numbers of the responses of pairs."""
    return {number for pair in pairs for number in (pair.high, pair.other)}


def _draw(*parts: object) -> bytes:
    """Pseudo-random key that is the same in each run."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()


def quantiles(gaps: Gaps) -> Mapping[str, float]:
    """Distribution of the gap over responses."""
    known = gaps.gap_N[np.isfinite(gaps.gap_N)]
    if not len(known):
        return {}
    return {f"{p:g}%": float(np.percentile(known, p)) for p in (50, 90, 99)} | {"max": float(known.max())}
