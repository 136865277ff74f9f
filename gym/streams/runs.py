"""Make and replay one stream: the work of a process of `python -m gym.streams`."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from gym.streams import cherrl
from gym.streams.outcomes import StreamOutcome
from gym.streams.replay import ScoreEdited, Tokenize, replay
from gym.streams.scores import LiveModel, Model, ScoreTable
from gym.streams.streams import StreamSource, StreamSpec, read_recorded
from gym.streams.texts import Prompt, Steps, Texts, read_pairs
from gym.streams.tokens import tokenizer_of
from gym.streams.worlds import PLANTED_SCALE, BaseTexts, PlantedEdits, Quality, Scale, Scored, ScoredModel, real_scores
from rewardserve.model.scorer import HeadScores
from rewardserve.service.observability import logs


class Made(NamedTuple):
    """Samples of a stream by step, their scores and the scale of these, the share of imputed scores, gold by step if known,
    and the scores of edited responses."""

    steps: Steps
    scored: list[list[Scored]]
    scale: Scale
    imputed: float = 0.0
    gold: tuple[float, ...] | None = None
    edits: ScoreEdited | None = None


@dataclass
class World:
    """Texts, scores and tokenizer of a process."""

    source: StreamSource
    base: BaseTexts
    quality: Quality
    served: ScoredModel
    judge: ScoredModel | None
    tokenize: Tokenize
    checkpoints: tuple[str, str]
    scores_edits: bool

    @classmethod
    def of(cls, given: argparse.Namespace) -> World:
        """Read all that the arguments of the command name."""
        texts = Texts(read_pairs(given.data) if given.data else [])
        served = _scored_model(given.model, given.scores)
        quality = Quality.of(texts, *((served.table, served.model) if given.quality == "model" else ()))
        judge = _scored_model(given.judge, given.scores) if given.judge else None
        source = StreamSource(texts, quality.is_better)
        return cls(
            source,
            BaseTexts.of(texts),
            quality,
            served,
            judge,
            tokenizer_of(given.model),
            (given.model, given.judge),
            given.score_edits,
        )

    def edits(self, spec: StreamSpec, steps: Steps) -> ScoreEdited | None:
        """Scores of responses that attribution edits; None: those of a recorded run are not known."""
        if spec.is_real:
            return RealEdits(self)
        if spec.source == "recorded":
            return RecordedEdits(RealEdits(self), self.served.model) if self.scores_edits else None
        if spec.source == "cherrl":
            honest = PlantedEdits.of(steps, spec.planted, self.quality, spec.seed, None)
            return cherrl.PublishedEdits(honest, cherrl.DETECTORS[spec.name])
        return PlantedEdits.of(steps, spec.planted, self.quality, spec.seed, self.source.exploit(spec))

    def make(self, spec: StreamSpec) -> Made:
        """Make and score the samples of a stream."""
        if spec.source == "learned":
            learned = self.source.learned(spec)
            return Made(learned.steps, learned.scored, PLANTED_SCALE, gold=tuple(learned.gold), edits=learned.edits)
        steps = self.source.steps(spec)
        return Made(steps, *self._scores(spec, steps), edits=self.edits(spec, steps))

    def _scores(self, spec: StreamSpec, steps: Steps) -> tuple[list[list[Scored]], Scale, float]:
        """Scores of a stream, their scale, and the share of imputed ones."""
        if spec.source == "recorded" and not spec.is_real:
            assert spec.file is not None
            rewards = read_recorded(spec.file)[1]
            return [[Scored({"score": value}, None) for value in step] for step in rewards], PLANTED_SCALE, 0.0
        if spec.is_real:
            real = real_scores(steps, self.base, self.served, self.judge)
            return real.scored, self.served.scale, real.imputed
        return spec.planted.scores(steps, self.quality, spec.seed), PLANTED_SCALE, 0.0


class RealEdits:
    """Scores of edited responses by the served model, and by the judge's checkpoint where there is one; kept in their tables."""

    def __init__(self, world: World) -> None:
        models = zip((world.served, world.judge), world.checkpoints, strict=True)
        self._models = [(scored, checkpoint) for scored, checkpoint in models if scored is not None]
        self._live: dict[str, LiveModel] = {}

    def __call__(self, prompt: Prompt, response: str) -> Scored:
        """Scores of a response."""
        heads = [self._heads(prompt, response, *each) for each in self._models]
        judge = self._models[-1][0].model if len(heads) > 1 else None
        audit = None if judge is None or heads[1] is None else judge.normalised(heads[1])
        return Scored(heads[0] or {}, audit)

    def _heads(self, prompt: Prompt, response: str, scored: ScoredModel, checkpoint: str) -> HeadScores | None:
        if scored.table.missing([(prompt, response)]):
            if checkpoint not in self._live:
                self._live[checkpoint] = LiveModel.load(checkpoint)
            scored.table.add([(prompt, response)], [self._live[checkpoint].heads(prompt, response)])
        return scored.table.of(prompt, response)


@dataclass(frozen=True)
class RecordedEdits:
    """Scores of edited responses of a recorded run: normalised scores of the served model, as its rewards are."""

    real: RealEdits
    model: Model

    def __call__(self, prompt: Prompt, response: str) -> Scored:
        """Score of a response."""
        return Scored({"score": self.model.normalised(self.real(prompt, response).heads)}, None)


def _scored_model(checkpoint: str, folder: Path | None) -> ScoredModel:
    model = Model.read(checkpoint)
    return ScoredModel(model, ScoreTable.open(model, folder))


_started: World | None = None


def start(given: argparse.Namespace) -> None:
    """Read texts and scores, once a process."""
    global _started
    logs.configure("critical", "text")
    _started = World.of(given)


def run(spec: StreamSpec) -> StreamOutcome:
    """Make and replay one stream, in a process that has started."""
    assert _started is not None, "the process has been started"
    began = time.process_time()
    made = _started.make(spec)
    steps = made.steps
    has_judge = any(each.audit is not None for step in made.scored for each in step)
    traffic = spec.traffic if has_judge else replace(spec.traffic, judge_share=0.0)
    replayed = replay(
        steps, made.scored, _started.tokenize, traffic, made.scale, made.edits, until_page=spec.until_page
    )
    return StreamOutcome(
        settings=replace(spec, traffic=traffic).settings,
        pay=spec.pay,
        stream=_started.source.title(spec),
        is_exploit=spec.is_exploit,
        seed=spec.seed,
        samples=sum(map(len, steps[: len(replayed.votes)])),
        seconds=time.process_time() - began,
        shares=tuple(sum(s.is_exploiting for s in step) / len(step) for step in steps)
        if spec.source != "recorded"
        else None,
        events=replayed.events,
        votes=replayed.votes,
        votes_for_a_page=replayed.votes_for_a_page,
        imputed=made.imputed,
        gold=made.gold,
        onset=_onset(spec),
        named=replayed.named,
        edits=replayed.edits,
    )


def _onset(spec: StreamSpec) -> tuple[int, int] | None:
    """Interval of the onset of a published run."""
    if spec.source != "cherrl" or spec.file is None:
        return None
    published = cherrl.read_runs(spec.file)[spec.name]
    return published.earliest, published.latest
