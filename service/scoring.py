"""Score one request: admit, encode, batch, compute the rewards, update the metrics.

Knows nothing of HTTP. An invalid sample gets an error in its result; an error of the whole request is raised.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise, repeat
from math import isfinite
from typing import Any, NamedTuple, TypeVar

from rewardserve.model.conversation import Message, Sample, SampleError
from rewardserve.model.encoding import Encoded
from rewardserve.model.reward import Pipeline, Reward, sigmoid
from rewardserve.model.scorer import HeadScores
from rewardserve.service.admission import Admission
from rewardserve.service.auth.rate_limits import charge_tokens
from rewardserve.service.clock import Clock
from rewardserve.service.errors import DeadlineExceeded, Failure, NoPolicy, RowFailed, RunBlocked, ScoreNotFinite
from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.encode_pool import EncodePool
from rewardserve.service.inference.lookahead import Continuation, lacks_answer, to_score, turns_after, with_lookahead
from rewardserve.service.inference.outcomes import RowOutcome, RowScored
from rewardserve.service.inference.policy_client import PolicyClient
from rewardserve.service.inference.rewards import ScoredRow, compute_rewards
from rewardserve.service.inference.shadow import Shadow
from rewardserve.service.observability.metrics import Metrics
from rewardserve.service.review.capture import SampleCapture
from rewardserve.service.tripwires.io.run_watcher import Flags, RunWatcher
from rewardserve.service.tripwires.run_context import RunContext

T = TypeVar("T")
SampleOrError = Sample | SampleError
"""A sample, or the error of an invalid one."""

_CHUNK_SAMPLES = 16
_MAX_CHUNK_SAMPLES = 128
"""Samples of one encoding task: `_CHUNK_SAMPLES`, up to the second number where samples share a prompt."""

_CHARS_PER_TOKEN = 4
"""For English text with common vocabularies; admission needs an estimate before samples are encoded."""


class SampleResult(NamedTuple):
    """Result of one sample. Exactly one of `reward` and `failure` is set.

    `cached`: the score came from an equal row that was scored before. A named tuple, as there is one for every sample.
    """

    reward: Reward | None = None
    heads: HeadScores | None = None
    n_tokens: int | None = None
    n_computed: float = 0.0
    truncated: bool = False
    missing_end: bool = False
    cached: bool = False
    encode_s: float = 0.0
    queue_s: float = 0.0
    forward_s: float = 0.0
    failure: Failure | None = None
    flags: Flags = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt and the responses to rank."""

    prompt: str | tuple[Message, ...]
    responses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Responses in descending order of raw score. `probabilities[i][j]`: that i is better than j, by Bradley-Terry.

    `winner` is None if the best two differ by no more than the tie margin.
    """

    ranking: tuple[int, ...]
    winner: int | None
    raw: tuple[float, ...]
    probabilities: tuple[tuple[float, ...], ...]
    margin: float


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """Result of one comparison: a ranking, or the failure of its first response without a score."""

    ranked: Ranking | None
    failure: Failure | None
    parts: tuple[SampleResult, ...]


class Scoring:
    """Score requests with one loaded model: admission, encoding, batcher, reward pipeline, run watcher.

    `n_in_flight` counts the calls in progress; `idle` is set while there are none.

    `shadow` is another model that scores a share of the same samples, for comparison only. `capture` writes some samples to the
    review store.
    """

    def __init__(
        self,
        *,
        version: int,
        admission: Admission,
        encode_pool: EncodePool,
        batcher: Batcher,
        pipeline: Pipeline,
        watcher: RunWatcher,
        metrics: Metrics,
        clock: Clock,
        max_tokens: int,
        capture: SampleCapture | None = None,
        policy: PolicyClient | None = None,
    ) -> None:
        self._version = version
        self._admission = admission
        self._encode_pool = encode_pool
        self._batcher = batcher
        self._pipeline = pipeline
        self._watcher = watcher
        self._metrics = metrics
        self._clock = clock
        self._max_tokens = max_tokens
        self._capture = capture
        self._policy = policy
        self._temperature = pipeline.combination.temperature
        self.shadow: Shadow | None = None
        self.n_in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()

    async def score(
        self,
        samples: Sequence[SampleOrError],
        deadline: float = math.inf,
        context: RunContext | None = None,
        *,
        inspects: bool = True,
    ) -> list[SampleResult]:
        """Score samples; one result a sample, in order. Raise `RequestRefused` if the request as a whole fails.

        `context` None: the samples belong to no run, so trip wires do not inspect them. `inspects` False: they do not either,
        as another model scores the run; a blocked run gets no rewards all the same.
        """
        if context is not None:
            if (wire := self._watcher.blocked_by(context)) is not None:
                return [self._refused(len(samples), wire)] * len(samples)
            if inspects:
                self._watcher.begin_run(context)
            else:
                context = None
        n_tokens = sum(map(self._estimate, samples))
        n_ahead = sum([len(each.lookahead) for each in samples if isinstance(each, Sample)])
        with self._track(), self._admission.acquire(len(samples) + n_ahead, n_tokens):
            # After admission: a refused request is retried, and must not be charged twice.
            charge_tokens(n_tokens)
            async with _within_deadline(deadline, self._clock):
                answered = await _gather_all(
                    [
                        self._score_chunk(chunk, names, deadline, context)
                        for chunk, names in _named_chunks(samples, context)
                    ]
                )
        results = [result for chunk in answered for result in chunk]
        if context is not None and context.ids:
            self._watcher.inspect_ids(context, samples)
        self._metrics.observe_samples(
            self._version,
            outcomes=_outcomes(results),
            n_tokens=sum([r.n_tokens or 0 for r in results]),
            n_cached_tokens=sum([r.n_tokens or 0 for r in results if r.cached]),
            rewards=[r.reward for r in results if r.reward is not None],
        )
        return results

    def is_blocked(self, context: RunContext) -> bool:
        """Whether a trip wire blocks this run."""
        return self._watcher.blocked_by(context) is not None

    def _refused(self, n: int, wire: str) -> SampleResult:
        error = RunBlocked(f"the trip wire {wire} blocks this run; acknowledge its alert to continue", wire=wire)
        self._metrics.observe_samples(self._version, {error.code: n}, 0, 0, [])
        return SampleResult(failure=Failure.of(error))

    async def compare(
        self,
        comparisons: Sequence[Comparison],
        tie_margin: float = 0.0,
        deadline: float = math.inf,
        context: RunContext | None = None,
    ) -> list[ComparisonResult]:
        """Rank responses; one result a comparison, in order. Raise `RequestRefused` if the request as a whole fails.

        `context`: a blocked run gets no rankings either. Trip wires do not inspect comparisons.

        Equal responses are scored once, and in an order that does not depend on their order in the request, so
        neither duplicates nor the order of responses affect the result.
        """
        if context is not None and (wire := self._watcher.blocked_by(context)) is not None:
            refused = self._refused(sum(len(c.responses) for c in comparisons), wire)
            return [ComparisonResult(None, refused.failure, (refused,) * len(c.responses)) for c in comparisons]
        distinct = [sorted(set(c.responses)) for c in comparisons]
        pairs = zip(comparisons, distinct, strict=True)
        samples = [Sample(prompt=c.prompt, response=text) for c, texts in pairs for text in texts]
        scored = iter(await self.score(samples, deadline))
        results = []
        for comparison, texts in zip(comparisons, distinct, strict=True):
            by_text = {text: next(scored) for text in texts}
            results.append(self._rank(comparison, by_text, tie_margin))
        return results

    @contextmanager
    def _track(self) -> Iterator[None]:
        self.n_in_flight += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.n_in_flight -= 1
            if not self.n_in_flight:
                self.idle.set()

    # -- one chunk ------------------------------------------------------------------------------------------

    async def _score_chunk(
        self,
        samples: Sequence[SampleOrError],
        names: _Names,
        deadline: float,
        context: RunContext | None,
    ) -> list[SampleResult]:
        ahead = await self._look_ahead(samples)
        started_at = self._clock.now()
        with self._batcher.expecting(len(samples) + len(ahead)):
            encoded = await self._encode([*samples, *ahead] if ahead else samples)
        encode_s = self._clock.now() - started_at
        self._metrics.observe_encoding(encode_s)
        rows = [e.ids for e in encoded if isinstance(e, Encoded)]
        outcomes = await self._batcher.score(rows, deadline) if rows else []
        left = iter(outcomes)
        merged = [next(left) if isinstance(e, Encoded) else e for e in encoded]
        if not ahead:
            return self._finished(samples, names, encoded, merged, encode_s, context)
        n = len(samples)
        later = self._rewards_of(ahead, encoded[n:], merged[n:])
        return self._finished(samples, names, encoded[:n], merged[:n], encode_s, context, later)

    async def _look_ahead(self, samples: Sequence[SampleOrError]) -> list[Continuation]:
        """The continuations of all samples, in order, with the turns that the policy writes."""
        if not any(isinstance(each, Sample) and each.lookahead for each in samples):
            return []
        asked = [
            self._continue(sample, turns)
            for sample in samples
            if isinstance(sample, Sample)
            for turns in sample.lookahead
        ]
        return await _gather_all(asked)

    async def _continue(self, sample: Sample, continuation: tuple[Message, ...]) -> Continuation:
        try:
            turns = turns_after(sample, continuation)
            if not lacks_answer(continuation):
                return to_score(sample, turns)
            if self._policy is None:
                return NoPolicy("a continuation ends before a turn of the assistant, and this server has no policy")
            written = await self._policy.next_turn(turns)
            return to_score(sample, (*turns, Message("assistant", written.text)), is_cut=written.is_cut)
        except (SampleError, RowFailed) as error:
            return error

    def _rewards_of(
        self,
        ahead: Sequence[Continuation],
        encoded: Sequence[Encoded | SampleError | RowFailed],
        outcomes: Sequence[RowOutcome | SampleError],
    ) -> list[Reward | SampleError | RowFailed]:
        """The reward of each continuation, or the reason why it has none."""
        found: list[Reward | SampleError | RowFailed] = []
        for sample, row, outcome in zip(ahead, encoded, outcomes, strict=True):
            if isinstance(sample, Sample) and isinstance(row, Encoded) and isinstance(outcome, RowScored):
                found += compute_rewards([ScoredRow(sample, row, outcome[0])], self._pipeline)
            else:
                assert not isinstance(outcome, RowScored)
                found.append(outcome)
        return found

    async def _encode(self, samples: Sequence[Continuation]) -> list[Encoded | SampleError | RowFailed]:
        good = [s for s in samples if isinstance(s, Sample)]
        encoded = iter(await self._encode_pool.encode(good) if good else [])
        return [next(encoded) if isinstance(s, Sample) else s for s in samples]

    def _finished(
        self,
        samples: Sequence[SampleOrError],
        names: _Names,
        encoded: Sequence[Encoded | SampleError | RowFailed],
        outcomes: Sequence[RowOutcome | SampleError],
        encode_s: float,
        context: RunContext | None,
        later: Sequence[Reward | SampleError | RowFailed] = (),
    ) -> list[SampleResult]:
        """Compute rewards from the scores of rows, and build the results. `later`: the rewards of all continuations, in order."""
        scored = [
            ScoredRow(sample, row, outcome[0], name, task or "")
            for sample, name, task, row, outcome in zip(
                samples, names.ids or repeat(None), names.tasks or repeat(None), encoded, outcomes, strict=False
            )
            if isinstance(outcome, RowScored) and isinstance(row, Encoded) and isinstance(sample, Sample)
        ]
        own = compute_rewards(scored, self._pipeline) if scored else []
        rewards = _with_lookahead(samples, scored, own, later) if later else own
        flags = self._watcher.inspect(context, scored, rewards) if context is not None and scored else None
        if self._capture is not None and context is not None and scored:
            self._capture.add(context, scored, rewards, flags)
        if self.shadow is not None and scored:
            self.shadow.submit(scored, own)  # the shadow scores no continuations
        rewarded = enumerate(rewards)
        return [
            _finish(row, outcome, next(rewarded), flags, encode_s)
            if isinstance(outcome, RowScored)
            else SampleResult(failure=Failure.of(outcome), n_tokens=len(row.ids) if isinstance(row, Encoded) else None)
            for row, outcome in zip(encoded, outcomes, strict=True)
        ]

    def _estimate(self, sample: SampleOrError) -> int:
        """Estimate the tokens of a sample: at least one, at most the limit of the model."""
        if isinstance(sample, SampleError):
            return 1
        n = len(sample.input_ids) if sample.input_ids is not None else _n_chars(sample) // _CHARS_PER_TOKEN
        most = self._max_tokens
        if sample.lookahead:
            later = [n + sum([len(m.content) for m in turns]) // _CHARS_PER_TOKEN for turns in sample.lookahead]
            return sum([min(max(1, each), most) for each in (n, *later)])
        return n if 1 <= n <= most else min(max(1, n), most)

    # -- one comparison -------------------------------------------------------------------------------------

    def _rank(self, comparison: Comparison, by_text: dict[str, SampleResult], tie_margin: float) -> ComparisonResult:
        parts = tuple(by_text.values())
        raw: list[float] = []
        for i, text in enumerate(comparison.responses):
            scored = by_text[text]
            if scored.reward is None:
                return ComparisonResult(None, _with_response_index(scored.failure, i), parts)
            raw.append(scored.reward.raw)
        ranked = rank(raw, self._temperature, tie_margin)
        if not isfinite(ranked.margin):
            error = ScoreNotFinite("the difference of the two best scores is infinite in float64")
            return ComparisonResult(None, Failure.of(error), parts)
        return ComparisonResult(ranked, None, parts)


def _finish(
    encoded: Encoded | SampleError | RowFailed,
    outcome: RowScored,
    rewarded: tuple[int, Reward | RowFailed],
    flags: Mapping[int, Flags] | None,
    encode_s: float,
) -> SampleResult:
    assert isinstance(encoded, Encoded)
    index, reward = rewarded
    if isinstance(reward, RowFailed):
        return SampleResult(failure=Failure.of(reward), n_tokens=len(encoded.ids))
    ids, _, truncated, missing_end = encoded
    heads, queue_s, forward_s, n_computed, cached = outcome
    row_flags = flags.get(index, ()) if flags else ()
    return SampleResult(
        reward,
        heads,
        len(ids),
        n_computed,
        truncated,
        missing_end,
        cached,
        encode_s,
        queue_s,
        forward_s,
        None,
        row_flags,
    )


def _with_lookahead(
    samples: Sequence[SampleOrError],
    scored: Sequence[ScoredRow],
    own: Sequence[Reward | RowFailed],
    later: Sequence[Reward | SampleError | RowFailed],
) -> list[Reward | RowFailed]:
    """The rewards of the scored samples; `later` has those of the continuations of all samples, in order."""
    left, by_sample = iter(later), dict[int, list[Reward | SampleError | RowFailed]]()
    for sample in samples:
        if isinstance(sample, Sample) and sample.lookahead:
            by_sample[id(sample)] = [next(left) for _ in sample.lookahead]
    return [
        with_lookahead(row.sample, reward, by_sample[id(row.sample)])
        if isinstance(reward, Reward) and row.sample.lookahead
        else reward
        for row, reward in zip(scored, own, strict=True)
    ]


def rank(raw: Sequence[float], temperature: float, tie_margin: float) -> Ranking:
    """Rank uncapped raw scores. P(i beats j) = sigmoid((raw_i - raw_j) / temperature), Bradley-Terry (1952).

    `margin` may overflow to infinity for finite scores; the probabilities are correct even then.
    """
    ranking = sorted(range(len(raw)), key=lambda i: (-raw[i], i))
    margin = raw[ranking[0]] - raw[ranking[1]]
    return Ranking(
        ranking=tuple(ranking),
        winner=ranking[0] if margin > tie_margin else None,
        raw=tuple(raw),
        probabilities=tuple(tuple(sigmoid((a - b) / temperature) for b in raw) for a in raw),
        margin=margin,
    )


def _with_response_index(failure: Failure | None, index: int) -> Failure | None:
    if failure is None:
        return None
    return replace(
        failure, message=f"response {index}: {failure.message}", details={**failure.details, "response": index}
    )


def _outcomes(results: Sequence[SampleResult]) -> Mapping[str, int]:
    """Count the samples by error code, and `ok` those without an error."""
    failed = Counter([r.failure.code for r in results if r.failure is not None])
    n_ok = len(results) - failed.total()
    return {**failed, "ok": n_ok} if n_ok else failed


def _n_chars(sample: Sample) -> int:
    text, prompt = sample.text, sample.prompt
    if text is not None:
        return len(text)
    n_response = len(sample.response or "")
    if isinstance(prompt, str):
        return len(prompt) + n_response
    return n_response + sum([len(m.content) for m in sample.messages or prompt or ()])


class _Names(NamedTuple):
    """Ids and tasks of the samples of one chunk; empty where the request has none."""

    ids: Sequence[str | None]
    tasks: Sequence[str | None]


def _named_chunks(
    samples: Sequence[SampleOrError], context: RunContext | None
) -> Iterator[tuple[Sequence[SampleOrError], _Names]]:
    ids, tasks = (context.ids, context.tasks) if context is not None else ((), ())
    at = 0
    for chunk in _chunks(samples):
        end = at + len(chunk)
        yield chunk, _Names(ids[at:end], tasks[at:end])
        at = end


def _chunks(samples: Sequence[SampleOrError]) -> list[Sequence[SampleOrError]]:
    """Split samples into encoding tasks, so that one chunk can be in a batch while the next is encoded.

    Samples with one prompt stay together, so that the prompt is encoded and computed once. Token ids need no encoding.
    """
    starts = [0]
    for i in range(_CHUNK_SAMPLES, len(samples)):
        n = i - starts[-1]
        if n >= _MAX_CHUNK_SAMPLES or (n >= _CHUNK_SAMPLES and not _share_prompt(samples[i - 1], samples[i])):
            starts.append(i)
    return [samples[start:end] for start, end in pairwise([*starts, len(samples)])]


def _share_prompt(one: SampleOrError, other: SampleOrError) -> bool:
    if not (isinstance(one, Sample) and isinstance(other, Sample)):
        return False
    if one.input_ids is not None:
        return other.input_ids is not None
    if one.messages:
        return one.messages[:-1] == (other.messages or ())[:-1]
    if one.text is not None:
        n = one.n_prompt_chars or 0
        return n > 0 and n == other.n_prompt_chars and one.text[:n] == (other.text or "")[:n]
    return one.prompt is not None and one.prompt == other.prompt


@asynccontextmanager
async def _within_deadline(deadline: float, clock: Clock) -> AsyncIterator[None]:
    """Raise `DeadlineExceeded` out of the block at the deadline."""
    left_s = None if deadline == math.inf else max(0.0, deadline - clock.now())
    try:
        async with asyncio.timeout(left_s):
            yield
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before every sample was scored") from None


async def _gather_all(parts: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines concurrently. If one raises or the caller is cancelled, cancel the others and await them."""
    if len(parts) == 1:
        return [await parts[0]]
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
