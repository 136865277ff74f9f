"""Replay a stream through the parts of the server that score and watch a run, and record the alerts by step.

Composed as in the server: `create_shared_resources`, `start_runtime`, then `Scoring.score` for every request, which passes its
samples to the `RunWatcher`. Only the encoder and the scorers are tables of known ids and scores. The audit judge scores in the
background, after the reply. Alerts are read as an operator reads them, from the reply of `GET /tripwires`.

A replay is a function of the stream alone. In a server three things depend on time: the parts of a large request end in any order,
which decides the first responses that attribution keeps; reports take time, so later samples arrive while one is made; and both the
inspection of samples and reports have a share of a core. Here each part ends, with its audits and reports, before the next one is
sent; the clock stands still within a step; and the share is a whole core.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from gym.ablation import votes_of
from gym.streams.texts import Prompt, Steps
from gym.streams.worlds import PLANTED_SCALE, Scale, Scored
from rewardserve.model.backends import Identity, LoadedModel, encode_each
from rewardserve.model.contract import ContractReport, ScoringContract
from rewardserve.model.conversation import Sample, SampleError
from rewardserve.model.encoding import Encoded
from rewardserve.model.reward import build_pipeline
from rewardserve.model.scorer import BatchScores, HeadScores, TokenBatch
from rewardserve.service.admission import Admission
from rewardserve.service.api.routes.tripwires import describe_run
from rewardserve.service.clock import MonotonicClock
from rewardserve.service.errors import TooFewSamples
from rewardserve.service.models.audit_judge import LoadedJudge
from rewardserve.service.models.deployment import Source
from rewardserve.service.models.loading import PreparedModel
from rewardserve.service.models.runtime import start_runtime
from rewardserve.service.models.shared_resources import create_shared_resources
from rewardserve.service.observability.metrics import Metrics
from rewardserve.service.settings import Batching, Cache, ModelSettings, Tripwires
from rewardserve.service.tripwires.alert import VOTE
from rewardserve.service.tripwires.io.attribution import Attribution
from rewardserve.service.tripwires.io.edit_scorer import EditScorer
from rewardserve.service.tripwires.run_context import RunContext

RUN = "stream"
END_ID = 0
FIRST_PROMPT_ID = 1 << 24
MAX_TOKENS = 1 << 20
STEP_S = 30.0
"""Seconds of the replay's clock between two steps."""

_PART = 16
"""Samples that a server encodes together, and which it therefore inspects together."""

_KEPT_ROWS = 1_024
"""Rows of earlier steps that the tables still know: the judge scores samples in blocks, which may span steps."""

K = TypeVar("K")
V = TypeVar("V")
ScoreEdited = Callable[[Prompt, str], Scored]
"""Scores of a response that is not in the stream, because attribution has edited it."""

Tokenize = Callable[[Sequence[str]], list[tuple[int, ...]]]
"""Ids of each text, above `END_ID` and below `FIRST_PROMPT_ID`."""


class ReplayEvent(NamedTuple):
    """The first time in a stream that a wire, or another part that reports on a run, raised an alert of this severity."""

    step: int
    wire: str
    severity: str
    text: str


@dataclass(frozen=True)
class Replay:
    """Events of a stream in order; and after every step the votes by wire, of which `votes_for_a_page` are a page.

    `named` are the sentences of attribution at the first page; `edits` is the number of edited responses that were scored.
    """

    events: tuple[ReplayEvent, ...]
    votes: tuple[Mapping[str, int], ...]
    votes_for_a_page: float
    named: tuple[str, ...] = ()
    edits: int = 0


@dataclass(frozen=True)
class Traffic:
    """The way in which samples arrive. `per_request` 0, and more than a server encodes together: in parts of so many, in order.
    `judge_share` 0: no audit judge. `config`: of the wires.

    `names_tasks`: requests have the names of the samples' tasks.
    """

    per_request: int = 0
    judge_share: float = 0.1
    config: Path | None = None
    names_tasks: bool = False


class ReplayClock(MonotonicClock):
    """A clock that stands still within a step, so that a busy machine changes nothing."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        """Seconds since the first step."""
        return self.now_s


class NotScored(SampleError):
    """No world gives this response a score."""

    code = "not_scored"


@dataclass
class TableEncoder:
    """Encoder that knows the rows of the latest steps. `add_edited` adds one that is not among them."""

    rows: dict[tuple[Prompt, str], Encoded] = field(default_factory=dict)
    add_edited: Callable[[Prompt, str], None] | None = None

    def __call__(self, sample: Sample) -> Encoded:
        """Look up one sample."""
        assert isinstance(sample.prompt, tuple)
        assert sample.response is not None
        if (sample.prompt, sample.response) not in self.rows:
            if self.add_edited is None:
                raise NotScored("the scores of edited responses are not known")
            self.add_edited(sample.prompt, sample.response)
        return self.rows[sample.prompt, sample.response]

    def many(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """One entry a sample, in order."""
        return encode_each(self, samples)

    def texts(self, sample: Sample) -> tuple[str, str]:
        """Prompt and response of the sample."""
        return sample.texts()

    def first_turns(self, sample: Sample) -> str:
        """Empty: prompts are messages."""
        return ""

    def is_rendered(self, prompt: str) -> bool:
        """False: prompts are messages."""
        return False

    def decode(self, ids: Sequence[int]) -> str:
        """Empty: ids are numbers of rows."""
        return ""


@dataclass
class TableScorer:
    """Scorer that knows the heads of the rows of the latest steps."""

    scores: dict[tuple[int, ...], HeadScores] = field(default_factory=dict)
    max_tokens: int = MAX_TOKENS
    shares_prefixes: bool = False
    pads_rows: bool = False
    concurrency: int = 1
    streams: bool = False
    is_alive: bool = True

    def score(self, batch: TokenBatch) -> BatchScores:
        """Look up every row."""
        return BatchScores(tuple([self.scores[row] for row in batch.rows]), tokens_computed=batch.n_tokens)

    def cost(self, lengths: Sequence[int]) -> int:
        """Number of tokens."""
        return sum(lengths)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def replay(
    steps: Steps,
    scores: Sequence[Sequence[Scored]],
    tokenize: Tokenize,
    traffic: Traffic = Traffic(),
    scale: Scale = PLANTED_SCALE,
    score_edited: ScoreEdited | None = None,
    *,
    until_page: bool = False,
) -> Replay:
    """Replay one stream. `score_edited` None: the edits of attribution have no score. `until_page`: end with the first page."""
    return asyncio.run(_replay(steps, scores, tokenize, traffic, scale, score_edited, until_page=until_page))


async def _replay(
    steps: Steps,
    scores: Sequence[Sequence[Scored]],
    tokenize: Tokenize,
    traffic: Traffic,
    scale: Scale,
    score_edited: ScoreEdited | None,
    *,
    until_page: bool,
) -> Replay:
    encoder, scorer, judge_scorer = TableEncoder(), TableScorer(), TableScorer()
    settings = _settings(traffic)
    served = _model("served", encoder, scorer, scale)
    judge = _model("judge", encoder, judge_scorer, PLANTED_SCALE) if traffic.judge_share else None
    clock, n_most = ReplayClock(), max(map(len, steps))
    admission = Admission(n_most, n_most * MAX_TOKENS, clock)
    resources = create_shared_resources(
        settings, admission, Metrics(), clock, audit=None if judge is None else LoadedJudge(judge)
    )
    pipeline = build_pipeline(served.ensemble_members, settings.reward_settings())
    runtime = start_runtime(resources, PreparedModel(served, pipeline), 1, Source("served", ""))
    recorder = _Recorder()
    prompt_ids: dict[Prompt, int] = {}
    n_edits, named = 0, tuple[str, ...]()

    def add_edited(prompt: Prompt, response: str) -> None:
        nonlocal n_edits
        n_edits += 1
        _add(prompt, response, edited_scores(prompt, response), tokenize([response])[0])

    def _add(prompt: Prompt, response: str, scored: Scored, ids: tuple[int, ...]) -> None:
        row = (prompt_ids.setdefault(prompt, FIRST_PROMPT_ID + len(prompt_ids)), *ids, END_ID)
        _remember(encoder.rows, (prompt, response), Encoded(row, 1), _KEPT_ROWS + n_most)
        _remember(scorer.scores, row, scored.heads, _KEPT_ROWS + n_most)
        audit = math.nan if scored.audit is None else scored.audit
        _remember(judge_scorer.scores, row, {"score": audit}, _KEPT_ROWS + n_most)

    def edited_scores(prompt: Prompt, response: str) -> Scored:
        assert score_edited is not None
        return score_edited(prompt, response)

    encoder.add_edited = None if score_edited is None else add_edited
    for number, (step, scored) in enumerate(zip(steps, scores, strict=True)):
        for sample, known, ids_of_text in zip(step, scored, tokenize([s.response for s in step]), strict=True):
            _add(sample.prompt, sample.response, known, ids_of_text)
        size = min(traffic.per_request or _PART, _PART)
        for at in range(0, len(step), size):
            samples = [Sample(prompt=s.prompt, response=s.response) for s in step[at : at + size]]
            ids = [f"{number}-{at + i}" for i in range(len(samples))]
            tasks = [s.task or None for s in step[at : at + size]] if traffic.names_tasks else []
            results = await runtime.scoring.score(samples, math.inf, RunContext(RUN, number, ids=ids, tasks=tasks))
            assert all(result.failure is None for result in results), "every sample has a score"
            if resources.judge is not None:
                await asyncio.gather(*resources.judge.background_scorer.tasks)
            if resources.attribution is not None:
                await resources.attribution.settle()
        if RUN in resources.monitor.runs:
            recorder.read(number, msgspec.to_builtins(describe_run(RUN, resources.monitor, clock.now(), {})))
        else:
            recorder.votes.append({})
        clock.now_s += STEP_S
        if not named and recorder.has_page:
            named = await _sentences(resources.attribution, runtime.edit_scorer)
            if until_page:
                break
    await runtime.stop()
    await resources.close()
    return Replay(
        tuple(recorder.events), tuple(recorder.votes), settings.wire_config().votes_for_a_page, named, n_edits
    )


async def _sentences(attribution: Attribution | None, scorer: EditScorer) -> tuple[str, ...]:
    """The sentences that an operator reads after an alert."""
    if attribution is None:
        return ()
    try:
        alerted = attribution.alerted(RUN)
        report = await attribution.report(RUN, scorer) if alerted is None else alerted.report
    except TooFewSamples:
        return ("too few samples",)
    return report.sentences


def _settings(traffic: Traffic) -> ModelSettings:
    return ModelSettings(
        tripwires=Tripwires(cpu_share=1.0, audit_share=traffic.judge_share or 1.0, config_file=traffic.config),
        batching=Batching(linger_ms=0.0),
        cache=Cache(scores=0),
        encoder_threads=1,
    )


def _model(name: str, encoder: TableEncoder, scorer: TableScorer, scale: Scale) -> LoadedModel:
    contract = ScoringContract(
        template="", template_digest="", bos_id=None, end_text="", end_ids=(END_ID,), template_tail="",
        ending="end_token", reads_at="last", skip_id=None, bos_without_template="none", tokenizes="whole", truncation="error",
        max_tokens=MAX_TOKENS, pad_id=END_ID, tokenizer_digest=name, weights_digest=name, head_digest=name, dtype="float32",
        heads=scale.heads, origin="inferred",
    )  # fmt: skip
    return LoadedModel(
        identity=Identity(name, "Table", "table", "none", "float32", "cpu", scale.heads, 0, MAX_TOKENS),
        scorer=scorer,
        encode=encoder,
        contract=contract,
        report=ContractReport("inferred", (), 0, None),
        calibration=scale.calibration,
    )


def _remember(rows: dict[K, V], key: K, value: V, most: int) -> None:
    rows.pop(key, None)
    rows[key] = value
    while len(rows) > most:
        del rows[next(iter(rows))]


class _Recorder:
    """Reader of `GET /tripwires/{run}/details`: keeps the first alert of each wire and severity, and the votes of every step."""

    def __init__(self) -> None:
        self.events: list[ReplayEvent] = []
        self.votes: list[Mapping[str, int]] = []
        self._seen: set[tuple[str, str]] = set()
        self.has_page = False

    def read(self, step: int, run: Mapping[str, Any]) -> None:
        """Record the alerts that are new."""
        wires = {wire["wire"]: wire for wire in run["wires"]}
        for alert in run["tripped"]:
            name, severity = alert["wire"], alert["severity"]
            if (name, severity) not in self._seen:
                self._seen.add((name, severity))
                summary = wires[name]["summary"] if name in wires else name
                relation = ">=" if name == VOTE else ">"
                text = f"{summary}: {alert['statistic']:.3g} {relation} {alert['threshold']:.3g}"
                self.events.append(ReplayEvent(step, name, severity, text))
        self.has_page = self.has_page or any(alert["severity"] == "page" for alert in run["tripped"])
        self.votes.append(votes_of(wires, run["statistics"]))
