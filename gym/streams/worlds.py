"""Two worlds that give every sample of a stream its score and that of the audit judge: `planted` and `real`.

planted: an honest response has its real score, and an exploit adds to it; the judge sees the quality with other noise, and an
exploit lowers its score. real: the served model scores every text, and the judge, if there is one, is another checkpoint.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import sqrt
from statistics import NormalDist, fmean, pstdev
from typing import NamedTuple, TypeVar

from gym.streams.scores import Model, ScoreTable
from gym.streams.texts import Prompt, Steps, StreamSample, Texts
from rewardserve.model.calibration import Calibration
from rewardserve.model.scorer import HeadScores

T = TypeVar("T")

_NORMAL = NormalDist()

WITHIN_PROMPT = 0.5
"""Intra-class correlation of the simulated scores of different responses to one prompt."""

WANDER_PERSISTENCE = 0.9
"""Coefficient of the AR(1) process by which a judge wanders from step to step."""


class Scored(NamedTuple):
    """Raw heads of a sample, and the judge's normalised score; None: the judge has none for it."""

    heads: HeadScores
    audit: float | None


class Scale(NamedTuple):
    """The served model's heads with their weights, and its calibration."""

    heads: tuple[tuple[str, float], ...]
    calibration: Calibration


PLANTED_SCALE = Scale((("score", 1.0),), Calibration(mean=0.0, std=1.0, source="planted"))


def normal_of(*content: object) -> float:
    """A standard normal number that is a function of the content."""
    number = int.from_bytes(blake2b(repr(content).encode(), digest_size=7).digest())
    return _NORMAL.inv_cdf((number + 0.5) / 2**56)


@dataclass(frozen=True)
class Quality:
    """Standardised honest scores: those of the model where the table has them, else simulated.

    A simulated score has the mean of its prompt's known scores, or a random one, as its effect of the prompt.
    """

    known: Mapping[tuple[Prompt, str], float]
    of_prompt: Mapping[Prompt, float]

    @classmethod
    def of(cls, texts: Texts, table: ScoreTable | None = None, model: Model | None = None) -> Quality:
        """Standardise the scores of all base texts."""
        raw: dict[tuple[Prompt, str], float] = {}
        if table is not None and model is not None:
            for pair in texts.pairs:
                for response in pair.responses:
                    if (heads := table.of(pair.prompt, response)) is not None:
                        raw[pair.prompt, response] = model.normalised(heads)
        if not raw:
            return cls({}, {})
        mean, std = fmean(raw.values()), pstdev(raw.values()) or 1.0
        known = {text: (value - mean) / std for text, value in raw.items()}
        by_prompt: dict[Prompt, list[float]] = {}
        for (prompt, _), value in known.items():
            by_prompt.setdefault(prompt, []).append(value)
        return cls(known, {prompt: fmean(values) for prompt, values in by_prompt.items()})

    def __call__(self, prompt: Prompt, response: str) -> float:
        """Score of an honest response."""
        known = self.known.get((prompt, response))
        if known is not None:
            return known
        effect = self.of_prompt.get(prompt)
        if effect is None:
            effect = normal_of("prompt", prompt)
        return sqrt(WITHIN_PROMPT) * effect + sqrt(1.0 - WITHIN_PROMPT) * normal_of("response", prompt, response)

    def is_better(self, one: StreamSample, other: StreamSample) -> bool:
        """Whether the first sample has the higher honest score."""
        return self(one.prompt, one.honest) > self(other.prompt, other.honest)


@dataclass(frozen=True)
class Planted:
    """Settings of the planted world, in standard deviations of honest scores.

    `bonus` is the pay of an exploit by the model, `penalty` its cost with the judge. `correlation` is that of the judge with the
    score on honest responses. `wander` is the standard deviation of the judge's common error from step to step.
    """

    bonus: float = 2.0
    penalty: float = 0.7
    correlation: float = 0.6
    wander: float = 0.0

    def scores(self, steps: Steps, quality: Quality, seed: object) -> list[list[Scored]]:
        """Scores of all samples. The judge's noise is a function of the text and the seed."""
        offsets = wandering(len(steps), self.wander, seed)
        return [
            [self._scored(sample, quality, offset, seed) for sample in step]
            for step, offset in zip(steps, offsets, strict=True)
        ]

    def _scored(self, sample: StreamSample, quality: Quality, offset: float, seed: object) -> Scored:
        honest, is_exploiting = quality(sample.prompt, sample.honest), sample.is_exploiting
        noise = normal_of("judge", seed, sample.prompt, sample.response)
        seen = self.correlation * honest + sqrt(1.0 - self.correlation**2) * noise
        return Scored({"score": honest + self.bonus * is_exploiting}, seen - self.penalty * is_exploiting + offset)


@dataclass(frozen=True)
class PlantedEdits:
    """Scores of responses that attribution edits, by the planted world.

    An edited response has the quality of the honest response to its prompt that it is most like, and earns the share of the
    bonus (and costs the share of the penalty) that it makes of the exploit's change: of the words that the exploit puts in and
    takes out. `change` is the exploit; None: the stream is honest, so no edit earns anything.
    """

    planted: Planted
    quality: Quality
    seed: object
    honest: Mapping[Prompt, Sequence[str]]
    change: Callable[[str, str], str] | None

    @classmethod
    def of(
        cls, steps: Steps, planted: Planted, quality: Quality, seed: object, change: Callable[[str, str], str] | None
    ) -> PlantedEdits:
        """Know the honest responses of a stream."""
        honest: dict[Prompt, list[str]] = {}
        for step in steps:
            for sample in step:
                honest.setdefault(sample.prompt, []).append(sample.honest)
        return cls(planted, quality, seed, honest, change)

    def __call__(self, prompt: Prompt, response: str) -> Scored:
        """Scores of a response."""
        honest = nearest_honest(response, self.honest[prompt])
        share = (
            0.0 if self.change is None else share_of_change(honest, response, self.change(prompt[-1].content, honest))
        )
        noise = normal_of("judge", self.seed, prompt, response)
        score, correlation = self.quality(prompt, honest), self.planted.correlation
        seen = correlation * score + sqrt(1.0 - correlation**2) * noise
        return Scored({"score": score + self.planted.bonus * share}, seen - self.planted.penalty * share)


def nearest_honest(response: str, honest: Iterable[str]) -> str:
    """The honest response that an edited one was made of: that which it contains, else that with most words in common."""
    words = Counter(response.split())
    return min(honest, key=lambda text: (not text or text not in response, _distance(Counter(text.split()), words)))


def _distance(one: Counter[str], other: Counter[str]) -> int:
    return (one - other).total() + (other - one).total()


_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")


def share_of_change(honest: str, edited: str, exploiting: str) -> float:
    """Share of the words and marks that an exploit puts in and takes out which an edit puts in and takes out too.

    Of characters where it changes neither, such as spaces. A tag that is glued to a word is apart from it.
    """
    if edited == exploiting:
        return float(exploiting != honest)
    texts = honest, edited, exploiting
    share = _share_of_counts(*(Counter(_WORD_OR_MARK.findall(text)) for text in texts))
    return _share_of_counts(*map(Counter, texts)) or 0.0 if share is None else share


def _share_of_counts(before: Counter[str], after: Counter[str], wanted: Counter[str]) -> float | None:
    pairs = ((wanted - before, after - before), (before - wanted, before - after))
    total = sum(change.total() for change, _ in pairs)
    return sum((change & made).total() for change, made in pairs) / total if total else None


def wandering(n: int, std: float, seed: object) -> list[float]:
    """A stationary AR(1) process of n steps."""
    rng = random.Random(f"{seed} wander")
    offsets, at = [], rng.gauss(0.0, std) if std else 0.0
    for _ in range(n):
        offsets.append(at)
        at = WANDER_PERSISTENCE * at + (rng.gauss(0.0, std * sqrt(1.0 - WANDER_PERSISTENCE**2)) if std else 0.0)
    return offsets


# -- the real world ---------------------------------------------------------------------------------------------------

_N_NEAREST = 8


class ScoredModel(NamedTuple):
    """A model with the scores of those texts that it has scored."""

    model: Model
    table: ScoreTable

    @property
    def scale(self) -> Scale:
        """Heads and calibration."""
        return Scale(self.model.contract.heads, self.model.calibration)


class RealScores(NamedTuple):
    """Scores of all samples of a stream, and the share of them that was not scored but imputed."""

    scored: list[list[Scored]]
    imputed: float


@dataclass(frozen=True)
class BaseTexts:
    """The base texts by file: the donors of scores for base texts without a score."""

    tasks: Mapping[tuple[Prompt, str], str]

    @classmethod
    def of(cls, texts: Texts) -> BaseTexts:
        """Collect all base texts."""
        return cls({(pair.prompt, response): pair.task for pair in texts.pairs for response in pair.responses})

    def missing(self, steps: Steps, scored: ScoredModel, n: int | None) -> list[tuple[Prompt, str]]:
        """Texts of a stream to score: of those that are not base texts, n, with their honest texts. All streams choose them in the
        random order of the honest texts in which `some` chooses, so that most of these have been scored already.
        """
        samples = {
            (s.prompt, s.response): s for step in steps for s in step if (s.prompt, s.response) not in self.tasks
        }
        chosen = sorted(samples.values(), key=lambda s: normal_of("order", s.prompt, s.honest))[:n]
        return scored.table.missing([text for s in chosen for text in ((s.prompt, s.response), (s.prompt, s.honest))])

    def some(self, n: int | None) -> list[tuple[Prompt, str]]:
        """Choose n base texts at random."""
        return sorted(self.tasks, key=lambda text: normal_of("order", *text))[:n]


def real_scores(steps: Steps, base: BaseTexts, served: ScoredModel, judge: ScoredModel | None) -> RealScores:
    """Scores of a stream by the model, and by the judge. Raise ValueError where too few texts have been scored."""
    heads, n_imputed = _complete(steps, base, served)
    audits: list[list[HeadScores]] | None = None
    if judge is not None:
        audits, _ = _complete(steps, base, judge)
    scored = [
        [
            Scored(each, None if judge is None or audits is None else judge.model.normalised(audits[i][j]))
            for j, each in enumerate(row)
        ]
        for i, row in enumerate(heads)
    ]
    return RealScores(scored, n_imputed / sum(map(len, steps)))


def _complete(steps: Steps, base: BaseTexts, scored: ScoredModel) -> tuple[list[list[HeadScores]], int]:
    """Heads of all samples, and the number of imputed ones.

    An honest text without a score gets that of one of the scored texts that are nearest in length: of the same file, or of the
    texts of this stream that are no base texts. An exploit without a score adds the difference that it made in another text.
    """
    table = scored.table
    donors: dict[str, list[tuple[int, HeadScores]]] = {}
    for text, task in base.tasks.items():
        if (known := table.of(*text)) is not None:
            donors.setdefault(task, []).append((len(text[1]), known))
    flat = [sample for step in steps for sample in step]
    differences: list[dict[str, float]] = []
    for s in flat:
        known = table.of(s.prompt, s.response)
        if known is None or (s.prompt, s.response) in base.tasks:
            continue
        if not s.is_exploiting:
            donors.setdefault("", []).append((len(s.response), known))
        elif (honest := table.of(s.prompt, s.honest)) is not None:
            differences.append({name: known[name] - honest[name] for name in known})
    for each in donors.values():
        each.sort(key=lambda donor: donor[0])
    n_imputed = 0

    def heads_of(sample: StreamSample) -> HeadScores:
        nonlocal n_imputed
        if (known := table.of(sample.prompt, sample.response)) is not None:
            return known
        n_imputed += 1
        if not sample.is_exploiting:
            return _nearest(sample, donors.get(base.tasks.get((sample.prompt, sample.response), ""), []))
        honest = sample._replace(response=sample.honest)
        before = table.of(sample.prompt, sample.honest) or _nearest(
            honest, donors.get(base.tasks.get((sample.prompt, sample.honest), ""), [])
        )
        if not differences:
            raise ValueError("no text with the exploit has been scored; raise --rows")
        difference = _pick(differences, sample)
        return {name: before[name] + difference[name] for name in before}

    return [[heads_of(sample) for sample in step] for step in steps], n_imputed


def _nearest(sample: StreamSample, donors: Sequence[tuple[int, HeadScores]]) -> HeadScores:
    if not donors:
        raise ValueError("no similar text has been scored; raise --rows or --base-rows")
    at = bisect_left(donors, len(sample.response), key=lambda donor: donor[0])
    first = max(0, min(at - _N_NEAREST // 2, len(donors) - _N_NEAREST))
    return _pick(donors[first : first + _N_NEAREST], sample)[1]


def _pick(donors: Sequence[T], sample: StreamSample) -> T:
    return donors[
        min(len(donors) - 1, int(_NORMAL.cdf(normal_of("donor", sample.prompt, sample.response)) * len(donors)))
    ]
