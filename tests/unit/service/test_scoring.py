"""The story of one request, in one process, with real parts and a scorer that can be nasty."""

from __future__ import annotations

import asyncio
import gc
import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from rewardserve.model.backends import ModelSpec, echo
from rewardserve.model.backends.echo import echo_score
from rewardserve.model.conversation import InvalidText, Message, Sample
from rewardserve.model.reward import RewardSettings, build_pipeline
from rewardserve.model.scorer import BatchScores
from rewardserve.service.admission import Admission
from rewardserve.service.clock import MonotonicClock
from rewardserve.service.errors import BatcherStopped, DeadlineExceeded, Overloaded
from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.encode_pool import EncodePool
from rewardserve.service.inference.planner import BatchLimits
from rewardserve.service.inference.score_cache import ScoreCache
from rewardserve.service.observability.metrics import Metrics
from rewardserve.service.scoring import Comparison, Scoring, _chunks, _gather_all, rank
from tests.support.rewards import sole, watching
from tests.support.service_fakes import (
    PATIENCE_S,
    FakeScorer,
    GatedScorer,
    InferenceLog,
    Untrue,
    poisoned_by,
    scores_with,
)

RAW = st.floats(-1e6, 1e6)
ANY_RAW = st.floats(allow_nan=False, allow_infinity=False)


@pytest.fixture
async def open_scoring():
    """Builds scoring with all its parts, and audits on the way out that no permit, ticket or task is left."""
    built = []

    def build(scorer=None, *, encode=None, std=1.0, heads=(("score", 1.0),), max_samples=100, shape="none", n_cached=0):
        clock, metrics, bugs = MonotonicClock(), Metrics(), []
        loaded = echo.load(ModelSpec())
        calibration = replace(loaded.calibration, std=std, temperature=2.0)
        pipeline = build_pipeline(sole(calibration, heads), RewardSettings(shape=shape))
        metrics.model_loaded(1, calibration, pipeline)
        cache = ScoreCache(n_cached, version=1)
        batcher = Batcher(scorer or FakeScorer(), BatchLimits(10_000, 0.0), clock, InferenceLog(), cache=cache)
        parts = SimpleNamespace(
            version=1,
            admission=Admission(max_samples, 1_000_000, clock),
            encode_pool=EncodePool(encode or loaded.encode, 2, InferenceLog(on_encode_bug=bugs.append)),
            batcher=batcher, pipeline=pipeline, watcher=watching(clock), metrics=metrics, clock=clock,
        )  # fmt: skip
        batcher.start()
        built.append((parts, scorer))
        scoring = Scoring(**vars(parts), max_tokens=loaded.identity.max_tokens)
        scoring.parts, scoring.bugs = parts, bugs
        return scoring

    yield build
    for parts, scorer in built:
        if isinstance(scorer, GatedScorer):
            scorer.gate.set()
        await asyncio.wait_for(parts.batcher.stop(), PATIENCE_S)
        parts.encode_pool.close()
        assert (parts.admission.n_samples, parts.admission.n_tokens, parts.batcher.n_samples) == (0, 0, 0)
        assert parts.batcher._n_expected == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


TEXTS = [f"text {i}" for i in range(50)]


def score_of(text):
    return echo_score((*text.encode(), 0))


def codes(results):
    return [r.failure.code if r.failure else "ok" for r in results]


async def test_samples_of_many_chunks_come_back_in_order(open_scoring):
    results = await open_scoring().score([Sample(text=t) for t in TEXTS])
    assert [r.reward.raw for r in results] == [score_of(t) for t in TEXTS]
    assert all(r.reward.normalized == r.reward.raw for r in results)
    assert sum(r.n_computed for r in results) == pytest.approx(sum(r.n_tokens for r in results))


async def test_an_exact_repeat_is_marked_costs_nothing_and_is_rewarded_like_the_first(open_scoring):
    scoring = open_scoring(n_cached=10)
    (first,) = await scoring.score([Sample(text="a")])
    again, new = await scoring.score([Sample(text="a"), Sample(text="bb")])
    assert [(r.cached, r.n_computed) for r in (first, again, new)] == [(False, 2), (True, 0), (False, 3)]
    assert again.reward == first.reward


async def test_a_request_is_counted_once_it_is_answered(open_scoring):
    scoring = open_scoring(n_cached=10)
    await scoring.score([Sample(text="a")])
    await scoring.score([Sample(text="a"), Sample(text="bb"), Sample(text="a"), InvalidText("no")])
    counted = {
        (s.name, *s.labels.values()): s.value
        for family in text_string_to_metric_families(scoring.parts.metrics.render().decode())
        for s in family.samples
    }
    assert counted["rewardserve_samples_total", "ok"] == 4
    assert counted["rewardserve_samples_total", "invalid_text"] == 1
    assert counted["rewardserve_tokens_total", "received"] == 3 * 2 + 3
    assert counted["rewardserve_tokens_total", "cached"] == 2 * 2
    assert counted["rewardserve_raw_score_count", "1"] == counted["rewardserve_value_count", "1"] == 4


async def test_bad_samples_have_errors_of_their_own(open_scoring):
    asked = [Sample(text="a"), InvalidText("no"), Sample(text="\ud800"), Sample(input_ids=(999,)), Sample(text="b")]
    results = await open_scoring().score(asked)
    assert codes(results) == ["ok", "invalid_text", "invalid_text", "token_out_of_vocabulary", "ok"]


async def test_an_encoder_bug_is_an_error_of_its_sample_and_is_reported_once(open_scoring):
    loaded = echo.load(ModelSpec())

    def encode(sample):
        if sample.text == "bad":
            raise ValueError("bad")
        return loaded.encode(sample)

    scoring = open_scoring(encode=encode)
    results = await scoring.score([Sample(text="good"), Sample(text="bad")])
    assert codes(results) == ["ok", "encoding_failed"]
    assert "bad" not in results[1].failure.message
    assert len(scoring.bugs) == 1


@pytest.mark.parametrize("shape", ["none", "cap", "softcap"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e308])
async def test_a_reward_that_is_no_number_is_an_error_and_never_a_number(open_scoring, value, shape):
    """1e308 is finite, but not any more when it is divided by a tiny standard deviation; a cap must not hide that."""
    bad = tuple(b"bad\0")
    scoring = open_scoring(FakeScorer(scores_with(value, bad.__eq__)), std=1e-3, shape=shape)
    results = await scoring.score([Sample(text="good"), Sample(text="bad")])
    assert codes(results) == ["ok", "score_not_finite"]
    assert results[1].reward is None


async def test_finite_heads_whose_sum_is_not_finite_are_an_error(open_scoring):
    scorer = FakeScorer(lambda batch: BatchScores(({"a": 1e308, "b": 1e308},) * len(batch), batch.n_tokens))
    results = await open_scoring(scorer, heads=(("a", 1.0), ("b", 1.0))).score([Sample(text="x")])
    assert codes(results) == ["score_not_finite"]


async def test_a_head_that_is_left_out_is_a_bug_of_the_backend(open_scoring):
    results = await open_scoring(heads=(("score", 1.0), ("harmless", 1.0))).score([Sample(text="x")])
    assert codes(results) == ["scorer_bug"]


async def test_a_poisonous_sample_is_alone_with_its_error(open_scoring):
    bad = tuple(b"text 7\0")
    results = await open_scoring(FakeScorer(poisoned_by(bad.__eq__))).score([Sample(text=t) for t in TEXTS])
    assert [i for i, c in enumerate(codes(results)) if c == "scorer_failed"] == [7]


async def test_a_late_request_is_refused_as_a_whole_and_releases_its_permit(open_scoring):
    scorer = GatedScorer()
    scoring = open_scoring(scorer)
    with pytest.raises(DeadlineExceeded):
        await scoring.score([Sample(text=t) for t in TEXTS], deadline=scoring.parts.clock.now() + 0.02)
    assert scoring.parts.admission.n_samples == 0
    assert scoring.parts.batcher.n_samples == 0


async def test_a_cancelled_request_releases_its_permit_at_once(open_scoring):
    scorer = GatedScorer()
    scoring = open_scoring(scorer)
    request = asyncio.create_task(scoring.score([Sample(text=t) for t in TEXTS]))
    await scorer.entered()
    with pytest.raises(Overloaded):
        await scoring.score([Sample(text="x")] * 60)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    assert scoring.parts.admission.n_samples == 0
    scorer.gate.set()
    assert codes(await scoring.score([Sample(text="x")] * 60)) == ["ok"] * 60


async def test_when_the_batcher_ends_the_request_is_refused(open_scoring):
    scorer = FakeScorer()
    scorer.pads_rows = Untrue()
    with pytest.raises(BatcherStopped):
        await asyncio.wait_for(open_scoring(scorer).score([Sample(text=t) for t in TEXTS]), PATIENCE_S)


async def test_a_comparison_uses_the_uncapped_raw_score_and_the_calibrated_temperature(open_scoring):
    (compared,) = await open_scoring(std=5.0).compare([Comparison("p", ("alpha", "beta"))])
    raw = [score_of("p\nalpha"), score_of("p\nbeta")]
    assert compared.ranked.raw == tuple(raw)
    assert compared.ranked.probabilities[0][1] == pytest.approx(1 / (1 + math.exp(-(raw[0] - raw[1]) / 2.0)))


async def test_scores_too_far_apart_for_a_float_are_an_error_of_their_comparison_alone(open_scoring):
    """1e308 - -1e308 is infinite. What lies far behind the best two has the right probability all the same."""
    values = {b"p\nhigh\0": 1e308, b"p\nalso high\0": 0.9e308, b"p\nlow\0": -1e308}
    scorer = FakeScorer(
        lambda batch: BatchScores(tuple({"score": values.get(bytes(r), 0.0)} for r in batch.rows), batch.n_tokens)
    )
    asked = [Comparison("p", responses) for responses in (("high", "low"), ("also high", "high", "low"), ("a", "b"))]
    far, near, even = await open_scoring(scorer).compare(asked)
    assert (far.ranked, far.failure.code) == (None, "score_not_finite")
    assert near.ranked.ranking == (1, 0, 2)
    assert near.ranked.probabilities[1][2] == 1.0
    assert near.ranked.probabilities[2][1] == 0.0
    assert even.failure is None


async def test_the_scorer_sees_the_same_rows_in_whatever_order_responses_are_listed(open_scoring):
    """Rounding may depend on who rides beside whom, so the batch is the same too."""
    seen = []
    for texts in (("alpha", "beta", "gamma"), ("gamma", "beta", "alpha", "beta")):
        scorer = FakeScorer()
        await open_scoring(scorer).compare([Comparison("p", texts)])
        seen.append([b.rows for b in scorer.batches])
    assert seen[0] == seen[1]


def asked(kind, prompt, answer):
    user, assistant = Message("user", f"q{prompt}"), Message("assistant", f"a{answer}")
    forms = {
        "prompt": {"prompt": f"q{prompt}", "response": f"a{answer}"},
        "messages": {"messages": (user, assistant)},
        "text": {"text": f"q{prompt} a{answer}"},
        "ids": {"input_ids": (prompt + 1, answer)},
    }
    return InvalidText("no") if kind == "bad" else Sample(**forms[kind])


ASKED = st.builds(
    asked, st.sampled_from(["prompt", "messages", "text", "ids", "bad"]), st.integers(0, 2), st.integers(0, 9)
)
RUNS = st.lists(st.tuples(ASKED, st.integers(1, 150)), max_size=12).map(
    lambda runs: [s for s, n in runs for _ in range(n)]
)


@given(samples=RUNS)
def test_samples_are_cut_into_chunks_between_prompts(samples):
    chunks = _chunks(samples)
    assert [s for chunk in chunks for s in chunk] == samples
    assert all(len(chunk) <= 128 for chunk in chunks)
    assert all(len(chunk) >= 16 for chunk in chunks[:-1])
    for one, other in pairwise(chunks):
        same_prompt = isinstance(one[-1], Sample) and one[-1] == other[0] and one[-1].text is None
        assert not same_prompt or len(one) == 128


@pytest.mark.parametrize("kind", ["prompt", "messages", "ids"])
def test_a_group_of_responses_to_one_prompt_is_one_chunk(kind):
    """Torn apart, its prompt would be encoded and computed twice."""
    group = [asked(kind, 0, i) for i in range(64)]
    strangers = [asked("text", 1, i) for i in range(20)]
    assert [len(chunk) for chunk in _chunks([*group, *strangers])] == [64, 16, 4]


async def test_when_one_part_raises_the_others_are_cancelled_and_awaited():
    ends = []

    async def waits():
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")

    async def raises():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(_gather_all([waits(), raises(), waits()]), PATIENCE_S)
    assert ends == ["cancelled", "cancelled"]


@given(raw=st.lists(RAW, min_size=2, max_size=16), temperature=st.floats(0.01, 100), margin=st.floats(0, 10))
def test_every_ranking_is_consistent(raw, temperature, margin):
    ranked = rank(raw, temperature, margin)
    assert sorted(ranked.ranking) == list(range(len(raw)))
    assert [raw[i] for i in ranked.ranking] == sorted(raw, reverse=True)
    assert (ranked.winner is None) == (ranked.margin <= margin)
    assert ranked.winner in (None, ranked.ranking[0])
    for i, row in enumerate(ranked.probabilities):
        assert row[i] == 0.5
        for j, p in enumerate(row):
            assert 0.0 <= p <= 1.0
            assert p + ranked.probabilities[j][i] == pytest.approx(1.0)
            assert (p >= 0.5) == (raw[i] >= raw[j]) or math.isclose(p, 0.5)


@given(raw=st.lists(ANY_RAW, min_size=2, max_size=16), temperature=st.floats(1e-300, 1e300))
def test_probabilities_are_numbers_whatever_finite_scores_they_are_made_of(raw, temperature):
    ranked = rank(raw, temperature, 0.0)
    assert all(0.0 <= p <= 1.0 for row in ranked.probabilities for p in row)
    assert ranked.margin >= 0.0


@given(raw=st.lists(RAW, min_size=2, max_size=8, unique=True), data=st.data())
def test_the_order_of_responses_has_no_effect(raw, data):
    order = data.draw(st.permutations(range(len(raw))))
    one, other = rank(raw, 1.0, 0.0), rank([raw[i] for i in order], 1.0, 0.0)
    assert [order[i] for i in other.ranking] == list(one.ranking)
    assert one.margin == other.margin
    assert order[other.winner] == one.winner


async def test_a_request_leaves_nothing_for_the_garbage_collector(open_scoring):
    """It is told to look rarely: rows that knew their callers, who know them, would pile up."""
    scoring = open_scoring()
    for n in range(2):
        gc.collect()
        gc.disable()
        try:
            for i in range(10):
                await scoring.score([Sample(text=f"{n} {i} {text}") for text in TEXTS])
            n_left = gc.collect()
        finally:
            gc.enable()
    assert n_left < 50, "of 500 rows"
